"""robomimic's `python_utils`: dicts, and arguments of constructors."""

import inspect
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import numpy.typing as npt

from raymimic import macros

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]


def get_class_init_kwargs(cls: type) -> list[str]:
    """Returns the names of the arguments of a class's constructor."""
    return list(inspect.signature(cls).parameters)


def extract_subset_dict(
    dic: Mapping[str, Any], keys: Iterable[str], copy: bool = False
) -> dict[str, Any]:
    """Returns the entries of some keys, where there are such; deep copies of them if wanted."""
    subset = {key: dic[key] for key in keys if key in dic}
    return deepcopy(subset) if copy else subset


def extract_class_init_kwargs_from_dict(
    cls: type, dic: Mapping[str, Any], copy: bool = False, verbose: bool = False
) -> dict[str, Any]:
    """Returns the entries that a class's constructor takes.

    Args:
        cls: the class.
        dic: may hold further entries, and lack some.
        copy: take deep copies.
        verbose: log the others, as does `raymimic.macros.DEBUG`.
    """
    known = get_class_init_kwargs(cls)
    if verbose or macros.DEBUG:
        unknown = [key for key in dic if key not in known]
        missing = [key for key in known if key not in dic]
        logger.warning(
            "%s takes no %s, and is not given %s", cls.__name__, unknown or "others", missing
        )
    return extract_subset_dict(dic, known, copy)


def deep_update(d: dict[str, Any], u: Mapping[str, Any]) -> dict[str, Any]:
    """Puts the entries of `u` into `d`, those of nested dicts one by one, and returns `d`."""
    for key, value in u.items():
        d[key] = deep_update(d.get(key, {}), value) if isinstance(value, Mapping) else value
    return d


def action_dict_to_vector(
    action_dict: Mapping[str, Array], action_keys: Sequence[str] | None = None
) -> Array:
    """Puts the parts of an action `[..., D]` side by side, in the order of `action_keys`."""
    keys = list(action_dict) if action_keys is None else action_keys
    return np.concatenate([action_dict[key] for key in keys], axis=-1)


def vector_to_action_dict(
    action: Array, action_shapes: Mapping[str, Sequence[int]], action_keys: Sequence[str]
) -> dict[str, Array]:
    """Undoes `action_dict_to_vector`.

    Args:
        action: `[..., D]`.
        action_shapes: shape of each part.
        action_keys: the parts in their order.
    """
    parts, start = {}, 0
    for key in action_keys:
        shape = tuple(action_shapes[key])
        stop = start + math.prod(shape)
        parts[key] = action[..., start:stop].reshape(*action.shape[:-1], *shape)
        start = stop
    return parts
