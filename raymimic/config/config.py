"""Settings as a nested dictionary with dotted access and locks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from raymimic.errors import ConfigError, did_you_mean

C = TypeVar("C", bound="Config")


class UnknownKeyError(ConfigError, AttributeError):
    """A key that a locked config does not have.

    It is an `AttributeError` too, so that `hasattr(config, name)` works.
    """


def leaves(content: Mapping[str, Any], separator: str = ".") -> Iterator[tuple[str, Any]]:
    """Yields the path and value of each value in nested mappings; an empty one counts as a value.

    Args:
        content: nested mappings with string keys.
        separator: between the keys of a path.
    """
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            for path, leaf in leaves(value, separator):
                yield f"{key}{separator}{path}", leaf
        else:
            yield f"{key}", value


class Config(dict[str, Any]):
    """A dictionary whose keys are attributes and whose sections can be locked.

    While its keys are unlocked, reading an absent attribute starts a section, so
    that `config.train.batch_size = 100` needs no preparation. `lock_keys()` turns
    an absent key into an error that names the nearest known one; `lock()` freezes the
    values as well.

    Two kinds of section bend the key lock. A *free* one (`do_not_lock_keys()`, or any
    plain dict that is assigned) takes keys of any name, as do the sections below it. A section
    with `optional_keys` takes those keys besides the ones it has, and they read as their
    default while they are absent; neither `in`, `get` nor `dump` sees them before
    they are set.

    The interface is robomimic's (`robomimic/config/config.py`). Deviations: item
    assignment, deletion and in-place update obey the locks too, the scopes relock when an
    exception leaves them, `copy` is deep, and copies and pickles keep the locks.

    Args:
        *args: a mapping or pairs, as for `dict`; mappings in it become sections.
        **kwargs: further keys.

    Raises:
        ConfigError: from every change that a lock forbids.
    """

    __slots__ = (
        "_attach_to",
        "_free",
        "_keys_locked",
        "_locked",
        "_optional",
        "_origin",
        "_path",
    )

    _attach_to: tuple[Config, str] | None
    _free: bool
    _keys_locked: bool
    _locked: bool
    _optional: dict[str, Any]
    _origin: tuple[Any, str] | None
    _path: tuple[str, ...]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: D102
        self = super().__new__(cls)
        self._attach_to = None
        self._free = self._keys_locked = self._locked = False
        self._optional = {}
        self._origin = None
        self._path = ()
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        for key, value in dict(*args, **kwargs).items():
            plain = isinstance(value, Mapping) and not isinstance(value, Config)
            self[key] = Config(value) if plain else value

    # ---------------------------------------------------------------- locks

    @property
    def is_locked(self) -> bool:
        """Whether neither keys nor values may change."""
        return self._locked

    @property
    def is_key_locked(self) -> bool:
        """Whether no keys may be added."""
        return self._keys_locked

    @property
    def key_lockable(self) -> bool:
        """Whether `lock_keys` has an effect: the section is not a free one."""
        return not self._free

    def lock(self) -> None:
        """Forbids every change, here and in all sections below."""
        for section in self._sections():
            section._locked = True
            section._keys_locked = section.key_lockable

    def unlock(self) -> None:
        """Allows every change, here and in all sections below."""
        for section in self._sections():
            section._locked = section._keys_locked = False

    def lock_keys(self) -> None:
        """Forbids new keys, here and in all sections below that are not free."""
        for section in self._sections():
            if section.key_lockable:
                section._keys_locked = True

    def unlock_keys(self) -> None:
        """Allows new keys, here and in all sections below."""
        for section in self._sections():
            section._keys_locked = False

    def do_not_lock_keys(self) -> None:
        """Makes this section free: keys of any name may be added under a key lock."""
        self._free = True
        self._attach()

    def optional_keys(self, **defaults: Any) -> None:
        """Declares keys that may be set although they are absent.

        Args:
            **defaults: each key with its value while it is absent.
        """
        self._optional = {**self._optional, **defaults}

    @contextmanager
    def unlocked(self) -> Iterator[None]:
        """Scope in which keys and values may change; the locks return at its end."""
        with self._relocking():
            self.unlock()
            yield

    @contextmanager
    def values_unlocked(self) -> Iterator[None]:
        """Scope in which values but no keys may change; the locks return at its end."""
        with self._relocking():
            self.unlock()
            self.lock_keys()
            yield

    @contextmanager
    def _relocking(self) -> Iterator[None]:
        # The sections themselves are kept, so that no id is reused by a new section.
        before = [(section, section._locked, section._keys_locked) for section in self._sections()]
        try:
            yield
        finally:
            self._relock({id(s): (locked, keys) for s, locked, keys in before}, self)

    def _relock(self, before: dict[int, tuple[bool, bool]], parent: Config) -> None:
        # A section that was made meanwhile is locked as the one above it.
        inherited = (parent._locked, parent._keys_locked and self.key_lockable)
        self._locked, self._keys_locked = before.get(id(self), inherited)
        for value in self.values():
            if isinstance(value, Config):
                value._relock(before, self)

    # ---------------------------------------------------------------- reading

    def __missing__(self, key: str) -> Any:
        if key in self._optional:
            return self._optional[key]
        if self._locked or self._keys_locked:
            raise self._unknown(key)
        child = Config()
        child._attach_to = (self, key)
        child._free = self._free
        child._path = (*self._path, key)
        return child

    def __getattr__(self, name: str) -> Any:
        # Protocols such as copy and pickle ask for private names that no key has.
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]

    def get_path(self, path: str) -> Any:
        """Reads a value by its dotted path.

        Args:
            path: such as `"algo.optim_params.actor.learning_rate.initial"`.

        Raises:
            ConfigError: no such key.
        """
        section, key = self._resolve(path)
        if key not in section and key not in section._optional:
            raise section._unknown(key, self)
        return section[key]

    def dotted(self, *keys: str) -> str:
        """Returns the dotted path of this section, or of a key in it, from the whole config on."""
        return ".".join((*self._path, *keys))

    def leaves(self, optional: bool = False) -> Iterator[tuple[str, Any]]:
        """Yields `(dotted path, value)` of all values; an empty section counts as one.

        Args:
            optional: include absent optional keys, with their defaults.
        """
        absent = {k: v for k, v in self._optional.items() if k not in self} if optional else {}
        for key, value in [*self.items(), *absent.items()]:
            if isinstance(value, Config) and value:
                for path, leaf in value.leaves(optional):
                    yield f"{key}.{path}", leaf
            else:
                yield key, value

    def to_dict(self) -> dict[str, Any]:
        """Returns the same content in plain dictionaries."""
        return {k: v.to_dict() if isinstance(v, Config) else v for k, v in self.items()}

    def dump(self, filename: str | os.PathLike[str] | None = None) -> str:
        """Renders the config as JSON.

        Args:
            filename: where to write it too, if anywhere.

        Returns:
            The JSON text, indented by 4.

        Raises:
            ConfigError: a value has no JSON form.
        """
        try:
            text = json.dumps(self.to_dict(), indent=4, default=os.fspath)
        except TypeError:
            path, value = next((p, v) for p, v in self.leaves() if not _has_json_form(v))
            raise ConfigError(
                f"'{path}' holds a {type(value).__name__}, which JSON cannot express: "
                "use numbers, strings, lists and dicts"
            ) from None
        if filename is not None:
            Path(filename).write_text(text + "\n")
        return text

    def __repr__(self) -> str:
        return json.dumps(self.to_dict(), indent=4, default=str)

    # ---------------------------------------------------------------- changing

    def __setitem__(self, key: str, value: Any) -> None:
        if self._locked:
            raise ConfigError(
                f"config is locked: cannot set '{self.dotted(key)}'; "
                "change it inside 'with config.values_unlocked():'"
            )
        exists = key in self or key in self._optional
        if self._keys_locked and not exists:
            raise self._unknown(key)
        old = self.get(key)
        if self._keys_locked and isinstance(old, Config):
            if not isinstance(value, Mapping):
                given = "null" if value is None else repr(value)
                raise ConfigError(
                    f"'{self.dotted(key)}' is a section and cannot be set to {given}; "
                    f"set one of its keys{_listed(old)}"
                )
            if old._keys_locked:
                old.update(value)
                return
        if isinstance(value, Mapping):
            value = self._adopt(key, value)
        super().__setitem__(key, value)
        self._attach()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in Config.__slots__:
            object.__setattr__(self, name, value)
        elif hasattr(type(self), name):
            raise ConfigError(
                f"'{self.dotted(name)}' is the name of a method of {type(self).__name__}; "
                "choose another name for the key"
            )
        else:
            self[name] = value

    def __delitem__(self, key: str) -> None:
        if self._locked:
            raise ConfigError(f"config is locked: cannot delete '{self.dotted(key)}'")
        if key not in self:
            raise self._unknown(key)
        super().__delitem__(key)

    def __delattr__(self, name: str) -> None:
        del self[name]

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Takes over the values of a nested mapping; all other values stay.

        Args:
            *args: a mapping or pairs, as for `dict.update`.
            **kwargs: further keys.

        Raises:
            ConfigError: a key is unknown, or a lock forbids the change.
        """
        for key, value in dict(*args, **kwargs).items():
            if isinstance(value, Mapping) and key not in self and key not in self._optional:
                self[key] = self[key]  # starts a section, if the lock allows it
            below = self.get(key)
            if isinstance(value, Mapping) and isinstance(below, Config):
                below.update(value)
            else:
                self[key] = value

    def __ior__(self, other: Any) -> Config:  # type: ignore[override,misc]
        self.update(other)
        return self

    def set_path(self, path: str, value: Any) -> None:
        """Sets a value by its dotted path; a mapping updates the section of that name.

        Args:
            path: such as `"algo.alpha"`.
            value: the new value.

        Raises:
            ConfigError: no such key, or a lock forbids the change.
        """
        section, key = self._resolve(path)
        try:
            section.update({key: value})
        except UnknownKeyError:
            if section._accepts(key):
                raise  # the unknown key lies in the value
            raise section._unknown(key, self) from None

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Returns the value of a key, which it sets first where it is absent."""
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, key: str, *default: Any) -> Any:
        """Removes a key and returns its value (or the default, where it is absent)."""
        if key not in self and default:
            return default[0]
        value = self[key]
        del self[key]
        return value

    def popitem(self) -> tuple[str, Any]:
        """Removes and returns the last key with its value."""
        key = next(reversed(self))
        return key, self.pop(key)

    def clear(self) -> None:
        """Removes all keys."""
        for key in list(self):
            del self[key]

    # ---------------------------------------------------------------- copies

    def copy(self) -> Config:
        """Returns an independent copy with the same locks."""
        return self.deepcopy()

    def deepcopy(self) -> Config:
        """Returns an independent copy with the same locks."""
        import copy

        return copy.deepcopy(self)

    def __reduce__(self) -> tuple[Any, ...]:
        # Not dict's way, which fills a copy through __setitem__ and would meet its locks.
        state = {name: getattr(self, name) for name in Config.__slots__ if name != "_attach_to"}
        return _rebuild, (type(self), dict(self), state)

    def recast(self, cls: type[C]) -> C:
        """Returns this section as one of another class, with the same content and locks."""
        _, (_, items, state) = self.__reduce__()
        return _rebuild(cls, items, state)

    # ---------------------------------------------------------------- inside

    def _sections(self) -> Iterator[Config]:
        yield self
        for value in self.values():
            if isinstance(value, Config):
                yield from value._sections()

    def _accepts(self, key: str) -> bool:
        return key in self or key in self._optional or not (self._locked or self._keys_locked)

    def _adopt(self, key: str, value: Mapping[str, Any]) -> Config:
        section = value if isinstance(value, Config) else Config(value)
        if section is not value or self._free:
            for below in section._sections():
                below._free = True
        section._attach_to = None
        section._place((*self._path, key))
        return section

    def _place(self, path: tuple[str, ...]) -> None:
        self._path = path
        for key, value in self.items():
            if isinstance(value, Config):
                value._place((*path, key))

    def _attach(self) -> None:
        """Enters a section that was started by reading it into the one above."""
        if self._attach_to is not None:
            parent, key = self._attach_to
            parent[key] = self

    def _resolve(self, path: str) -> tuple[Config, str]:
        """Splits a dotted path into the section that it leads to and the last key."""
        section, (*above, key) = self, path.split(".")
        for name in above:
            if not section._accepts(name):
                raise section._unknown(name)
            below = section[name]
            if not isinstance(below, Config):
                raise ConfigError(
                    f"'{section.dotted(name)}' holds the value {below!r}, so there is no '{path}'"
                )
            section = below
        return section, key

    def _unknown(self, key: str, root: Config | None = None) -> UnknownKeyError:
        """Says that a key does not exist, and where in `root` one of that name does."""
        namesakes = [p for p, _ in root.leaves() if p.endswith(f".{key}")] if root else []
        if len(namesakes) == 1:
            hint = f"; did you mean '{namesakes[0]}'?"
        else:
            hint = did_you_mean(key, [*self, *self._optional])
        return UnknownKeyError(f"unknown config key '{self.dotted(key)}'{hint}")


def _listed(section: Config) -> str:
    return f": {', '.join(section)}" if section else ""


def _rebuild(cls: type[C], items: dict[str, Any], state: dict[str, Any]) -> C:
    new = cls.__new__(cls)
    dict.update(new, items)
    for name, value in state.items():
        setattr(new, name, value)
    return new


def _has_json_form(value: Any) -> bool:
    try:
        json.dumps(value, default=os.fspath)
    except TypeError:
        return False
    return True
