"""Batches for the training loop: on the device, in the order that seed and epoch determine."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymimic.config.base_config import BaseConfig, sections_named
from raymimic.data.sampler import Batches, EpochSampler, Sampler, ValidationSampler
from raymimic.data.schema import (
    BOUNDED_ACTIONS,
    NEXT_OBS,
    ColumnRequest,
    DemoSource,
    Layout,
    content_digest,
    read_metadata,
    scan,
)
from raymimic.data.sequence import Batch, SequenceDataset
from raymimic.data.stats import (
    Moments,
    Stats,
    action_normalization_stats,
    greatest_magnitude,
    moments,
    normalize_actions,
    obs_normalization_stats,
    stream_column,
)
from raymimic.data.store import DemoStore, numpy_dtype
from raymimic.errors import ConfigError, DatasetError
from raymimic.utils.obs_utils import modalities_of

logger = logging.getLogger(__name__)

_CHUNK_BYTES = {"cpu": 1 << 19, "cuda": 1 << 25}
_MAX_GPU_SHARE = 0.5


class Placement:
    """Which samples of the global numbering a worker of a sharded training holds.

    Args:
        dataset: this worker's samples.
    """

    def __init__(self, dataset: SequenceDataset) -> None:
        sizes = torch.from_numpy(dataset.layout_sizes)
        self._mine = torch.zeros(len(sizes), dtype=torch.bool)
        self._mine[torch.from_numpy(dataset.store.owned)] = True
        held = torch.where(self._mine, sizes, 0)
        self._ends = sizes.cumsum(0)
        # From global to own numbers: own samples before a demo, less all samples before it.
        self._shift = (held.cumsum(0) - held) - (self._ends - sizes)

    def keep(self, batches: Batches) -> Batches:
        """The samples of each global batch that this worker holds, under its own numbers."""
        demos = torch.searchsorted(self._ends, batches.indices, right=True)
        return batches.keep(self._mine[demos], batches.indices + self._shift[demos])


class Loader:
    """One worker's part of each batch.

    With replicated data each worker takes a contiguous cut of the global batch. With sharded data
    (a placement) it takes those samples of the same global batch that it holds: the union over
    workers is the very batch that one worker would have taken, so each transition is exactly as
    likely as any other, however unequal the shards are; only the number of samples per worker
    varies from step to step.

    A worker that has no sample in a batch gets one row of its data with weight zero, so that all
    workers take the same steps and nothing is ever empty.

    Args:
        dataset: this worker's samples.
        sampler: global batches.
        rank: this worker.
        world_size: number of workers.
        device: where batches go.
        placement: which samples this worker holds; None when every worker holds all.
    """

    def __init__(
        self,
        dataset: SequenceDataset,
        sampler: Sampler,
        rank: int,
        world_size: int,
        device: torch.device,
        placement: Placement | None = None,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.rank = rank
        self.world_size = world_size
        self.device = device
        self._placement = placement
        self._chunk_rows = max(_CHUNK_BYTES[device.type] // dataset.sample_bytes, 1)

    @property
    def num_steps(self) -> int:
        """Batches of an epoch, the same number on every worker."""
        return self.sampler.num_steps

    @property
    def num_samples(self) -> int:
        """Samples of the whole data, those that other workers hold included."""
        return int(self.dataset.layout_sizes.sum())

    def epoch(self, epoch: int) -> Iterator[tuple[Batch, int, int]]:
        """Serves an epoch.

        Args:
            epoch: number of the epoch; the first is 1. The order is a function of it.

        Yields:
            ``(batch, n, total)``: this worker's rows, on the device, as
            :meth:`~raymimic.data.sequence.SequenceDataset.gather` describes them; how many of them
            count, so that a mean over them weighs ``n / total`` in the global batch (0: the
            batch holds one row which does not count); and the size of the global batch.
        """
        batches = self.sampler.epoch(epoch)
        if self._placement is None:
            batches = batches.cut(self.rank, self.world_size)
        else:
            batches = self._placement.keep(batches)
        weights = batches.sizes.tolist()
        totals = batches.totals.tolist()
        indices, rows = _fill_empty(batches)
        indices = indices.to(self.dataset.store.device)
        step = begin = 0
        # Several steps are gathered at once: one gather per key serves them all, and what a step
        # costs in Python is to take views of it.
        while step < len(rows):
            end, stop = begin + rows[step], step + 1
            while stop < len(rows) and end - begin + rows[stop] <= self._chunk_rows:
                end, stop = end + rows[stop], stop + 1
            chunk = self._to_device(self.dataset.gather(indices[begin:end]))
            for i, batch in enumerate(_split(chunk, rows[step:stop]), start=step):
                yield batch, weights[i], totals[i]
            step, begin = stop, end

    def _to_device(self, batch: Batch) -> Batch:
        if self.dataset.store.device == self.device:
            return batch
        return {
            key: self._to_device(value)
            if isinstance(value, dict)
            else value.pin_memory().to(self.device, non_blocking=True)
            for key, value in batch.items()
        }


def _fill_empty(batches: Batches) -> tuple[Tensor, list[int]]:
    """Puts sample 0 into batches that have none."""
    if batches.sizes.all():
        return batches.indices, batches.sizes.tolist()
    rows = np.maximum(batches.sizes, 1)
    indices = torch.zeros(int(rows.sum()), dtype=torch.int64)
    real = np.repeat(batches.sizes > 0, rows)
    indices[torch.from_numpy(real)] = batches.indices
    return indices, rows.tolist()


def _split(chunk: Batch, rows: list[int]) -> Iterator[Batch]:
    """Views of consecutive batches in a chunk of them."""
    if len(rows) == 1:
        yield chunk
        return
    flat = {
        key: torch.split(value, rows) for key, value in chunk.items() if isinstance(value, Tensor)
    }
    groups = {
        key: {name: torch.split(tensor, rows) for name, tensor in value.items()}
        for key, value in chunk.items()
        if isinstance(value, dict)
    }
    for i in range(len(rows)):
        batch: Batch = {key: parts[i] for key, parts in flat.items()}
        for key, group in groups.items():
            batch[key] = {name: parts[i] for name, parts in group.items()}
        yield batch


@dataclass(frozen=True)
class EvalEnv:
    """An environment that comes with the data.

    Attributes:
        key: the name that its metrics are logged under.
        env_meta: ``env_name``, ``type``, ``env_kwargs``.
        evaluate: whether to evaluate in it (``eval`` of the dataset's entry).
    """

    key: str
    env_meta: dict[str, Any]
    evaluate: bool


@dataclass(frozen=True)
class DataInfo:
    """What is known of a training's data before any of it is read.

    Attributes:
        shape_meta: see :func:`raymimic.data.schema.shape_metadata`.
        env_metas: see :func:`environments`.
        train: demos to train on.
        valid: demos to validate on, if ``experiment.validate``.
        paths: files or URIs, one for each entry of ``train.data``.
    """

    shape_meta: dict[str, Any]
    env_metas: list[EvalEnv]
    train: Layout
    valid: Layout | None
    paths: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        """Digest of the files' content, computed when asked for; several joined by commas."""
        return ",".join(content_digest(path) for path in self.paths)


@dataclass(frozen=True)
class TrainData:
    """Everything a training takes from its data.

    Attributes:
        train: training batches.
        valid: validation batches, if ``experiment.validate``.
        obs_normalization_stats: by observation key, if ``train.hdf5_normalize_obs``. Batches come
            as they are; the algorithm normalises them.
        action_normalization_stats: by action key. The batches' actions are normalised already.
        info: shapes, environments, digest.
    """

    train: Loader
    valid: Loader | None
    obs_normalization_stats: Stats | None
    action_normalization_stats: Stats
    info: DataInfo

    @property
    def shape_meta(self) -> dict[str, Any]:
        """See :func:`raymimic.data.schema.shape_metadata`."""
        return self.info.shape_meta

    @property
    def env_metas(self) -> list[EvalEnv]:
        """See :func:`environments`."""
        return self.info.env_metas

    @property
    def digest(self) -> str:
        """Digest of the files' content."""
        return self.info.digest


def inspect_data(config: BaseConfig, algo_needs: frozenset[str]) -> DataInfo:
    """Checks the data of a training without reading it.

    All complaints but those about values (NaN) are made here, so that a driver can make them
    before it starts any worker.

    Args:
        config: sections ``train``, ``experiment`` and ``observation`` are read.
        algo_needs: ``Algo.needs`` of the algorithm.

    Raises:
        DatasetError: see :mod:`raymimic.data.schema`.
        ConfigError: ``train.data`` cannot be understood.
    """
    entries = dataset_entries(config)
    request = _request(config, algo_needs)
    train = scan(_sources(config, entries, "filter_key"), request)
    valid = None
    if config.experiment.validate:
        valid = scan(_sources(config, entries, "validation_filter_key"), request)
        seen = {(demo.path, demo.name) for demo in train.demos}
        for demo in valid.demos:
            if (demo.path, demo.name) in seen:
                raise DatasetError(
                    f"dataset '{demo.path}': demo '{demo.name}' is among the training demos and"
                    " the validation demos: choose filter keys that have none in common"
                )
        if {k: v.shape for k, v in valid.columns.items()} != {
            k: v.shape for k, v in train.columns.items()
        }:
            raise DatasetError(
                f"dataset '{entries[0]['path']}': training demos and validation demos differ in"
                " their keys or shapes: convert the file so that all demos agree"
            )
    return DataInfo(
        shape_meta=train.shape_metadata(_modalities(config)),
        env_metas=environments(config, entries),
        train=train,
        valid=valid,
        paths=tuple(entry["path"] for entry in entries),
    )


def make_loaders(
    config: BaseConfig,
    algo_needs: frozenset[str],
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> TrainData:
    """Reads the data of a training and serves it in batches.

    The data goes to the GPU where it takes at most half of the free memory, else it stays in main
    memory.

    Args:
        config: sections ``train``, ``experiment``, ``observation`` and ``ray.data_placement`` are
            read.
        algo_needs: ``Algo.needs`` of the algorithm.
        device: where batches go.
        rank: this worker, in ``[0, world_size)``.
        world_size: number of workers.

    Raises:
        DatasetError: see :mod:`raymimic.data.schema`.
        ConfigError: the batch is larger than the data or smaller than the number of workers, …
    """
    train = config.train
    if train.batch_size < world_size:
        raise ConfigError(
            f"train.batch_size is {train.batch_size}, less than the {world_size} workers that"
            " share each batch: make it larger, or use fewer workers"
        )
    info = inspect_data(config, algo_needs)
    dtype = {"float32": torch.float32, "float64": torch.float64}[train.dtype]

    def read(layout: Layout) -> DemoStore:
        # A validation split of fewer demos than workers is small: all hold it.
        shard = config.ray.data_placement == "shard" and (
            layout is info.train or len(layout.demos) >= world_size
        )
        return DemoStore.read(layout, dtype, (rank, world_size) if shard else None)

    train_store = read(info.train)
    obs_stats, action_stats = _statistics(config, train_store, BOUNDED_ACTIONS in algo_needs)

    def serve(store: DemoStore, sampler_for: Callable[[SequenceDataset], Sampler]) -> Loader:
        widths = store.layout.columns["actions"].widths
        normalize_actions(store.columns["actions"], action_stats, widths)
        dataset = SequenceDataset(
            _placed(store, device, config),
            seq_length=train.seq_length,
            frame_stack=train.frame_stack,
            pad_seq_length=train.pad_seq_length,
            pad_frame_stack=train.pad_frame_stack,
            goal_mode=train.goal_mode,
            load_next_obs=train.hdf5_load_next_obs or NEXT_OBS in algo_needs,
        )
        placement = Placement(dataset) if store.is_shard else None
        return Loader(dataset, sampler_for(dataset), rank, world_size, device, placement)

    valid_loader = None
    train_loader = serve(train_store, lambda dataset: _train_sampler(config, dataset))
    if info.valid is not None:
        valid_loader = serve(
            read(info.valid),
            lambda dataset: ValidationSampler(
                int(dataset.layout_sizes.sum()),
                train.batch_size,
                train.seed,
                config.experiment.validation_epoch_every_n_steps,
            ),
        )
    return TrainData(train_loader, valid_loader, obs_stats, action_stats, info)


def _train_sampler(config: BaseConfig, dataset: SequenceDataset) -> EpochSampler:
    ends = np.cumsum(dataset.store.layout.source_sizes)[:-1]
    sizes = [int(part.sum()) for part in np.split(dataset.layout_sizes, ends)]
    weights = None
    if len(sizes) > 1:
        weights = [float(entry.get("weight", 1.0)) for entry in dataset_entries(config)]
        if config.train.normalize_weights_by_ds_size:
            weights = [weight / size for weight, size in zip(weights, sizes, strict=True)]
    return EpochSampler(
        sizes,
        config.train.batch_size,
        config.train.seed,
        config.experiment.epoch_every_n_steps,
        weights,
    )


def _statistics(
    config: BaseConfig, store: DemoStore, bounded_actions: bool
) -> tuple[Stats | None, Stats]:
    """Statistics over all training demos, which a shard reads once more, piece by piece."""
    layout = store.layout
    dtype = numpy_dtype(store.columns["actions"].dtype)

    def of(key: str, modality: str = "low_dim") -> Moments:
        pieces = stream_column(layout, key, dtype) if store.is_shard else [store.columns[key]]
        return moments(pieces, modality)

    actions = layout.columns["actions"]
    widths = dict(zip(actions.parts, actions.widths, strict=True))
    found_actions = of("actions").split(widths)
    action_stats = action_normalization_stats(found_actions, config.train.action_config)
    if bounded_actions:
        for key, entry in action_stats.items():
            reach = greatest_magnitude(found_actions[key], entry)
            if reach > 1.0 + 1e-4:
                raise ConfigError(
                    f"{config.algo_name} learns actions in [-1, 1], but '{key}' reaches "
                    f"{reach:.4g}: set train.action_config['{key}'].normalization to 'min_max'"
                )
    if not config.train.hdf5_normalize_obs:
        return None, action_stats
    modalities = _modalities(config)
    found = {key: of(f"obs/{key}", modalities.get(key, "low_dim")) for key in config.all_obs_keys}
    return obs_normalization_stats(found), action_stats


def _placed(store: DemoStore, device: torch.device, config: BaseConfig) -> DemoStore:
    """The store on the device, if it fits."""
    if device.type != "cuda":
        return store
    free, _ = torch.cuda.mem_get_info(device)
    # Workers that share a GPU see the same free memory.
    if store.num_bytes > _MAX_GPU_SHARE * min(1.0, config.ray.gpus_per_worker or 1.0) * free:
        logger.warning(
            "the dataset (%.1f GB) does not fit on the GPU beside the training: it stays in main"
            " memory and batches are copied",
            store.num_bytes / 1e9,
        )
        return store
    return store.to(device)


def dataset_entries(config: BaseConfig) -> list[dict[str, Any]]:
    """``train.data`` as a list of entries, each with at least ``path``.

    Raises:
        ConfigError: it is neither a path nor a list of entries with paths.
    """
    data = config.train.data
    if isinstance(data, str | Path):
        return [{"path": str(data)}]
    if not isinstance(data, list | tuple) or not data:
        raise ConfigError(
            "train.data is not set: name a dataset (--dataset file.hdf5), or a list of entries"
            " with 'path'"
        )
    for entry in data:
        if not isinstance(entry, dict) or not entry.get("path"):
            raise ConfigError(f"train.data has an entry without 'path': {entry!r}")
    return [dict(entry) for entry in data]


def _sources(
    config: BaseConfig, entries: Sequence[dict[str, Any]], filter_name: str
) -> list[DemoSource]:
    """What to read of each entry; an entry's own filter key comes before the config's."""
    common = config.train[f"hdf5_{filter_name}"]
    return [
        DemoSource(entry["path"], entry.get(filter_name, common), entry.get("demo_limit"))
        for entry in entries
    ]


def _request(config: BaseConfig, algo_needs: frozenset[str]) -> ColumnRequest:
    train = config.train
    if "lang_emb" in config.all_obs_keys or not config.all_obs_keys:
        raise ConfigError(
            "observation.modalities names no observation of the dataset"
            if not config.all_obs_keys
            else "observation 'lang_emb' (language embeddings) is not supported: remove it from"
            " observation.modalities"
        )
    # The goal of a demo is its last next_obs.
    goal = {NEXT_OBS} if train.goal_mode is not None else set()
    return ColumnRequest(
        obs_keys=tuple(config.all_obs_keys),
        action_keys=tuple(train.action_keys),
        dataset_keys=tuple(train.dataset_keys),
        load_next_obs=bool(train.hdf5_load_next_obs),
        needs=(algo_needs - {BOUNDED_ACTIONS}) | goal,
    )


def _modalities(config: BaseConfig) -> dict[str, str]:
    """The modality of each observation key of all parts."""
    modalities: dict[str, str] = {}
    for _, groups in sections_named(config.observation, "modalities"):
        for group in groups.values():
            modalities |= modalities_of(group)
    return modalities


def environments(config: BaseConfig, entries: Sequence[dict[str, Any]]) -> list[EvalEnv]:
    """Environments to evaluate in: those of the datasets, as the config changes them.

    ``experiment.env_meta_update_dict`` is merged into each. ``experiment.env`` replaces them all by
    one of that name, with the first dataset's settings; ``experiment.additional_envs`` adds more of
    the same kind.

    Args:
        config: section ``experiment`` is read.
        entries: of ``train.data``.

    Returns:
        One for each dataset that says where it was recorded. Its key is the entry's ``key``, else
        the environment's name, else (where two datasets share one) the file's name. (robomimic
        always takes the file's name, and gives additional environments the same.)

    Raises:
        DatasetError: a file cannot be read.
        ConfigError: two environments have the same key.
    """
    experiment = config.experiment
    metas = [read_metadata(entry["path"]).env_meta for entry in entries]
    if experiment.env is not None:
        # type 2 is robomimic's number for gymnasium, which a file without env_args is taken for
        first = {"type": 2, "env_kwargs": {}, **metas[0], "env_name": experiment.env}
        entries, metas = entries[:1], [first]
    metas = [_merged(meta, experiment.env_meta_update_dict) if meta else meta for meta in metas]
    names = [str(meta.get("env_name")) for meta in metas]
    envs = []
    for i, (entry, meta) in enumerate(zip(entries, metas, strict=True)):
        if not meta:
            continue
        stem = Path(entry["path"]).stem
        key = entry.get("key") or (names[i] if names.count(names[i]) == 1 else stem)
        envs.append(EvalEnv(str(key), meta, bool(entry.get("eval", True))))
        if i == 0 and envs[0].evaluate:
            for name in experiment.additional_envs or ():
                envs.append(EvalEnv(name, {**meta, "env_name": name}, True))
    keys = [env.key for env in envs]
    if repeated := sorted({key for key in keys if keys.count(key) > 1}):
        raise ConfigError(
            f"two evaluation environments are called '{repeated[0]}': give the entries of"
            " train.data a 'key' each, and name no environment twice in experiment.additional_envs"
        )
    return envs


def _merged(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``update`` put over it, dict by dict; neither is changed."""
    merged = dict(base)
    for key, value in update.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = _merged(old, value)
        merged[key] = value
    return merged
