"""Everything that a training takes from its data: loaders, statistics, shapes, environments."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from raymimic.config.base_config import BaseConfig
from raymimic.data.cache.build import Say
from raymimic.data.cache.read import DemoCache
from raymimic.data.cache.room import NoCacheError
from raymimic.data.columns import (
    Column,
    ColumnRequest,
    DemoRef,
    DemoSource,
    Layout,
    check_memory,
    numpy_dtype,
)
from raymimic.data.convert.cached import trainable_file
from raymimic.data.environments import EvalEnv, environments
from raymimic.data.hdf5 import MislistedObservationError, MissingObservationError, open_dataset
from raymimic.data.language import Language, given_by
from raymimic.data.layout import scan
from raymimic.data.loader import Loader, ShardIndex
from raymimic.data.memory import workers_here
from raymimic.data.metadata import content_digest, is_of_robosuite
from raymimic.data.observation_keys import explanation, relisting
from raymimic.data.placement import Placement, gpu_room, place
from raymimic.data.reads import BOUNDED_ACTIONS, NEXT_ACTIONS, NEXT_OBS, OBS, PAD_MASK, Reads
from raymimic.data.rotations import as_played
from raymimic.data.sampler import EpochSampler, Sampler, ValidationSampler
from raymimic.data.sequence import SequenceDataset
from raymimic.data.split import hold_out
from raymimic.data.stats import (
    Moments,
    Stats,
    action_normalization_stats,
    greatest_magnitude,
    moments,
    obs_normalization_stats,
    scaling_of,
    stream_column,
)
from raymimic.data.store import DemoStore, owned_demos
from raymimic.errors import ConfigError, DatasetError, printable
from raymimic.observations.modality import Modality, modality_named

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]

_MOST_NAMES = 10
# Of statistics in a checkpoint; readers refuse files of more than ten million (`torch_file`).
_MOST_OBJECTS = 9_000_000
# How far beyond 1 an action may be that was meant to be 1.
ROUNDING = 1e-4


@dataclass(frozen=True)
class DataInfo:
    """A training's data as they are known before any of them is read.

    Attributes:
        shape_meta: see `raymimic.data.layout.shape_metadata`.
        eval_envs: see `environments`.
        train: demos to train on.
        valid: demos to validate on, if `experiment.validate`.
        paths: files or URIs in robomimic's format, one for each entry of `train.data`.
        split: a line about the demos that `train.validation_fraction` held out; empty without it.
        language: embeddings of instructions.
    """

    shape_meta: dict[str, Any]
    eval_envs: list[EvalEnv]
    train: Layout
    valid: Layout | None
    paths: tuple[str, ...]
    split: str = ""
    language: Language = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """Digest of the files' content, computed when asked for; several joined by commas.

        Files that links and virtual datasets lead into belong to it.
        """
        valid = self.train if self.valid is None else self.valid
        linked = map(frozenset.union, self.train.linked, valid.linked)
        return ",".join(map(content_digest, self.paths, linked))


@dataclass(frozen=True)
class TrainData:
    """Everything a training takes from its data.

    Attributes:
        train: training batches.
        valid: validation batches, if `experiment.validate`.
        obs_normalization_stats: by observation key, if `train.hdf5_normalize_obs`. Batches come
            as they are; the algorithm normalises them.
        action_normalization_stats: by action key. The batches' actions are normalised already.
        action_range: least and greatest value of each component of the training actions, as they
            are played.
        info: shapes, environments, digest.
        out_of_reach: a sentence for each action key that leaves [-1, 1] after normalisation, for
            algorithms with `Algo.bounded_actions`.
        place: a line that says where the data lie.
    """

    train: Loader
    valid: Loader | None
    obs_normalization_stats: Stats | None
    action_normalization_stats: Stats
    action_range: tuple[Array, Array]
    info: DataInfo
    out_of_reach: list[str]
    place: str = ""

    @property
    def shape_meta(self) -> dict[str, Any]:
        """See `raymimic.data.layout.shape_metadata`."""
        return self.info.shape_meta

    @property
    def eval_envs(self) -> list[EvalEnv]:
        """See `environments`."""
        return self.info.eval_envs

    @property
    def digest(self) -> str:
        """Digest of the files' content."""
        return self.info.digest


def settle_depth(config: BaseConfig) -> None:
    """Sets `train.cut_depth` of a config that leaves it to the data.

    It becomes false if robosuite recorded one of the datasets, whose depth is in metres. (As in
    robomimic from 0.4 on, where such a dataset decides for all: `utils/env_utils.py`,
    `set_env_specific_obs_processing`.)

    Args:
        config: is changed.

    Raises:
        ConfigError: `train.data` cannot be understood.
        DatasetError: a dataset of another format cannot be read.
    """
    if not config.leaves_depth_to_data:
        return
    files = [entry["file"] for entry in _trainable_entries(config)]
    with config.values_unlocked():
        config.train.cut_depth = not any(_of_robosuite(config, file) for file in files)


def _of_robosuite(config: BaseConfig, file: str) -> bool:
    with suppress(DatasetError), open_dataset(file, config.train.allow_links) as reader:
        return is_of_robosuite(reader)
    return False  # `inspect_data` complains of the file


def inspect_data(config: BaseConfig, reads: Reads, language: Language | None = None) -> DataInfo:
    """Checks the data of a training without reading it.

    All errors but those about values (NaN) are raised here, so that a driver reports them before
    it starts any worker.

    Args:
        config: sections `train`, `experiment` and `observation` are read.
        reads: `Algo.reads` of the algorithm.
        language: embeddings of the instructions of `train.data`.

    Raises:
        DatasetError: see `raymimic.data.layout`.
        ConfigError: `train.data` cannot be understood, or the algorithm reads steps that
            `train.seq_length` and `train.frame_stack` leave out.
    """
    _check_windows(config, reads)
    entries = _trainable_entries(config)
    request, language = column_request(config, reads), language or {}
    train = _scanned(config, _sources(config, entries, "filter_key", language), request)
    _check_rotations(config, train)
    if config.train.hdf5_normalize_obs:
        _check_statistics(train.shape_metadata(config.all_modalities)["all_shapes"])
    valid, split = None, ""
    if config.experiment.validate and config.train.validation_fraction is not None:
        train, valid = hold_out(train, config.train.validation_fraction, config.train.seed)
        split = _split_line(train, valid, config.train.seed)
    elif config.experiment.validate:
        sources = _sources(config, entries, "validation_filter_key", language)
        valid = _scanned(config, sources, request)
        _check_split(entries, train, valid)
    return DataInfo(
        shape_meta=train.shape_metadata(config.all_modalities),
        eval_envs=environments(config, entries),
        train=train,
        valid=valid,
        paths=tuple(entry["file"] for entry in entries),
        split=split,
        language=language,
    )


def _scanned(config: BaseConfig, sources: Sequence[DemoSource], request: ColumnRequest) -> Layout:
    """As `scan`, with the argument that lists observations as the file has them."""
    try:
        return scan(sources, request)
    except MissingObservationError as error:
        raise DatasetError(f"{error}{explanation(config, error.known)}") from error
    except MislistedObservationError as error:
        raise DatasetError(f"{error}{relisting(config, error.key, error.fits)}") from error


def _check_rotations(config: BaseConfig, layout: Layout) -> None:
    """Makes sure that the rotations that policies convert have six numbers.

    Raises:
        DatasetError: one has not.
    """
    actions = layout.columns["actions"]
    for key, width in zip(actions.parts, actions.widths, strict=True):
        if key in config.converted_actions and width != 6:
            raise DatasetError(
                f"dataset '{layout.demos[0].path}': '{key}' has {width} components, but "
                f"train.action_config['{key}'].format is 'rot_6d', which has 6: correct "
                "train.action_keys, or leave 'format' out"
            )


def _check_statistics(shapes: Mapping[str, Sequence[int]]) -> None:
    """Makes sure that checkpoints can hold the statistics of observations, number by number.

    Args:
        shapes: of each observation, as networks see it.

    Raises:
        ConfigError: there are so many that no reader would take the checkpoint.
    """
    numbers = {key: 2 * math.prod(shape) for key, shape in shapes.items()}
    # Each of the innermost lists is a few objects besides its numbers.
    objects = sum(n + 6 * (n // max(1, shapes[key][-1])) + n // 100 for key, n in numbers.items())
    if objects > _MOST_OBJECTS:
        largest = max(numbers, key=lambda key: numbers[key])
        raise ConfigError(
            "'train.hdf5_normalize_obs' is true, and the statistics of these observations are "
            f"{sum(numbers.values()):,} numbers ('{largest}' alone has {numbers[largest]:,}), more "
            "than a checkpoint can hold: set it to false, or make the images smaller"
        )


def _split_line(train: Layout, valid: Layout, seed: int) -> str:
    """Names the demos that were held out."""
    total, held = len(train.demos) + len(valid.demos), [demo.name for demo in valid.demos]
    more = f" and {len(held) - _MOST_NAMES} more" if len(held) > _MOST_NAMES else ""
    return printable(
        f"validating on {len(held)} of {total} demos, drawn by seed {seed}: "
        f"{', '.join(held[:_MOST_NAMES])}{more}"
    )


def _check_windows(config: BaseConfig, reads: Reads) -> None:
    """Makes sure that the steps an algorithm reads are among those of a sample."""
    train = config.train
    if reads.span.stop > train.seq_length:
        raise ConfigError(
            f"{config.algo_name} reads {reads.span.stop} steps, but 'train.seq_length' is"
            f" {train.seq_length}: raise it to {reads.span.stop}"
        )
    if reads.obs is not None and reads.obs.start > 1 - train.frame_stack:
        seen = 1 - reads.obs.start
        raise ConfigError(
            f"'train.frame_stack' is {train.frame_stack}, but {config.algo_name} sees"
            f" {'one observation' if seen == 1 else f'{seen} observations'} at a time: set it to"
            f" {seen}"
        )
    if reads.span.start < 1 - train.frame_stack:
        raise ConfigError(
            f"{config.algo_name} reads {-reads.span.start} steps before the present one, but"
            f" 'train.frame_stack' is {train.frame_stack}: set it to {1 - reads.span.start}"
        )


def _check_split(entries: Sequence[dict[str, Any]], train: Layout, valid: Layout) -> None:
    """Makes sure that training and validation have no demo in common, and the same columns."""
    seen = {(demo.path, demo.name) for demo in train.demos}
    for demo in valid.demos:
        if (demo.path, demo.name) in seen:
            raise DatasetError(
                f"dataset '{demo.path}': demo '{demo.name}' is among the training demos and"
                " the validation demos: choose filter keys that have none in common"
            )
    needed = [
        {key: (c.shape, c.image) for key, c in layout.columns.items() if c.needed}
        for layout in (train, valid)
    ]
    if needed[0] != needed[1]:
        raise DatasetError(
            f"dataset '{entries[0]['path']}': training demos and validation demos differ in"
            " their keys or shapes: convert the file so that all demos agree"
        )


def make_loaders(
    config: BaseConfig,
    reads: Reads,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    language: Language | None = None,
    say: Say = lambda text: None,
) -> TrainData:
    """Reads the data of a training and serves it in batches.

    `train.hdf5_cache_mode` says where the data lie, see `raymimic.data.placement.place`; batches
    are the same. Data in memory go to the GPU where they take at most half of its free memory.

    Args:
        config: sections `train`, `experiment`, `observation` and `ray.data_placement` are read.
        reads: `Algo.reads` of the algorithm.
        device: where batches go.
        rank: this worker, in `[0, world_size)`.
        world_size: number of workers.
        language: embeddings of the instructions of `train.data`.
        say: called with a line about the progress while the cache is built.

    Raises:
        DatasetError: see `raymimic.data.layout`.
        NoCacheError: neither disk nor memory takes the data.
        ConfigError: the batch is larger than the data or smaller than the number of workers, …
    """
    if config.train.batch_size < world_size:
        raise ConfigError(
            f"train.batch_size is {config.train.batch_size}, less than the {world_size} workers"
            " that share each batch: make it larger, or use fewer workers"
        )
    info = inspect_data(config, reads, language)
    part = _WorkersPart(config, reads, device, rank, world_size)
    placed, cache = part.place(info, say)
    store = part.read(info.train, cache, must_shard=True)
    found = _statistics(config, store, reads.bounded_actions)
    dataset = part.dataset(store, found)
    valid_loader = None
    train_loader = part.loader(dataset, _train_sampler(config, dataset))
    if info.valid is not None:
        dataset = part.dataset(part.read(info.valid, cache, must_shard=False), found)
        valid_loader = part.loader(dataset, _validation_sampler(config, dataset))
    return TrainData(
        train_loader,
        valid_loader,
        obs_normalization_stats=found.obs,
        action_normalization_stats=found.actions,
        action_range=found.action_range,
        info=info,
        out_of_reach=found.out_of_reach,
        place=placed.line,
    )


@dataclass(frozen=True)
class _WorkersPart:
    """Makes one worker's stores, datasets and loaders.

    Attributes:
        config: the training's.
        reads: the windows to gather.
        device: where batches go.
        rank: of the worker.
        world_size: number of workers.
    """

    config: BaseConfig
    reads: Reads
    device: torch.device
    rank: int
    world_size: int

    def read(self, layout: Layout, cache: DemoCache | None, must_shard: bool) -> DemoStore:
        """Reads the worker's demos.

        Args:
            layout: all demos.
            cache: columns in files.
            must_shard: whether to deal them out even if that leaves a worker with none, which is
                an error. A validation split of fewer demos than workers is small: all hold it.
        """
        return DemoStore.read(layout, self._dtype, self._shard(layout, must_shard), cache)

    @property
    def _dtype(self) -> torch.dtype:
        return {"float32": torch.float32, "float64": torch.float64}[self.config.train.dtype]

    def _shard(self, layout: Layout, must_shard: bool) -> tuple[int, int] | None:
        """`(rank, world_size)` where the demos are dealt out, see `read`."""
        shard = self.config.ray.data_placement == "shard" and (
            must_shard or len(layout.demos) >= self.world_size
        )
        return (self.rank, self.world_size) if shard else None

    def place(self, info: DataInfo, say: Say) -> tuple[Placement, DemoCache | None]:
        """Chooses where the worker's demos lie, before any is read, and opens the cache.

        Args:
            info: the data.
            say: called with a line about the progress while the cache is built.

        Raises:
            DatasetError: they do not fit into memory, or cannot be read into the cache.
            NoCacheError: they fit neither into the cache nor into memory.
        """
        parts, dtype, workers = self._parts(info), numpy_dtype(self._dtype), workers_here()
        room = gpu_room(self.device, self.config.ray.gpus_per_worker)
        placed = place(self.config.train.hdf5_cache_mode, parts, dtype, workers, room)
        rest = [
            (demos, {key: x for key, x in columns.items() if key not in placed.cached})
            for demos, columns in parts
        ]
        check_memory(rest, dtype, workers)
        if not placed.cached:
            return placed, None
        layouts = [info.train] if info.valid is None else [info.train, info.valid]
        try:
            window = len(self.reads.windows.get(OBS, self.reads.span))
            cache = DemoCache.open(layouts, placed.cached, dtype, say, window)
        except NoCacheError as error:
            try:
                check_memory(parts, dtype, workers)
            except DatasetError as too_large:
                raise NoCacheError(f"{error}; without a cache, {too_large}") from error
            line = f"{error}: the data are in memory instead"
            return Placement(frozenset(), line), None
        line = "; ".join(filter(None, (placed.line, cache.summary)))
        return replace(placed, line=line), cache

    def _parts(self, info: DataInfo) -> list[tuple[list[DemoRef], Mapping[str, Column]]]:
        """The worker's demos of training and validation, with their columns."""
        shares = [(info.train, self._shard(info.train, must_shard=True))]
        if info.valid is not None:
            shares.append((info.valid, self._shard(info.valid, must_shard=False)))
        return [
            ([layout.demos[i] for i in owned_demos(layout, shard)], layout.columns)
            for layout, shard in shares
        ]

    def dataset(self, store: DemoStore, found: _Statistics) -> SequenceDataset:
        """Samples of a store, on the device if it fits, whose actions come normalised."""
        train = self.config.train
        scaling = scaling_of(found.actions, store.columns["actions"][:0])
        if scaling is not None:
            store = replace(store, scaling={"actions": scaling})
        return SequenceDataset(
            _placed(store, self.device, self.config),
            seq_length=train.seq_length,
            frame_stack=train.frame_stack,
            pad_seq_length=train.pad_seq_length,
            pad_frame_stack=train.pad_frame_stack,
            goal_mode=train.goal_mode,
            reads=self.reads,
        )

    def loader(self, dataset: SequenceDataset, sampler: Sampler) -> Loader:
        """Serves the worker's part of each batch."""
        shard = ShardIndex(dataset) if dataset.store.is_shard else None
        return Loader(dataset, sampler, self.rank, self.world_size, self.device, shard)


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


def _validation_sampler(config: BaseConfig, dataset: SequenceDataset) -> ValidationSampler:
    return ValidationSampler(
        int(dataset.layout_sizes.sum()),
        config.train.batch_size,
        config.train.seed,
        config.experiment.validation_epoch_every_n_steps,
    )


class _Statistics(NamedTuple):
    """Statistics of the training demos.

    Attributes:
        obs: by observation key, if observations are normalised.
        actions: by action key.
        action_range: least and greatest value of each component, as they are played.
        out_of_reach: warnings for an algorithm with bounded actions.
    """

    obs: Stats | None
    actions: Stats
    action_range: tuple[Array, Array]
    out_of_reach: list[str]


def _statistics(config: BaseConfig, store: DemoStore, bounded_actions: bool) -> _Statistics:
    """Statistics over all training demos, which a shard reads once more, piece by piece.

    Raises:
        ConfigError: actions leave [-1, 1] although `bounded_actions`.
    """
    layout = store.layout
    dtype = numpy_dtype(store.columns["actions"].dtype)

    def of(key: str, modality: Modality | None = None) -> Moments:
        if store.is_shard:
            return moments(stream_column(layout, key, dtype, store.cache), modality)
        return moments([store.columns[key]], modality)

    actions = layout.columns["actions"]
    widths = dict(zip(actions.parts, actions.widths, strict=True))
    all_actions = of("actions")
    played = all_actions.low, all_actions.high
    if config.converted_actions:
        played = action_range(config, layout)
    found_actions = all_actions.split(widths)
    action_stats = action_normalization_stats(found_actions, config.train.action_config)
    reach = {k: greatest_magnitude(found_actions[k], entry) for k, entry in action_stats.items()}
    out_of_reach = _out_of_reach(config, reach)
    if bounded_actions and out_of_reach:
        raise ConfigError(out_of_reach[0])
    if not config.train.hdf5_normalize_obs:
        return _Statistics(None, action_stats, played, out_of_reach)
    found = {
        key: of(f"obs/{key}", modality_named(name, config.cuts_depth))
        for key, name in sorted(config.all_modalities.items())
    }
    obs_stats = obs_normalization_stats(found)
    return _Statistics(obs_stats, action_stats, played, out_of_reach)


def action_range(config: BaseConfig, layout: Layout) -> tuple[Array, Array]:
    """Least and greatest value of each component of the actions, as they are played.

    Args:
        config: section `train` is read.
        layout: the demos, whose actions are read.
    """
    actions = layout.columns["actions"]
    widths = dict(zip(actions.parts, actions.widths, strict=True))
    found = moments(
        torch.from_numpy(as_played(piece[:].numpy(), widths, config.converted_actions))
        for piece in stream_column(layout, "actions", np.float64)
    )
    return found.low, found.high


def _out_of_reach(config: BaseConfig, reach: Mapping[str, float]) -> list[str]:
    """Warns of each action key that leaves [-1, 1], which bounded actions never reach.

    Args:
        config: how actions are normalised.
        reach: greatest magnitude of each action key, normalised.
    """
    sentences = []
    for key, greatest in reach.items():
        if greatest > 1.0 + ROUNDING:
            method = (config.train.action_config.get(key) or {}).get("normalization")
            sentences.append(
                f"{config.algo_name} learns actions in [-1, 1], but '{key}' reaches {greatest:.4g}"
                f"{f' with {method} normalization' if method else ''}, which it cannot reach: set "
                f"train.action_config['{key}'].normalization to 'min_max'"
            )
    return sentences


def _placed(store: DemoStore, device: torch.device, config: BaseConfig) -> DemoStore:
    """The store on the device, if it fits there; files stay files."""
    if device.type != "cuda":
        return store
    if store.is_cached:
        return replace(store, pin=True)
    if store.num_bytes > gpu_room(device, config.ray.gpus_per_worker):
        logger.warning(
            "the dataset (%.1f GB) does not fit on the GPU beside the training: it stays in main"
            " memory and batches are copied",
            store.num_bytes / 1e9,
        )
        return replace(store, pin=True)
    return store.to(device)


def dataset_entries(config: BaseConfig) -> list[dict[str, Any]]:
    """`train.data` as a list of entries, each with at least `path`.

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


def _trainable_entries(config: BaseConfig) -> list[dict[str, Any]]:
    """As `dataset_entries`, each with its `file` in robomimic's format, see `trainable_file`."""
    entries = dataset_entries(config)
    return [{**entry, "file": trainable_file(str(entry["path"]))} for entry in entries]


def data_label(config: BaseConfig) -> str:
    """The training's data in a few words, such as `walker.hdf5 (train)` or `a.hdf5 and 2 more`."""
    first, *others = dataset_entries(config)
    label = PurePosixPath(first["path"]).name
    if key := first.get("filter_key", config.train.hdf5_filter_key):
        label += f" ({key})"
    return f"{label} and {len(others)} more" if others else label


def _sources(
    config: BaseConfig, entries: Sequence[dict[str, Any]], filter_name: str, language: Language
) -> list[DemoSource]:
    """The demos of each entry; an entry's own filter key comes before the config's."""
    common = config.train[f"hdf5_{filter_name}"]
    return [
        DemoSource(
            entry["file"],
            entry.get(filter_name, common),
            entry.get("demo_limit"),
            tuple(config.train.allow_links),
            given_by(config, entry, language),
        )
        for entry in entries
    ]


def instruction_sources(config: BaseConfig) -> list[tuple[str, DemoSource]]:
    """The instructions of `train.data`, each with the demos that it belongs to."""
    entries = _trainable_entries(config)
    sources = _sources(config, entries, "filter_key", {})
    return [(e["lang"], s) for e, s in zip(entries, sources, strict=True) if e.get("lang")]


def column_request(config: BaseConfig, reads: Reads) -> ColumnRequest:
    """The quantities that a training reads of each transition.

    Args:
        config: sections `train` and `observation` are read.
        reads: `Algo.reads` of the algorithm.

    Raises:
        ConfigError: the config names no observation.
    """
    train = config.train
    if not config.all_obs_keys:
        raise ConfigError("observation.modalities names no observation of the dataset")
    # The goal of a demo is its last next_obs.
    needs = reads.required | ({NEXT_OBS} if train.goal_mode is not None else set())
    groups = {OBS, NEXT_OBS, NEXT_ACTIONS}
    return ColumnRequest(
        obs_keys=tuple(config.all_obs_keys),
        action_keys=tuple(train.action_keys),
        dataset_keys=tuple(name for name in reads.windows if name not in groups),
        load_next_obs=reads.next_obs is not None,
        needs=needs - {BOUNDED_ACTIONS, PAD_MASK, NEXT_ACTIONS},
        modalities=config.all_modalities,
        cut_depth=config.cuts_depth,
    )
