"""Modules of the user's own: which ones may be imported, and from which folders.

A module runs code, so raymimic imports one only if the user names it: by `--import`, or in a config
or sweep file that the user passes. Checkpoints, datasets and run folders are untrusted and name
modules too; such a module must be imported already.
"""

from __future__ import annotations

import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymimic.errors import ConfigError, ModuleNotImportedError, RaymimicError, reason


def same_definition(one: Any, other: Any) -> bool:
    """Whether two classes or functions are the same piece of code, as registries ask.

    A module that is imported a second time defines new objects of the same code.
    """
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


def module_of(env_name: Any) -> str | None:
    """The module in an environment's name of gymnasium's form `module:Env-v0`."""
    return env_name.rpartition(":")[0] or None if isinstance(env_name, str) else None


def modules_of(config: Mapping[str, Any]) -> list[str]:
    """The modules that a config names: its `train.imports` and those of its environments.

    Args:
        config: a config, or a dictionary that may become one. Invalid entries are skipped here, and
            reported by the checks of configs.
    """
    train, experiment = (
        section if isinstance(section := config.get(name), Mapping) else {}
        for name in ("train", "experiment")
    )
    imports = train.get("imports")
    more = experiment.get("additional_envs")
    update = experiment.get("env_meta_update_dict")
    env_names = [
        experiment.get("env"),
        *(more if isinstance(more, list | tuple) else ()),
        update.get("env_name") if isinstance(update, Mapping) else None,
    ]
    named = [
        *(imports if isinstance(imports, list | tuple) else ()),
        *filter(None, map(module_of, env_names)),
    ]
    return list(dict.fromkeys(map(str, named)))


def check_imported(names: Iterable[str], where: str, given: Sequence[str] = ()) -> None:
    """Makes sure that a file names only modules that are imported already.

    Args:
        names: the modules.
        where: the file, for the message.
        given: modules that the user has named instead; with any, the others may be missing.

    Raises:
        ModuleNotImportedError: one is not.
        ConfigError: a name cannot be that of a module.
    """
    missing = [name for name in names if name not in sys.modules]
    for name in missing:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"{where} names a module {name[:80]!r}, which is no module's name")
    if missing and not given:
        raise ModuleNotImportedError(
            f"{where} names the module{'s' * (len(missing) > 1)} "
            f"{', '.join(repr(name) for name in missing)}, and the modules that a file names are "
            "imported only with --import, or by your own script",
            missing,
        )


def place_in_own_code(error: BaseException) -> str | None:
    """The place in the user's own code from which an error came: the last one on its way.

    Args:
        error: an exception that was raised.

    Returns:
        such as `/home/me/my_algo.py, line 12`; None: all code on its way is installed.
    """
    installed = [*_installed(), Path(__file__).resolve().parent]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename).resolve()
        if path.is_file() and not any(path.is_relative_to(folder) for folder in installed):
            return f"{path}, line {frame.lineno}"
    return None


def with_own_place(error: BaseException) -> str | None:
    """An exception of the user's own code in one line, which ends with its place.

    Args:
        error: an exception that was raised.

    Returns:
        such as `KeyError: 'flat' (/home/me/my_algo.py, line 12)`; None: see `place_in_own_code`.
    """
    place = place_in_own_code(error)
    return None if place is None else f"{reason(error)} ({place})"


def own_reason(error: BaseException) -> str:
    """As `reason`, with the place in the user's own code where the error came from there."""
    return with_own_place(error) or reason(error)


@contextmanager
def noting_own_place() -> Iterator[None]:
    """Adds `with_own_place` to an exception as a note, the last line of its traceback.

    For Ray's processes, whose exceptions reach the driver as the text of their traceback.
    """
    try:
        yield
    except Exception as error:
        line = None if isinstance(error, RaymimicError) else with_own_place(error)
        if line is not None:
            error.add_note(line)
        raise


def _installed() -> list[Path]:
    """The folders of the Python installation."""
    return [Path(p).resolve() for p in {sys.prefix, sys.base_prefix}]


@dataclass(frozen=True)
class ImportPath:
    """The folders in which a driver finds a user's modules, for its other processes.

    Attributes:
        first: searched before installed packages, such as those of PYTHONPATH.
        last: searched after it, the current folder among them.
    """

    first: tuple[str, ...]
    last: tuple[str, ...]

    @classmethod
    def of_this_process(cls) -> ImportPath:
        """The folders beside those of the Python installation."""
        installed = _installed()
        library = Path(sysconfig.get_path("stdlib")).resolve()
        here = Path.cwd().resolve()
        first: list[str] = []
        last: list[str] = []
        folders = first
        for path in (Path(p or ".").resolve() for p in sys.path):
            if path == library:
                folders = last
            elif path.is_dir() and not any(path.is_relative_to(folder) for folder in installed):
                (last if path == here else folders).append(str(path))
        return cls(tuple(first), tuple(last))

    def join(self) -> None:
        """Adds the folders to the path of this process."""
        sys.path[:0] = [p for p in self.first if p not in sys.path]
        sys.path += [p for p in self.last if p not in sys.path]


def join_current_folder() -> None:
    """Adds the current folder to the import path, after all that is installed."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
