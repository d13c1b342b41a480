"""The data and the kept checkpoints of a training, as its trackers get them."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from raymimic import storage
from raymimic.algo import algo_class
from raymimic.algo.rollout_policy import can_act
from raymimic.checkpoints.content import CheckpointContent
from raymimic.checkpoints.digests import sha256_of
from raymimic.checkpoints.policy import config_from_checkpoint
from raymimic.checkpoints.records import KeptCheckpoint
from raymimic.config import BaseConfig
from raymimic.credentials import masked
from raymimic.data.columns import Layout, read_columns
from raymimic.data.training_data import DataInfo, dataset_entries
from raymimic.envs.fit import PolicyInterface
from raymimic.errors import RaymimicError
from raymimic.tracking.run_contents import DatasetUse, KeptModel, ModelInterface, TensorInfo
from raymimic.tracking.tracker import TrackerGroup

# Numbers of an example; MLflow keeps some 25 bytes of text for each, and with each model.
_LARGEST_EXAMPLE = 100_000


def dataset_uses(config: BaseConfig, data: DataInfo) -> list[DatasetUse]:
    """The data of a training: each file's demos to train on, then those to validate on."""
    return [*_uses(config, data, "training"), *_uses(config, data, "validation")]


def _uses(
    config: BaseConfig, data: DataInfo, context: Literal["training", "validation"]
) -> Iterator[DatasetUse]:
    layout = data.train if context == "training" else data.valid
    if layout is None:
        return
    key_name = "filter_key" if context == "training" else "validation_filter_key"
    columns = _tensors(layout, config.train.dtype)
    ends = np.cumsum(layout.source_sizes)
    digests = data.digest.split(",")
    for entry, digest, size, end in zip(
        dataset_entries(config), digests, layout.source_sizes, ends, strict=True
    ):
        demos = layout.demos[end - size : end]
        key = entry.get(key_name, config.train[f"hdf5_{key_name}"])
        path = masked(entry["path"])
        content = " ".join([digest, str(key), *(demo.name for demo in demos)])
        name = Path(path).name[:400]
        yield DatasetUse(
            name=name if key is None else f"{name} [{str(key)[:80]}]",
            digest=hashlib.sha256(content.encode()).hexdigest()[:12],
            source=path,
            context=context,
            features=tuple(tensor for tensor in columns if tensor.name.startswith("obs/")),
            targets=tuple(tensor for tensor in columns if not tensor.name.startswith("obs/")),
            sizes={"num_rows": sum(demo.length for demo in demos), "num_demos": len(demos)},
        )


def _tensors(layout: Layout, dtype: str) -> list[TensorInfo]:
    return [
        TensorInfo(name, "uint8" if column.image else dtype, tuple(map(int, column.shape)))
        for name, column in layout.columns.items()
    ]


def model_interface(config: BaseConfig, data: DataInfo) -> ModelInterface | None:
    """The inputs and outputs of the policy that a config describes, with an example of the data.

    There is no example of large images.

    Returns:
        None for an algorithm that does not act.
    """
    if not can_act(algo_class(config.algo_name, config)):
        return None
    policy = PolicyInterface.of(config, data.shape_meta)
    dtype = config.train.dtype
    inputs, example = [], {}
    for prefix, shapes in (("", policy.obs), ("goal/", policy.goals)):
        for key, shape in shapes.items():
            column = data.train.columns.get(f"obs/{key}")
            kind = "uint8" if column is not None and column.image else dtype
            inputs.append(TensorInfo(f"{prefix}{key}", kind, tuple(shape)))
            example[f"{prefix}{key}"] = _first_row(data.train, f"obs/{key}", shape, kind)
    if sum(math.prod(tensor.shape) for tensor in inputs) > _LARGEST_EXAMPLE:
        example = {}
    output = TensorInfo("", dtype, (policy.action_dim,))
    return ModelInterface(config.algo_name, tuple(inputs), (output,), example)


def model_of(path: Path, data: DataInfo, imports: Sequence[str] = ()) -> KeptModel | None:
    """The model of one checkpoint.

    Args:
        path: local file.
        data: its data.
        imports: the user's own modules, which are imported already.

    Returns:
        None for an algorithm that does not act.

    Raises:
        CheckpointError: the checkpoint cannot be read.
    """
    config, ckpt = config_from_checkpoint(ckpt_path=str(path), imports=imports)
    interface, sha256 = model_interface(config, data), sha256_of(str(path))
    if interface is None or sha256 is None:
        return None
    content = CheckpointContent.from_dict(ckpt)
    step = content.raymimic.step if content.raymimic else None
    return KeptModel(path, content.epoch, step or 0, sha256, interface)


def _first_row(layout: Layout, key: str, shape: Sequence[int], dtype: str) -> list[Any]:
    """The first row `[1, *shape]` of a column; zeros where it cannot be read any more."""
    rows = np.zeros((1, *shape), dtype)
    try:
        columns = {key: layout.columns[key]}
        found = read_columns(layout.demos[:1], columns, np.float64)[key][:1]
        rows = found.reshape(rows.shape).astype(dtype)
    except (KeyError, OSError, RaymimicError, ValueError):
        pass
    values: list[Any] = rows.tolist()
    return values


class KeptModels:
    """Gives the kept checkpoints of a training to its trackers, each once.

    Args:
        config: of the training.
        data: its data.
        tracker: gets the models.
    """

    def __init__(self, config: BaseConfig, data: DataInfo, tracker: TrackerGroup) -> None:
        self._config, self._data, self._tracker = config, data, tracker
        self._interface: ModelInterface | None = None
        self._given: set[str] = set()
        self._listed: Mapping[str, Sequence[str]] = {}
        self.acts = can_act(algo_class(config.algo_name, config))

    def update(self, kept: Sequence[KeptCheckpoint], steps: Mapping[int, int]) -> None:
        """Gives the new ones, and tells which are still kept.

        Args:
            kept: all that are kept now. The file of one may be gone already.
            steps: gradient steps by epoch.
        """
        if not self._tracker.keeps_models or not self.acts:
            return
        for entry in kept:
            if entry.sha256 in self._given:
                continue
            if self._interface is None:
                self._interface = model_interface(self._config, self._data)
            assert self._interface is not None
            try:
                with storage.local_copy(entry.path) as file:
                    if not file.exists():
                        continue
                    step = steps.get(entry.epoch, 0)
                    self._tracker.log_model(
                        KeptModel(file, entry.epoch, step, entry.sha256, self._interface)
                    )
            except FileNotFoundError:
                continue
            self._given.add(entry.sha256)
        listed = {entry.sha256: entry.reasons for entry in kept}
        if listed != self._listed:
            self._listed = listed
            self._tracker.keep_models(listed)
