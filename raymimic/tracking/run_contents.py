"""The data and the models of a run, as trackers get them and as a journal holds them.

Nothing here imports MLflow, torch or h5py. The checks at the end are for journals, which are
untrusted.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class TensorInfo:
    """The shape and type of one input or output.

    Attributes:
        name: its name; empty for the only output.
        dtype: numpy's name of its type.
        shape: of one row.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class DatasetUse:
    """One dataset, or a subset of its demos, and its use in a training.

    Attributes:
        name: file name, and the filter key in brackets if there is one.
        digest: of the content and the filter key, at most 36 characters.
        source: path or URI, without a password.
        context: whether the training learns from it or is validated on it.
        features: its observations.
        targets: its other columns.
        sizes: numbers of demos and samples.
    """

    name: str
    digest: str
    source: str
    context: Literal["training", "validation"]
    features: tuple[TensorInfo, ...]
    targets: tuple[TensorInfo, ...]
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class ModelInterface:
    """The inputs and outputs of a run's policy.

    Attributes:
        algo: name of the algorithm.
        inputs: observations, and goals as `goal/<key>`.
        outputs: the actions.
        example: one row `[1, *shape]` of each input, as nested lists; empty: there is none.
    """

    algo: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    example: Mapping[str, Any]


@dataclass(frozen=True)
class KeptModel:
    """A checkpoint that a run keeps.

    Attributes:
        path: local file.
        epoch: the epoch at whose end it was taken.
        step: gradient steps done by then.
        sha256: of its content, in hexadecimal.
        interface: of the policy.
    """

    path: Path
    epoch: int
    step: int
    sha256: str
    interface: ModelInterface


def are_tensors(value: Any) -> bool:
    """Whether a value is a list of `TensorInfo` as dictionaries."""
    return isinstance(value, list) and all(
        isinstance(entry, dict)
        and set(entry) == {"name", "dtype", "shape"}
        and isinstance(entry["name"], str)
        and entry["dtype"] in {"float32", "float64", "uint8", "uint16"}
        and isinstance(entry["shape"], list)
        and all(type(size) is int and 0 < size < 2**31 for size in entry["shape"])
        for entry in value
    )


def is_dataset_list(value: Any) -> bool:
    """Whether a value is a list of `DatasetUse` as dictionaries."""
    return isinstance(value, list) and all(map(_is_dataset, value))


def _is_dataset(entry: Any) -> bool:
    texts = {"name", "digest", "source", "context"}
    return (
        isinstance(entry, dict)
        and set(entry) == texts | {"features", "targets", "sizes"}
        and all(isinstance(entry[key], str) and "\0" not in entry[key] for key in texts)
        and 0 < len(entry["name"]) <= 500
        and 0 < len(entry["digest"]) <= 36
        and entry["context"] in {"training", "validation"}
        and are_tensors(entry["features"])
        and are_tensors(entry["targets"])
        and isinstance(entry["sizes"], dict)
        and all(type(size) is int for size in entry["sizes"].values())
    )


def is_sha256(value: Any) -> bool:
    """Whether a value is a SHA-256 in hexadecimal."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def is_kept(value: Any) -> bool:
    """Whether a value is a dictionary of reasons by SHA-256."""
    return isinstance(value, dict) and all(
        is_sha256(digest)
        and isinstance(reasons, list)
        and all(isinstance(reason, str) and "\0" not in reason for reason in reasons)
        for digest, reasons in value.items()
    )
