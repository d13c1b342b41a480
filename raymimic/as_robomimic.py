"""Has `import robomimic` give raymimic, for scripts that were written for robomimic.

One line at the beginning of a script, `import raymimic.as_robomimic`, or no line at all:

    python -m raymimic.as_robomimic train.py --config bc.json
    python -m raymimic.as_robomimic -m mimicgen.scripts.generate_core_configs

`robomimic.utils.obs_utils` is then the module `raymimic.utils.obs_utils` itself, and so with all
others. Where robomimic is installed this is refused, unless the option `--replace` stands before
the script, or the environment holds `RAYMIMIC_AS_ROBOMIMIC=replace`. Processes that multiprocessing
starts for the script have it too, by `stand_in/robomimic.py`.
"""

import importlib
import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from importlib.abc import InspectLoader, Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from raymimic.errors import ConfigError

_THEIRS, _OURS = "robomimic", "raymimic"
_VARIABLE = "RAYMIMIC_AS_ROBOMIMIC"
_STAND_IN = Path(__file__).with_name("stand_in") / "robomimic.py"
_USAGE = "usage: python -m raymimic.as_robomimic [--replace] SCRIPT.py | -m MODULE …"


class _SameModule(Loader):
    """Gives a module that has another name already.

    Args:
        name: that other name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # which the import of the second name has replaced

    def get_code(self, fullname: str) -> CodeType | None:
        """Returns the module's code, for `runpy`, which runs it as `__main__`.

        Args:
            fullname: the name that robomimic has for it.
        """
        found = importlib.util.find_spec(self._name)
        loader = None if found is None else found.loader
        return loader.get_code(self._name) if isinstance(loader, InspectLoader) else None


class _Finder(MetaPathFinder):
    """Finds `robomimic` and its modules in raymimic."""

    gives_raymimic = True  # told by this, as a script may import what `python -m` runs

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != _THEIRS:
            return None
        name = _OURS + fullname.removeprefix(_THEIRS)
        found = importlib.util.find_spec(name)
        if found is None:
            return None
        is_package = found.submodule_search_locations is not None
        return ModuleSpec(fullname, _SameModule(name), origin=found.origin, is_package=is_package)


def install(replace: bool = False) -> None:
    """Has `import robomimic` give raymimic from now on, in this process.

    Args:
        replace: do so even where robomimic is installed.

    Raises:
        ConfigError: robomimic is installed, or imported already.
    """
    if any(getattr(finder, "gives_raymimic", False) for finder in sys.meta_path):
        return
    place = importlib.util.find_spec(_THEIRS)
    # A folder of that name without a package in it, such as a checkout's own, has no origin.
    origin = None if place is None else place.origin
    is_theirs = origin not in (None, str(_STAND_IN))
    if is_theirs and _THEIRS in sys.modules:
        raise ConfigError(
            "robomimic itself is imported already: import raymimic.as_robomimic before it"
        )
    if is_theirs and not replace:
        raise ConfigError(
            f"robomimic itself is installed ({origin}), and raymimic replaces it only on "
            f"request: uninstall it, or give --replace or {_VARIABLE}=replace in the environment"
        )
    sys.meta_path.insert(0, _Finder())
    # Child processes get the import path, and nothing else of this process.
    if str(_STAND_IN.parent) not in sys.path:
        sys.path.insert(0, str(_STAND_IN.parent))


def main(words: Sequence[str]) -> None:
    """Runs a script or a module for which robomimic is raymimic.

    Args:
        words: `[--replace] SCRIPT ARGUMENTS…` or `[--replace] -m MODULE ARGUMENTS…`.

    Raises:
        SystemExit: no script or module is named, it does not exist, or robomimic is installed.
    """
    rest = list(words)
    replace = rest[:1] == ["--replace"]
    rest = rest[1:] if replace else rest
    is_module = rest[:1] == ["-m"]
    rest = rest[1:] if is_module else rest
    if rest[:1] in (["-h"], ["--help"]):
        print(_USAGE)
        return
    if not rest or rest[0].startswith("-"):
        _end(_USAGE)
    if not is_module and not Path(rest[0]).is_file():
        _end(f"error: there is no script '{rest[0]}'")
    try:
        install(replace or _asked())
    except ConfigError as error:
        _end(f"error: {error}")
    run: Any = runpy.run_module if is_module else runpy.run_path
    sys.argv = rest
    sys.path.insert(1, str(Path.cwd() if is_module else Path(rest[0]).resolve().parent))
    if is_module:
        if (missing := _missing(rest[0])) is not None:
            ours = " of raymimic" if missing.partition(".")[0] == _THEIRS else ""
            _end(f"error: there is no module '{missing}'{ours}")
        run(rest[0], run_name="__main__", alter_sys=True)
    else:
        run(rest[0], run_name="__main__")


def _missing(module: str) -> str | None:
    """The module that is missing in order to run one; errors of packages are their own.

    Args:
        module: its name, or that of a package, whose `__main__` runs.
    """
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise
        spec = None
    if spec is None:
        return module
    is_package = spec.submodule_search_locations is not None
    return _missing(f"{module}.__main__") if is_package else None


def _end(message: str) -> None:
    print(message, file=sys.stderr)
    raise SystemExit(2)


def _asked() -> bool:
    return os.environ.get(_VARIABLE) == "replace"


if __name__ == "__main__":
    main(sys.argv[1:])
else:
    install(_asked())
