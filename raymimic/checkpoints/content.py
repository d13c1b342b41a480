"""The content of a checkpoint: its keys, their types, and the structure that every reader checks.

A checkpoint is a dictionary of plain values and tensors. The keys are robomimic's; raymimic adds
the section `raymimic` with the state that a training goes on from. No other module spells a key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from raymimic.checkpoints.logs import LogPrefix
from raymimic.checkpoints.records import EpochRecord
from raymimic.checkpoints.typed_json import UnknownFieldError, from_json
from raymimic.errors import CheckpointError
from raymimic.storage import parse_json


@dataclass
class TrainingSection:
    """The section `raymimic` of a checkpoint: the state that a training goes on from.

    Attributes:
        version: of raymimic.
        imports: modules of the user's own that the training imported.
        step: gradient steps done.
        workers: how many trained together.
        arithmetic: the settings, beside seed and data, that change the last bits of the result.
        dataset_digest: digest of the training data.
        training_state: of the algorithm, beside its networks and optimizers.
        epochs: how much of `epochs.jsonl` belongs to the checkpoint, a `LogPrefix` as a dictionary.
        history: all epochs as JSON, in the layout of 0.1.0, which has no `epochs.jsonl`.
        checkpoints: the manifest as JSON, as it was at the commit; 0.1.0 has none.
        language: embeddings of instructions; None without any.
    """

    version: str = ""
    imports: list[str] = field(default_factory=list)
    step: int | None = None
    workers: int | None = None
    arithmetic: str | None = None
    dataset_digest: str | None = None
    training_state: dict[str, Any] | None = None
    epochs: dict[str, Any] | None = None
    history: str | None = None
    checkpoints: str | None = None
    language: dict[str, list[float]] | None = None

    @property
    def log_prefix(self) -> LogPrefix | None:
        """The part of `epochs.jsonl` that belongs to the checkpoint, if there is such a file."""
        return None if self.epochs is None else LogPrefix(**self.epochs)

    def history_records(self) -> list[EpochRecord]:
        """Returns the epochs that the checkpoint itself holds.

        Raises:
            CheckpointError: a clause that says why they are none.
        """
        try:
            return [from_json(EpochRecord, record) for record in json.loads(self.history or "[]")]
        except (KeyError, RecursionError, TypeError, UnknownFieldError, ValueError) as error:
            raise CheckpointError(f"its 'raymimic.history' is no list of epochs: {error!r}") from (
                error
            )


@dataclass
class CheckpointContent:
    """A checkpoint.

    Attributes:
        model: state of networks, optimizers and schedules, see `Algo.serialize`.
        algo_name: the algorithm.
        config: the config as JSON.
        shape_metadata: `ac_dim`, `all_shapes` and `all_obs_keys`.
        env_metadata: the environment that the data come from.
        obs_normalization_stats: `offset` and `scale` by key.
        action_normalization_stats: `offset` and `scale` by key.
        variable_state: `epoch` and the best scores so far.
        raymimic: the state that a training goes on from; `None` in checkpoints of robomimic.
    """

    model: Mapping[str, Any]
    algo_name: str
    config: str
    shape_metadata: Mapping[str, Any]
    env_metadata: Mapping[str, Any] | None = None
    obs_normalization_stats: Mapping[str, Any] | None = None
    action_normalization_stats: Mapping[str, Any] | None = None
    variable_state: Mapping[str, Any] | None = None
    raymimic: TrainingSection | None = None

    @classmethod
    def from_dict(cls, ckpt: Mapping[str, Any]) -> CheckpointContent:
        """Makes one of a checkpoint's dictionary; keys of no meaning to raymimic are left out.

        Args:
            ckpt: as a file holds it (see `check_content`), or a part of that with its config.
        """
        empty: dict[str, Any] = {"model": {}, "algo_name": "", "shape_metadata": {}}
        values = empty | {key: ckpt[key] for key in _keys(cls) if key in ckpt}
        section = values.get("raymimic")
        if section is not None:
            known = {key: section[key] for key in _keys(TrainingSection) if key in section}
            values["raymimic"] = TrainingSection(**known)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Returns the checkpoint's dictionary."""
        content = {key: getattr(self, key) for key in _keys(type(self))}
        for key in ("variable_state", "raymimic"):
            if content[key] is None:
                del content[key]
        if self.raymimic is not None:
            section = {key: getattr(self.raymimic, key) for key in _keys(TrainingSection)}
            content["raymimic"] = {k: v for k, v in section.items() if v is not None}
        return content

    @property
    def epoch(self) -> int:
        """The epoch at whose end it was taken; 0 where it does not say."""
        return int((self.variable_state or {}).get("epoch", 0))

    @property
    def best_valid_loss(self) -> float | None:
        """The best validation loss so far."""
        loss: float | None = (self.variable_state or {}).get("best_valid_loss")
        return loss

    @property
    def of_raymimic(self) -> bool:
        """Whether raymimic wrote it; robomimic's configs do not always describe the computation."""
        return self.raymimic is not None

    @property
    def imports(self) -> list[str]:
        """The modules that it names."""
        return [] if self.raymimic is None else self.raymimic.imports

    @property
    def language(self) -> Mapping[str, list[float]]:
        """The embedding of each instruction that the policy was trained on."""
        return (self.raymimic.language if self.raymimic else None) or {}

    @property
    def is_resumable(self) -> bool:
        """Whether a training can go on from it."""
        state, section = self.variable_state or {}, self.raymimic
        if section is None or "epoch" not in state or "best_valid_loss" not in state:
            return False
        needed = (section.step, section.arithmetic, section.dataset_digest, section.training_state)
        return None not in needed and (section.history, section.epochs) != (None, None)

    @property
    def training(self) -> TrainingSection:
        """The state that a training goes on from; only where `is_resumable`."""
        assert self.raymimic is not None
        return self.raymimic


def _keys(kind: type) -> list[str]:
    return [f.name for f in fields(kind)]


NEEDED = ("model", "algo_name", "config", "shape_metadata")

# Type of each value that is there, of a checkpoint and of its section `raymimic`.
_TYPES: dict[str, type | tuple[type, ...]] = {
    "model": dict,
    "algo_name": str,
    "config": str,
    "shape_metadata": dict,
    "env_metadata": (dict, type(None)),
    "obs_normalization_stats": (dict, type(None)),
    "action_normalization_stats": (dict, type(None)),
    "variable_state": (dict, type(None)),
    "raymimic": dict,
}
_SECTION_TYPES: dict[str, type | tuple[type, ...]] = {
    "version": str,
    "imports": list,
    "step": int,
    "workers": int,
    "arithmetic": str,
    "dataset_digest": str,
    "training_state": dict,
    "epochs": dict,
    "history": str,
    "checkpoints": str,
    "language": dict,
}
_ENV_TYPES: dict[str, type | tuple[type, ...]] = {
    "env_name": (str, type(None)),
    "type": (int, str),
    "env_kwargs": (dict, type(None)),
    "render": (dict, type(None)),
    "lang": (str, type(None)),
}
# Sizes of observations and actions; a picture has some ten million numbers at most.
_MAX_SIZE = 2**28


def check_content(ckpt: Any) -> None:
    """Makes sure that a checkpoint has the structure that raymimic and robomimic give it.

    Args:
        ckpt: content of a torch file, of robomimic 0.2 or later or of raymimic.

    Raises:
        CheckpointError: a clause that names the key and its fault.
    """
    for key in NEEDED:
        if not isinstance(ckpt, Mapping) or key not in ckpt:
            raise CheckpointError(
                f"a torch file, but no checkpoint of raymimic or robomimic: it has no '{key}'"
            )
    _check_types(ckpt, _TYPES)
    try:
        config = parse_json(ckpt["config"])
    except ValueError as error:
        raise CheckpointError(f"its 'config' is no JSON: {error}") from error
    needed = ("train", "experiment")
    if not isinstance(config, dict) or not all(isinstance(config.get(s), dict) for s in needed):
        raise CheckpointError("its 'config' is not one of raymimic or robomimic")
    shapes = _check_shapes(ckpt["shape_metadata"])
    _check_stats(ckpt.get("obs_normalization_stats"), "obs_normalization_stats", shapes)
    _check_stats(ckpt.get("action_normalization_stats"), "action_normalization_stats", {})
    _check_env(ckpt.get("env_metadata") or {})
    section = ckpt.get("raymimic", {})
    _check_types(section, _SECTION_TYPES, "raymimic.")
    if not all(isinstance(name, str) for name in section.get("imports", ())):
        raise CheckpointError("its 'raymimic.imports' is not a list of modules' names")
    _check_language(section.get("language", {}))
    if "epochs" in section:
        try:
            from_json(LogPrefix, section["epochs"])
        except (KeyError, TypeError, UnknownFieldError) as error:
            raise CheckpointError(f"its 'raymimic.epochs' is no length and SHA-256: {error}") from (
                error
            )
    epoch = (ckpt.get("variable_state") or {}).get("epoch", 0)
    if type(epoch) is not int or epoch < 0:
        raise CheckpointError(f"its 'variable_state.epoch' is {epoch!r}")


def _check_types(
    section: Mapping[str, Any], types: Mapping[str, type | tuple[type, ...]], prefix: str = ""
) -> None:
    for key, expected in types.items():
        if key in section and not isinstance(section[key], expected):
            kind = type(section[key]).__name__
            raise CheckpointError(f"its '{prefix}{key}' is a {kind}")


def _check_shapes(metadata: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    ac_dim, shapes = metadata.get("ac_dim"), metadata.get("all_shapes")
    if type(ac_dim) is not int or not 0 < ac_dim < _MAX_SIZE:
        raise CheckpointError(f"its 'shape_metadata.ac_dim' is {str(ac_dim)[:40]}")
    if not isinstance(shapes, dict):
        raise CheckpointError("its 'shape_metadata.all_shapes' is no dict of shapes")
    for key, shape in shapes.items():
        if (
            not isinstance(key, str)
            or not isinstance(shape, list | tuple)
            or not all(type(n) is int and 0 < n < _MAX_SIZE for n in shape)
            or math.prod(shape) >= _MAX_SIZE
        ):
            raise CheckpointError(
                f"its 'shape_metadata.all_shapes' says {str(shape)[:40]} of '{str(key)[:80]}'"
            )
    return {key: tuple(shape) for key, shape in shapes.items()}


def _check_stats(
    stats: Mapping[str, Any] | None, name: str, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Checks statistics: `offset` and `scale` of each key, `mean` and `std` before 0.5."""
    for key, entry in (stats or {}).items():
        where = f"'{name}' of '{str(key)[:80]}'"
        if not isinstance(entry, dict) or set(entry) not in ({"offset", "scale"}, {"mean", "std"}):
            raise CheckpointError(f"its {where} are not an 'offset' and a 'scale'")
        sizes = set()
        for part, values in entry.items():
            numbers = as_numbers(values)
            if numbers is None or not np.all(np.isfinite(numbers)):
                raise CheckpointError(f"its {where} have a '{part}' that is not made of numbers")
            if part in ("scale", "std") and not np.all(numbers):
                raise CheckpointError(f"its {where} have a '{part}' of 0")
            sizes.add(numbers.size)
        if len(sizes) > 1 or (key in shapes and sizes != {math.prod(shapes[key])}):
            raise CheckpointError(f"its {where} do not fit the shape of '{str(key)[:80]}'")


def as_numbers(values: Any) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """Statistics as float32; they are stored as nested lists, arrays or tensors.

    Returns:
        None for anything that is no rectangle of numbers.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    try:
        numbers = np.asarray(values)
    except (OverflowError, TypeError, ValueError):
        return None
    with np.errstate(over="ignore"):  # becomes infinite
        return numbers.astype(np.float32) if numbers.dtype.kind in "fiu" else None


def _check_language(language: Mapping[str, Any]) -> None:
    for sentence, embedding in language.items():
        numbers = as_numbers(embedding)
        if not isinstance(sentence, str) or numbers is None or numbers.ndim != 1:
            raise CheckpointError(
                f"its 'raymimic.language' has no embedding of '{str(sentence)[:80]}'"
            )
        if not np.all(np.isfinite(numbers)):
            raise CheckpointError(
                f"its 'raymimic.language' of '{sentence[:80]}' is not made of numbers"
            )


def _check_env(metadata: Mapping[str, Any]) -> None:
    _check_types(metadata, _ENV_TYPES, "env_metadata.")
    try:
        json.dumps(metadata)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"its 'env_metadata' is not made of plain values: {error}") from error


def plain(value: Any) -> Any:
    """Nested arrays and tuples as nested lists, which `weights_only` loading accepts."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value
