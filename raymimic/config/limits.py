"""Limits of a single setting: its type, its range, its choices.

A default shows the type of its key; the tables of `raymimic.config.sections.SettingRules` say the
rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from math import inf, isfinite, isnan
from typing import Any

from raymimic.config.base_config import BaseConfig
from raymimic.config.config import UnknownKeyError
from raymimic.config.sections import ABOVE_0, BELOW_1, AnyOf, Section
from raymimic.errors import ConfigError, did_you_mean

# Environments may take infinite numbers.
_ANY_NUMBER = "experiment.env_meta_update_dict"

_INT64 = 2**63


def type_problems(config: BaseConfig) -> list[str]:
    """Finds the values whose type is not their key's, one sentence each.

    NaN and infinite numbers are refused, unless the key's default is one. Settings of environments
    may hold any number.
    """
    cls = type(config)
    if mistakes := table_mistakes(cls):
        return list(mistakes)
    messages: dict[str, str] = {}
    defaults = default_leaves(cls)
    for path, default in defaults.items():
        try:
            value = config.get_path(path)
        except UnknownKeyError:
            continue  # this config lacks the section
        except ConfigError as error:  # a value where a section should be
            messages[path] = str(error)
            continue
        limits = limits_of(cls, path)
        example = default if limits.example is None else limits.example
        if default is not None and not _alike(default, example):
            example = default  # a subclass uses the key for something else
        if default is None and value == "" and isinstance(example, str):
            messages[path] = f"'{path}' is an empty text: give one, or null"
        if example is None or _alike(value, example):
            continue
        nullable = default is None or limits.nullable
        if value is None and nullable:
            continue
        null = " or null" if nullable else ""
        messages[path] = f"'{path}' is {shown(value)}: it must be {_kind(example)}{null}"
    for path, value in config.leaves():
        limitless = path.startswith(_ANY_NUMBER) or not _is_finite(defaults.get(path))
        reason = _unusable(path) or _unusable(value, limitless)
        if reason:
            messages.setdefault(path, f"{shown(path)} is {shown(value)}: {reason}")
    return list(messages.values())


def range_problems(config: BaseConfig) -> list[str]:
    """Finds the values outside their range or choices, one sentence each."""
    limits = ((path, value, limits_of(type(config), path)) for path, value in config.leaves())
    return [
        f"'{path}' is {shown(value)}: it must be {limit.in_words()}"
        for path, value, limit in limits
        if not limit.allow(value)
    ]


@dataclass(frozen=True)
class Limits:
    """Limits of one key.

    Attributes:
        range: least and greatest value, of a list those of each element; None: any.
        choices: all values that it may have; None: any.
        example: shows the type where the default does not; None: the default does.
        nullable: whether it may be null although the default is not.
    """

    range: tuple[float, float] | None
    choices: tuple[Any, ...] | None
    example: Any
    nullable: bool

    def allow(self, value: Any) -> bool:
        """Whether a value is one of the choices, and all its numbers are within the range."""
        if self.choices is not None and value not in self.choices:
            return False
        low, high = self.range or (-inf, inf)
        numbers = value if isinstance(value, list | tuple) else [value]
        return all(low <= x <= high for x in numbers if isinstance(x, int | float))

    def in_words(self) -> str:
        """Writes choices and range, such as `at least 0`; empty where all is allowed."""
        low, high = self.range or (-inf, inf)
        words = []
        if self.choices is not None:
            words.append(f"one of {', '.join(map(shown, self.choices))}")
        if -inf < low < high < inf and low != ABOVE_0:
            return " and ".join([*words, f"between {low:g} and {high:g}"])
        if high == BELOW_1:
            return " and ".join([*words, "greater than 0 and less than 1"])
        if low > -inf:
            words.append("greater than 0" if low == ABOVE_0 else f"at least {low:g}")
        if high < inf:
            words.append(f"at most {high:g}")
        return " and ".join(words)


@cache
def limits_of(cls: type[BaseConfig], path: str) -> Limits:
    """Returns the limits of a key; outer and derived classes override inner ones and bases."""

    def entry(table: str) -> Any:
        rows = _rows(cls, table)
        return next((value for pattern, value in rows if _matches(path, pattern)), None)

    return Limits(
        range=entry("RANGES"),
        choices=entry("CHOICES"),
        example=entry("EXAMPLES"),
        nullable=entry("NULLABLE") is not None,
    )


def perturbable(cls: type[BaseConfig]) -> list[str]:
    """Returns the keys that population based training may change, as dotted paths."""
    patterns = [pattern for pattern, _ in _rows(cls, "PERTURBABLE")]
    return [key for key in default_leaves(cls) if any(_matches(key, p) for p in patterns)]


@cache
def default_leaves(cls: type[BaseConfig] | type[Section]) -> Mapping[str, Any]:
    """Returns the defaults of all keys of a config's or section's class by their dotted paths."""
    return dict(cls().leaves(optional=True))


@cache
def _rows(cls: type[BaseConfig], table: str) -> list[tuple[str, Any]]:
    """Returns pairs of a table's key pattern and entry, in the order of precedence."""
    return [
        (path, value)
        for place in cls().places()
        for base in place.cls.__mro__
        for key, value in _entries(base.__dict__.get(table, {}))
        if (path := place.of(key)) is not None
    ]


def _matches(path: str, pattern: str) -> bool:
    return path == pattern or (("*" in pattern or "?" in pattern) and fnmatchcase(path, pattern))


def _entries(table: Any) -> Iterator[tuple[str, Any]]:
    yield from table.items() if isinstance(table, Mapping) else ((key, key) for key in table)


@cache
def table_mistakes(cls: type[BaseConfig]) -> list[str]:
    """Finds mistakes in the tables of a config class and of its sections, one sentence each."""
    classes = dict.fromkeys(place.cls for place in cls().places())
    return [mistake for holder in classes for mistake in _mistakes_in(holder)]


def _mistakes_in(cls: Any) -> Iterator[str]:
    # A subclass may lack keys of its bases; an abstract base cannot be made to look at its keys.
    whole = [b for b in cls.__mro__ if issubclass(b, Section) or hasattr(b, "ALGO_NAME")]
    keys = [key for base in whole for key in default_leaves(base)]
    for base in cls.__mro__:
        if base is BaseConfig:
            continue
        for table in ("RANGES", "CHOICES", "EXAMPLES", "NULLABLE", "PERTURBABLE"):
            content = base.__dict__.get(table, {})
            name = f"{base.__module__}.{base.__qualname__}.{table}"
            if isinstance(content, str) or not isinstance(content, Mapping | tuple | list):
                yield f"{name} is {shown(content)}: it must be a dict, or a tuple of keys"
                continue
            for path, entry in _entries(content):
                if not any(_matches(key, path) for key in keys):
                    yield f"{name} names '{path}'{did_you_mean(path, keys)}"
                elif table in ("RANGES", "CHOICES") and not isinstance(entry, list | tuple):
                    yield f"{name}['{path}'] is {shown(entry)}: it must be a tuple"
                elif table == "RANGES" and not (
                    len(entry) == 2
                    and all(isinstance(x, int | float) for x in entry)
                    and entry[0] <= entry[1]
                ):
                    yield f"{name}['{path}'] is {shown(entry)}: give (least, greatest)"


def _unusable(value: Any, limitless: bool = False) -> str | None:
    """Returns the reason why a value cannot stand in a config, at any depth; None: it can.

    Args:
        value: of a key.
        limitless: whether numbers may be NaN or infinite.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, str | os.PathLike):
        return _unwritable(os.fspath(value))
    if isinstance(value, int) and not -_INT64 < value < _INT64:
        return "whole numbers have at most 64 bits"
    if isinstance(value, float) and not limitless and not isfinite(value):
        return "it must be a finite number"
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        return next((reason for part in value if (reason := _unusable(part, limitless))), None)
    return None


def _unwritable(text: str | bytes) -> str | None:
    if isinstance(text, bytes):
        return "it must be a text"
    if "\0" in text:
        return "a text cannot hold the character NUL"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "it is not valid UTF-8"
    return None


def _is_finite(value: Any) -> bool:
    """Whether no number in a value is NaN or infinite."""
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or isfinite(value)


def _alike(value: Any, example: Any) -> bool:
    if isinstance(example, AnyOf):
        return any(_alike(value, option) for option in example)
    if isinstance(example, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(example, bool)
    if isinstance(example, float):
        return isinstance(value, int | float)
    if isinstance(example, str):
        return isinstance(value, str | os.PathLike)
    if isinstance(example, list | tuple):
        if not isinstance(value, list | tuple):
            return False
        return not example or all(_alike(element, example[0]) for element in value)
    if isinstance(example, Mapping):
        return isinstance(value, Mapping)
    return isinstance(value, type(example))


def _kind(example: Any) -> str:
    if isinstance(example, AnyOf):
        return " or ".join(_kind(option) for option in example)
    if isinstance(example, list | tuple):
        kinds = {bool: "truth values", int: "whole numbers", float: "numbers", str: "texts"}
        return f"a list of {kinds.get(type(example[0]), 'values')}" if example else "a list"
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return kinds.get(type(example), "a section of keys")


def shown(value: Any) -> str:
    """Writes a value as a user would, with JSON's words; shortens a long one."""
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    if isinstance(value, float) and not isfinite(value):
        return "NaN" if isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, int) and not -_INT64 < value < _INT64:
        return f"a number of {value.bit_length()} bits"
    text = " ".join(repr(value).split("\n"))  # of a section there are several lines
    return text if len(text) <= 200 else f"{text[:100]}…{text[-20:]}"
