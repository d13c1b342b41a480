"""robomimic's `dataset`: datasets for torch's `DataLoader`, over raymimic's store.

raymimic's own trainings gather whole batches on the device (`raymimic.data.loader`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, Sampler, WeightedRandomSampler

from raymimic import storage
from raymimic.data import sequence
from raymimic.data.columns import ColumnRequest, DemoSource
from raymimic.data.hdf5 import open_dataset
from raymimic.data.images import likely_modality
from raymimic.data.layout import selected_demos
from raymimic.data.reads import NEXT_OBS
from raymimic.data.stats import (
    Moments,
    Stats,
    action_normalization_stats,
    moments,
    obs_normalization_stats,
    scaling_of,
)
from raymimic.data.store import DemoStore
from raymimic.errors import ConfigError
from raymimic.tensors import map_tensor
from raymimic.utils.lang_utils import LANG_EMB_OBS_KEY, get_lang_emb
from raymimic.utils.obs_utils import OBS_KEYS_TO_MODALITIES, DepthModality, modality_in_use

Item = dict[str, Any]
"""Arrays `[T, ...]` by name; `obs`, `next_obs` and `goal_obs` are dicts of them."""


class SequenceDataset(Dataset[Item]):
    """Windows of the demos of a file, as `raymimic.data.sequence.SequenceDataset` serves them.

    All demos are in memory, whatever `hdf5_cache_mode` says. Items hold arrays: images as bytes,
    all else as float32 (robomimic keeps the file's type of observations). `rewards` and `dones` are
    left out where the file lacks them; a missing `next_obs` is taken from the next row of `obs`.

    Args:
        hdf5_path: local path or URI.
        obs_keys: observation keys. A key that `obs_utils.OBS_KEYS_TO_MODALITIES` lacks has the
            modality that fits its shape.
        action_keys: datasets that make up `actions`, side by side, normalised.
        dataset_keys: further datasets, such as `rewards`.
        action_config: how each action key is normalised, as `train.action_config`.
        frame_stack: observations that a policy sees, the present one included.
        seq_length: steps from a sample's own on.
        pad_frame_stack: whether windows may reach over the demo's beginning.
        pad_seq_length: whether they may reach over its end.
        get_pad_mask: whether items carry `pad_mask [T, 1]`, true on steps that are no padding.
        goal_mode: `"last"` or None.
        hdf5_cache_mode: has no effect.
        hdf5_use_swmr: has no effect.
        hdf5_normalize_obs: whether to compute statistics of observations; items are as they are.
        filter_by_attribute: filter key; None: all demos.
        load_next_obs: whether items carry `next_obs`.
        lang: an instruction, whose embedding becomes observation `lang_emb`.
        demo_limit: take only so many demos.

    Raises:
        DatasetError: the file cannot be read, lacks a key, or its demos are too short.
        ConfigError: a normalisation is unknown, or there is no text encoder (`lang_utils`).
    """

    def __init__(
        self,
        hdf5_path: str | Path,
        obs_keys: Sequence[str],
        action_keys: Sequence[str],
        dataset_keys: Sequence[str],
        action_config: Mapping[str, Mapping[str, Any]],
        frame_stack: int = 1,
        seq_length: int = 1,
        pad_frame_stack: bool = True,
        pad_seq_length: bool = True,
        get_pad_mask: bool = False,
        goal_mode: str | None = None,
        hdf5_cache_mode: str | None = None,
        hdf5_use_swmr: bool = True,
        hdf5_normalize_obs: bool = False,
        filter_by_attribute: str | None = None,
        load_next_obs: bool = True,
        lang: str | None = None,
        demo_limit: int | None = None,
    ) -> None:
        self.hdf5_path = (
            str(storage.expanded(hdf5_path)) if "://" not in str(hdf5_path) else str(hdf5_path)
        )
        self.obs_keys, self.action_keys = tuple(obs_keys), tuple(action_keys)
        parts = [key for key in action_keys if key != "actions"]
        self.dataset_keys = tuple(dict.fromkeys([*dataset_keys, *parts]))
        self.action_config = action_config
        self.hdf5_cache_mode = hdf5_cache_mode
        self.hdf5_normalize_obs = hdf5_normalize_obs
        self.filter_by_attribute = filter_by_attribute
        self.n_frame_stack, self.seq_length = frame_stack, seq_length
        self.pad_frame_stack, self.pad_seq_length = pad_frame_stack, pad_seq_length
        self.get_pad_mask, self.goal_mode = get_pad_mask, goal_mode
        self.load_next_obs, self.lang = load_next_obs, lang
        embedding = get_lang_emb(lang)
        self._lang_emb = None if embedding is None else embedding.numpy()

        source = DemoSource(self.hdf5_path, filter_by_attribute, demo_limit)
        self._modalities = _modalities(source, self.obs_keys)
        request = ColumnRequest(
            obs_keys=self.obs_keys,
            action_keys=self.action_keys,
            dataset_keys=tuple(key for key in self.dataset_keys if key != "actions"),
            load_next_obs=load_next_obs,
            needs=frozenset({NEXT_OBS} if load_next_obs or goal_mode else ()),
            modalities=self._modalities,
            cut_depth=DepthModality.is_cut(),
        )
        self._windows = sequence.SequenceDataset(
            DemoStore.load([source], request),
            seq_length=seq_length,
            frame_stack=frame_stack,
            pad_seq_length=pad_seq_length,
            pad_frame_stack=pad_frame_stack,
            goal_mode=goal_mode,
            get_pad_mask=get_pad_mask,
            load_next_obs=load_next_obs,
        )
        self.demos = [demo.name for demo in self._store.layout.demos]
        self.obs_normalization_stats: Stats | None = None
        if hdf5_normalize_obs:
            self.obs_normalization_stats = self.normalize_obs()
        self.action_normalization_stats: Stats | None = None
        self.set_action_normalization_stats(self.get_action_normalization_stats())

    @property
    def _store(self) -> DemoStore:
        return self._windows.store

    @property
    def n_demos(self) -> int:
        """Number of demos."""
        return len(self.demos)

    @property
    def total_num_sequences(self) -> int:
        """Number of items."""
        return len(self)

    def __len__(self) -> int:
        return len(self._windows)

    def __repr__(self) -> str:
        shown = {
            "path": self.hdf5_path,
            "obs_keys": self.obs_keys,
            "seq_length": self.seq_length,
            "filter_key": self.filter_by_attribute or "none",
            "frame_stack": self.n_frame_stack,
            "pad_seq_length": self.pad_seq_length,
            "pad_frame_stack": self.pad_frame_stack,
            "goal_mode": self.goal_mode or "none",
            "num_demos": self.n_demos,
            "num_sequences": len(self),
        }
        lines = "\n".join(f"\t{name}={value}" for name, value in shown.items())
        return f"{type(self).__name__} (\n{lines}\n)"

    def __getitem__(self, index: int) -> Item:
        """One window: arrays `[T, ...]`; `goal_obs` has no time axis, and `index` is a number."""
        item: Item = map_tensor(self._windows[index], lambda x: x.numpy())
        item["index"] = int(item["index"])
        if self._lang_emb is not None:
            item["obs"][LANG_EMB_OBS_KEY] = np.tile(self._lang_emb, (len(item["actions"]), 1))
        if self.get_pad_mask:
            for group in ("obs", NEXT_OBS):
                if group in item:
                    item[group]["pad_mask"] = item["pad_mask"]
        return item

    def get_trajectory_at_index(self, index: int) -> Item:
        """A whole demo: arrays `[N, ...]`, and its name, `ep`; actions as recorded."""
        store = self._store
        rows = slice(int(store.starts[index]), int(store.starts[index] + store.lengths[index]))
        item: Item = {"obs": {}, "ep": self.demos[index]}
        for key, column in store.columns.items():
            group, _, name = key.partition("/")
            if group in ("obs", NEXT_OBS):
                item.setdefault(group, {})[name] = column[rows].numpy()
            else:
                item[key] = column[rows].numpy()
        return item

    def get_dataset_sampler(self) -> Sampler[int] | None:
        """None: items are drawn uniformly."""
        return None

    def normalize_obs(self) -> Stats:
        """Computes mean and standard deviation of each observation."""
        columns = self._store.columns
        return obs_normalization_stats(
            {
                key: moments([columns[f"obs/{key}"]], modality_in_use(self._modalities[key]))
                for key in self.obs_keys
            }
        )

    def get_obs_normalization_stats(self) -> Stats:
        """Returns `offset` and `scale` `[1, *shape]` of each observation key.

        Raises:
            ConfigError: `hdf5_normalize_obs` is false.
        """
        if self.obs_normalization_stats is None:
            raise ConfigError("observations are not normalised: set hdf5_normalize_obs to true")
        return deepcopy(self.obs_normalization_stats)

    def get_action_stats(self) -> dict[str, Moments]:
        """Computes count, mean, deviation and range of each action key."""
        column = self._store.layout.columns["actions"]
        widths = dict(zip(self.action_keys, column.widths, strict=True))
        return moments([self._store.columns["actions"]]).split(widths)

    def get_action_normalization_stats(self) -> Stats:
        """Returns `offset` and `scale` `[1, A]` of each action key, by its `action_config`."""
        if self.action_normalization_stats is None:
            return action_normalization_stats(self.get_action_stats(), self.action_config)
        return self.action_normalization_stats

    def set_action_normalization_stats(self, action_normalization_stats: Stats) -> None:
        """Has items hold actions normalised by these."""
        self.action_normalization_stats = action_normalization_stats
        scaling = scaling_of(action_normalization_stats, self._store.columns["actions"][:0])
        self._windows.store = replace(
            self._store, scaling={} if scaling is None else {"actions": scaling}
        )


def _modalities(source: DemoSource, obs_keys: Sequence[str]) -> dict[str, str]:
    known = {key: OBS_KEYS_TO_MODALITIES[key] for key in obs_keys if key in OBS_KEYS_TO_MODALITIES}
    if len(known) == len(set(obs_keys)):
        return known
    with open_dataset(source.path) as reader:
        demo = reader.demo(selected_demos(reader, source)[0])
        shapes = {} if demo is None else demo.shapes()
    return {
        key: known.get(key) or likely_modality(shapes.get(f"obs/{key}", ())) or "low_dim"
        for key in obs_keys
    }


class MetaDataset(Dataset[Item]):
    """Several datasets as one, which are drawn from by weight; their actions share statistics.

    Args:
        datasets: the datasets.
        ds_weights: the weight of each item of a dataset.
        normalize_weights_by_ds_size: whether weights are those of whole datasets instead.
    """

    def __init__(
        self,
        datasets: Sequence[SequenceDataset],
        ds_weights: Sequence[float],
        normalize_weights_by_ds_size: bool = False,
    ) -> None:
        self.datasets = list(datasets)
        sizes = np.array([len(dataset) for dataset in datasets])
        weights = np.asarray(ds_weights, np.float64)
        self.ds_weights = weights / sizes if normalize_weights_by_ds_size else weights
        self._ends = np.cumsum(sizes)
        stats = action_normalization_stats(self.get_action_stats(), self.datasets[0].action_config)
        self.set_action_normalization_stats(stats)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, idx: int) -> Item:
        """An item, numbered through all datasets."""
        if not -len(self) <= idx < len(self):
            raise IndexError(f"sample {idx} of {len(self)}")
        idx %= len(self)
        number = int(np.searchsorted(self._ends, idx, side="right"))
        dataset = self.datasets[number]
        item = dataset[idx - int(self._ends[number]) + len(dataset)]
        item["index"] = idx
        return item

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.datasets))

    def get_dataset_sampler(self) -> Sampler[int]:
        """A sampler that draws items by weight, with replacement."""
        sizes = [len(dataset) for dataset in self.datasets]
        return CustomWeightedRandomSampler(np.repeat(self.ds_weights, sizes), len(self))

    def get_action_stats(self) -> dict[str, Moments]:
        """As of a `SequenceDataset`, over all of them."""
        total = self.datasets[0].get_action_stats()
        for dataset in self.datasets[1:]:
            other = dataset.get_action_stats()
            total = {key: found.merge(other[key]) for key, found in total.items()}
        return total

    def get_action_normalization_stats(self) -> Stats:
        """As of a `SequenceDataset`, over all of them."""
        return self.datasets[0].get_action_normalization_stats()

    def set_action_normalization_stats(self, action_normalization_stats: Stats) -> None:
        """Has the items of all datasets hold actions normalised by these."""
        for dataset in self.datasets:
            dataset.set_action_normalization_stats(action_normalization_stats)

    def get_obs_normalization_stats(self) -> Stats:
        """Refuses: statistics of several datasets are computed by raymimic's own trainings.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "observations of several datasets are normalised by raymimic.train alone: leave "
            "train.hdf5_normalize_obs false, or train by it"
        )


class CustomWeightedRandomSampler(WeightedRandomSampler):
    """Draws by weight among any number of items; torch draws among 2^24 at most.

    NumPy's generator is seeded by torch's, so that `torch.manual_seed` determines the order.
    """

    def __init__(
        self,
        weights: Sequence[float] | npt.NDArray[np.float64],
        num_samples: int,
        replacement: bool = True,
    ) -> None:
        super().__init__(torch.as_tensor(weights).tolist(), num_samples, replacement)

    def __iter__(self) -> Any:
        seed = int(torch.empty((), dtype=torch.int64).random_().item())
        weights = self.weights.numpy()
        drawn = np.random.default_rng(seed).choice(
            len(weights), self.num_samples, self.replacement, weights / weights.sum()
        )
        yield from drawn.tolist()
