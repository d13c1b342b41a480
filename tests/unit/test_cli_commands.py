"""The registry of commands: a new one is one module and one line."""

import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import Ran, run_process

from raymimic.cli.commands import COMMANDS, GROUPS

GREET = """
import json

from raymimic.cli.shared import positive
from raymimic.errors import ConfigError


def arguments(parser):
    parser.add_argument("name")
    parser.add_argument("--times", type=positive, default=1)


def run(args):
    if args.name == "nobody":
        raise ConfigError("nobody is there to greet: give a name")
    json.loads(args.name if args.name == "{" else "0")
    print(" ".join([f"hello {args.name}"] * args.times))
"""


@pytest.mark.parametrize("words", ["greet", "dataset greet", "people greet"])
def test_a_command_is_one_module_and_one_line(
    words: str, cli: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "greet_command.py").write_text(GREET)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(COMMANDS, words, ("greet_command", "say hello"))
    monkeypatch.setitem(GROUPS, "people", "people and their manners")
    command = words.split()
    ran = cli(*command, "Ada", "--times", "2", "--verbose")
    assert (ran.status, ran.out) == (0, "hello Ada hello Ada\n")
    ran = cli(*command, "nobody")
    assert ran.status == 2
    assert ran.err == "raymimic: error: nobody is there to greet: give a name\n"
    ran = cli(*command, "{")
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    place = r"\(/.*/greet_command\.py, line 16\)"
    assert re.search(f"error: JSONDecodeError: Expecting .* {place}: fix it there; --tr", ran.err)
    ran = cli(*command, "{", "--traceback")
    assert "json/decoder.py" in ran.err
    ran = cli(*command, "Ada", "--times", "0")
    assert ran.status == 2
    assert ran.err.startswith("raymimic: error: argument --times: '0' is not a whole number from 1")
    assert "greet  " in cli(*command[:-1], "--help").out
    assert "--times TIMES" in cli(*command, "--help").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "invalid choice: 'trian' .* (did you mean 'train'?); see raymimic --help"),
        (["dataset", "inof"], "'inof' .* (did you mean 'info'?); see raymimic dataset --help"),
        (["train", "--bogus"], "unrecognized arguments: --bogus; see raymimic train --help"),
        (["xyzzy"], "invalid choice: 'xyzzy' (choose from .*); see raymimic --help"),
    ],
)
def test_a_mistyped_command_is_told_the_nearest(
    words: list[str], said: str, cli: Callable[..., Ran]
) -> None:
    ran = cli(*words)
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    assert re.search(re.escape(said).replace(r"\.\*", ".*") + "$", ran.err), ran.err
    assert ("did you mean" in ran.err) == ("did you mean" in said)


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_explains_itself_without_heavy_imports(words: str, tmp_path: Path) -> None:
    module, help_text = COMMANDS[words]
    assert help_text
    command = importlib.import_module(module)
    assert list(inspect.signature(command.arguments).parameters) == ["parser"]
    assert list(inspect.signature(command.run).parameters) == ["args"]
    unneeded = {
        "torch",
        "ray",
        "mlflow",
        "h5py",
        "numpy",
        *(other for other, _ in COMMANDS.values()),
    }
    code = f"import sys, raymimic.cli\ntry: raymimic.cli.main({[*words.split(), '--help']})\n"
    code += f"finally: print(sorted({unneeded - {module}} & set(sys.modules)))"
    ran = run_process("-c", code, cwd=tmp_path)
    assert ran.status == 0, ran.err
    assert f"usage: raymimic {words} " in ran.out
    assert ran.out.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "words",
    [
        "make hopper-medium-expert --out",
        "extract-obs a.hdf5 --out",
        "repair a.hdf5 --out",
        "merge a.hdf5 b.hdf5 --out",
        "convert a.hdf5",
    ],
)
def test_datasets_have_the_name_of_one(
    words: str, cli: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = cli("dataset", *words.split(), "new.zarr")
    assert ran.status == 2
    assert "'new.zarr' must be an HDF5 file: end its name in .hdf5" in ran.err
    assert not list(tmp_path.iterdir())
