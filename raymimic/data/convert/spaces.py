"""gymnasium's spaces as Minari writes them: JSON with a `type`, and `subspaces` where they nest."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymimic.storage import parse_json

Space = Mapping[str, Any]

# Minari stores smaller arrays of bytes as they are.
_LEAST_IMAGE = 32
_IMAGE_DIMS = (2, 3)


def read_space(text: object) -> Space:
    """A space; an empty one if the text is none."""
    if not isinstance(text, str):
        return {}
    try:
        space = parse_json(text)
    except ValueError:
        return {}
    return space if isinstance(space, dict) else {}


def leaves(space: Space, prefix: str = "", index: str = "{}") -> dict[str, Space]:
    """The spaces that hold arrays, by their names joined by `/`; of no name where nothing nests.

    Args:
        space: of any kind.
        prefix: the name of the space.
        index: how the parts of a `Tuple` are called.
    """
    below = space.get("subspaces")
    if isinstance(below, list):
        below = {index.format(i): part for i, part in enumerate(below)}
    if not isinstance(below, Mapping):
        return {prefix: space}
    found: dict[str, Space] = {}
    for name, part in below.items():
        if isinstance(part, Mapping):
            found |= leaves(part, f"{prefix}/{name}" if prefix else str(name), index)
    return found


def shape_of(space: Space) -> tuple[int, ...] | None:
    """The shape of a space's arrays; None if it states none."""
    shape = space.get("shape")
    if not isinstance(shape, list) or not all(isinstance(n, int) and n >= 0 for n in shape):
        return None
    return tuple(shape)


def is_image(space: Space) -> bool:
    """Whether Minari stores a space's arrays as pictures, if it is told to encode pictures."""
    shape = shape_of(space)
    if space.get("type") != "Box" or space.get("dtype") != "uint8" or shape is None:
        return False
    if len(shape) not in _IMAGE_DIMS or min(shape[:2]) < _LEAST_IMAGE:
        return False
    return _bounds(space) == (0, 0, 255, 255)


def bounds_of(space: Space) -> str:
    """The range of a space's values in words; nothing where it is not bounded."""
    found = _bounds(space)
    if found is None or not np.isfinite(found).all():
        return ""
    return f"within {found[0]:g} to {found[3]:g}"


def _bounds(space: Space) -> tuple[float, float, float, float] | None:
    """Least and greatest lower bound, least and greatest upper bound; None without bounds."""
    try:
        low, high = (np.asarray(space.get(name), np.float64) for name in ("low", "high"))
        return float(low.min()), float(low.max()), float(high.min()), float(high.max())
    except (TypeError, ValueError, OverflowError):
        return None


def box(row: NDArray[Any]) -> dict[str, Any]:
    """The `Box` of arrays like one: bytes from 0 to 255, numbers without bounds.

    Args:
        row: one array.
    """
    low, high = (0, 255) if row.dtype == np.uint8 else (-np.inf, np.inf)
    if row.dtype.kind in "iu" and row.dtype != np.uint8:
        low, high = np.iinfo(row.dtype).min, np.iinfo(row.dtype).max
    dtype = row.dtype if row.dtype.kind in "iuf" else np.dtype(np.float32)
    return {
        "type": "Box",
        "dtype": str(dtype),
        "shape": list(row.shape),
        "low": np.full(row.shape, low).tolist(),
        "high": np.full(row.shape, high).tolist(),
    }


def nested(parts: Mapping[str, Space]) -> Space:
    """The space of which `leaves` gives these parts."""
    if set(parts) == {""}:
        return parts[""]
    groups: dict[str, dict[str, Space]] = {}
    for name, part in parts.items():
        first, _, rest = name.partition("/")
        groups.setdefault(first, {})[rest] = part
    return {"type": "Dict", "subspaces": {name: nested(below) for name, below in groups.items()}}
