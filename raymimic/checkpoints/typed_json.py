"""Makes dataclasses of JSON that may come from anywhere, and checks the type of each value."""

import json
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import cache
from typing import Any, TypeVar, get_type_hints

from raymimic.tracking.episode_rows import EpisodeRow, are_episodes

T = TypeVar("T")


class UnknownFieldError(Exception):
    """A key that this version does not know."""


def known_keys(kind: type, value: Any) -> dict[str, Any]:
    """Returns a JSON object all of whose keys are fields of a dataclass.

    Raises:
        TypeError: it is no object.
        UnknownFieldError: it has another key.
    """
    if not isinstance(value, dict):
        raise TypeError(f"{json.dumps(value)[:40]} stands where an object is expected")
    names = {f.name for f in fields(kind)}
    if unknown := sorted(value.keys() - names):
        raise UnknownFieldError(f"has the key '{unknown[0]}'")
    return value


def from_json(kind: type[T], value: Any) -> T:
    """Makes a dataclass of a JSON object.

    Args:
        kind: a dataclass whose fields have the annotations that `_CHECKS` knows.
        value: the object.

    Raises:
        KeyError: a field without a default is missing.
        TypeError: a value has another type than its field.
        UnknownFieldError: there is a key that is no field.
    """
    values = known_keys(kind, value)
    types = _types(kind)  # type: ignore[arg-type]
    for f in fields(kind):  # type: ignore[arg-type]
        if f.name not in values:
            if f.default is MISSING and f.default_factory is MISSING:
                raise KeyError(f.name)
        elif not _CHECKS[types[f.name]](values[f.name]):
            raise TypeError(f"'{f.name}' is {json.dumps(values[f.name])[:40]}")
    return kind(**values)


@cache
def _types(kind: type) -> dict[str, Any]:
    """Returns the types of a dataclass's fields, whose annotations may be kept as texts."""
    return get_type_hints(kind)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_dict_of(value: Any, is_item: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(is_item, value.values()))


def _is_list_of(value: Any, is_item: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(is_item, value))


# By a field's annotation.
_CHECKS: dict[Any, Callable[[Any], bool]] = {
    int: lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 0,
    str: lambda v: isinstance(v, str),
    bool: lambda v: isinstance(v, bool),
    float: _is_number,
    str | None: lambda v: v is None or isinstance(v, str),
    float | None: lambda v: v is None or _is_number(v),
    list[str]: lambda v: _is_list_of(v, lambda item: isinstance(item, str)),
    list[float] | None: lambda v: v is None or _is_list_of(v, _is_number),
    dict[str, float]: lambda v: _is_dict_of(v, _is_number),
    dict[str, list[float]]: lambda v: _is_dict_of(v, lambda item: _is_list_of(item, _is_number)),
    dict[str, list[EpisodeRow]]: are_episodes,
}
