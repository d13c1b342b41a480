"""Advice in error messages."""

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import raymimic.errors
from raymimic.errors import pip_install

REPOSITORY = Path(__file__).parents[2]


def test_an_extra_is_installed_from_the_checkout_with_its_constraints() -> None:
    command = shlex.split(pip_install("metaworld"))
    assert command[:3] == ["pip", "install", "-c"]
    assert Path(command[3]) == REPOSITORY / "constraints.txt"
    assert command[4:] == ["-e", f"{REPOSITORY}[metaworld]"]


def test_an_extra_of_an_installed_package_comes_from_the_index(tmp_path: Path) -> None:
    place = tmp_path / "site packages" / "raymimic"
    place.mkdir(parents=True)
    shutil.copy(raymimic.errors.__file__, place / "errors.py")
    (place / "__init__.py").touch()
    ask = [sys.executable, "-c", "from raymimic.errors import pip_install as f; print(f('lang'))"]
    said = subprocess.run(ask, cwd=place.parent, capture_output=True, text=True, check=True).stdout
    assert said.strip() == "pip install 'raymimic[lang]'"
    for name in ("pyproject.toml", "constraints.txt"):  # a checkout whose path needs quotes
        (place.parent / name).touch()
    said = subprocess.run(ask, cwd=place.parent, capture_output=True, text=True, check=True).stdout
    assert shlex.split(said)[-1] == f"{place.parent}[lang]"


def test_every_extra_that_an_error_names_exists() -> None:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    sources = (path.read_text() for path in (REPOSITORY / "raymimic").rglob("*.py"))
    named = re.findall(r"""pip_install\(["'](.+?)["']\)""", "\n".join(sources))
    assert named
    assert {*named, "robosuite", "metaworld", "ogbench"} <= setup["options.extras_require"].keys()
