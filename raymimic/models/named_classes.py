"""Classes that a config names, with the keyword arguments that it gives them."""

import inspect
import logging
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from raymimic.errors import ConfigError, RaymimicError, did_you_mean, printable
from raymimic.user_modules import own_reason, same_definition

logger = logging.getLogger(__name__)

T = TypeVar("T")


class NamedClasses(Mapping[str, type[T]]):
    """A registry: the classes of one kind by their class names.

    Args:
        kind: of the classes, with its article: `"a backbone"`.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, type[T]] = {}
        self._told: set[tuple[str, str]] = set()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def __len__(self) -> int:
        return len(self._classes)

    def __getitem__(self, name: str) -> type[T]:
        return self._classes[name]

    def register(self, cls: type[T]) -> type[T]:
        """Makes a class known; usable as a decorator.

        Raises:
            ConfigError: another class has that name already.
        """
        known = self._classes.get(cls.__name__, cls)
        if not same_definition(known, cls):
            raise ConfigError(
                f"{self.kind} '{cls.__name__}' is registered already, by {known.__module__}: "
                "rename one"
            )
        self._classes[cls.__name__] = cls
        return cls

    def offer(self, cls: type[T]) -> None:
        """Makes a class known if no other has its name, and it does not begin with `_`."""
        if not cls.__name__.startswith("_") and same_definition(
            self._classes.get(cls.__name__, cls), cls
        ):
            self._classes[cls.__name__] = cls

    def make(self, name: Any, key: str, kwargs: Mapping[str, Any] | None, **given: Any) -> T:
        """Makes an instance.

        Args:
            name: of the class.
            key: of the setting that holds the name, such as `core_class`; that of the arguments
                follows from it: `core_kwargs`.
            kwargs: the arguments from the config. Those that only other classes of the kind take
                are left out, as in robomimic, whose configs keep them when the class changes.
            **given: further arguments, which no config gives. Those that the class does not take
                are left out.

        Raises:
            ConfigError: there is no such class or argument, or its value is impossible.
        """
        if not isinstance(name, str) or name not in self._classes:
            raise ConfigError(
                f"{key} '{name}' is not available{did_you_mean(str(name), self._classes)}"
            )
        cls, section = self._classes[name], key.replace("_class", "_kwargs")
        if kwargs is not None and not isinstance(kwargs, Mapping):
            raise ConfigError(f"{section} is {shown(kwargs)}: it must be a section, such as {{}}")
        takes = _arguments(cls)
        arguments = {}
        for word, value in (kwargs or {}).items():
            if word in given:
                raise ConfigError(f"{section}.{word} follows from the data: remove it")
            if takes is None or word in takes:
                arguments[word] = value
            elif any(word in (_arguments(other) or ()) for other in self._classes.values()):
                self._tell(f"{section}.{word} has no effect: {name} has no such argument")
            else:
                hint = did_you_mean(word, [w for w in takes if w not in given])
                raise ConfigError(f"{section}.{word}: {name} has no such argument{hint}")
        arguments |= {w: value for w, value in given.items() if takes is None or w in takes}
        try:
            return cls(**arguments)
        except RaymimicError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{section}: {name} cannot be made of {shown(dict(kwargs or {}))}: "
                f"{own_reason(error)}"
            ) from error

    def _tell(self, message: str) -> None:
        """Logs a warning, once in a process: networks are made again and again."""
        if (self.kind, message) not in self._told:
            self._told.add((self.kind, message))
            logger.warning(message)


def _arguments(cls: type) -> list[str] | None:
    """Returns the names of a class's arguments; None: it takes any."""
    parameters = inspect.signature(cls).parameters.values()
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters]


def shown(value: Any) -> str:
    """Writes arguments for an error message; shortens long ones."""
    text = printable(repr(value))
    return text if len(text) <= 200 else f"{text[:100]}…{text[-20:]}"
