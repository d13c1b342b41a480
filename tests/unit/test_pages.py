"""The code in the documentation: commands parse, settings exist, Python runs."""

import ast
import importlib
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import PAGES, ROOT, Block, blocks, commands, commands_in_text
from tiny import PROGRAMS, Ran, run_process, write_hopper

from raymimic.cli.commands import COMMANDS, GROUPS, parse
from raymimic.cli.train import _apply
from raymimic.config import config_factory
from raymimic.config.base_config import parse_set
from raymimic.config.templates import config_named
from raymimic.errors import ConfigError
from raymimic.sweep import sweep_from_file

SHELL = ("sh", "bash")
LANGUAGES = {*SHELL, "python", "yaml", "json", "text"}
# Pages whose Python needs more than a folder; `raymimic.train` stands for every algorithm.
NEEDS_A_STORE = {"docs/mlflow_models.md"}
PYTHON_PAGES = [page for page in PAGES if any(blocks(page, "python"))]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
_FOLDERS = re.compile(r"(benchmarks|cluster|docs|raymimic|tests|tune_configs)/[\w./-]+")


def check_raymimic(words: list[str]) -> None:
    """Parses a command, and checks the settings that it names.

    Raises:
        SystemExit, ConfigError: something in it does not exist.
    """
    if words in (["--version"], ["--help"]):  # they end the process
        return
    args = parse([word for word in words if word != "…"])
    settings = getattr(args, "set", [])
    if words[0] == "train":
        try:
            config = config_named(args.algo or "td3_bc")
            known = args.algo is not None
        except ConfigError:
            if not args.imports and not args.algo.isupper():  # ALGO stands for any
                raise
            config, known = config_factory("td3_bc"), False
        if not known:  # a config file, a run or a module has an algorithm of its own
            args.set = [setting for setting in settings if not setting.startswith("algo.")]
        _apply(config, args)
    elif words[0] == "tune" and args.sweep and (ROOT / args.sweep).exists():
        changes = [parse_set(setting) for setting in settings]
        changes += [("dataset", args.dataset)] if args.dataset else []
        sweep_from_file(ROOT / args.sweep, changes)
    elif words[0] == "config" and not args.algo.isupper():
        config_named(args.algo)


def check_command(words: list[str]) -> None:
    """Checks a command of a shell block."""
    program, *rest = words
    if program in ("python", "python3") and rest[0] == "-m":
        program, *rest = rest[1:]
        assert importlib.util.find_spec(program) is not None, program
    if Path(program).name == "raymimic":
        check_raymimic(rest)
    for word in words:
        if _FOLDERS.fullmatch(word):
            assert (ROOT / word).exists(), word


@pytest.mark.parametrize("page", PAGES)
def test_blocks_name_their_language(page: str) -> None:
    unnamed = [block.line for block in blocks(page) if block.language not in LANGUAGES]
    assert not unnamed


@pytest.mark.parametrize("page", PAGES)
def test_lines_of_text_fit(page: str) -> None:
    """But rows of tables, which cannot be wrapped."""
    text = re.sub(r"^ *```.*?^ *```$", "", (ROOT / page).read_text(), flags=re.M | re.S)
    long = [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")]
    assert not long


@pytest.mark.parametrize("page", PAGES)
def test_brackets_of_commands_are_quoted(page: str) -> None:
    """Else zsh takes them for the pattern of a file's name, and refuses the command."""
    for block in blocks(page, *SHELL):
        text = re.sub(r"#.*", "", block.text)
        assert "[" not in re.sub(r"'[^']*'|\"[^\"]*\"|\[ |\[\[ ", "", text), block.line


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page: str) -> None:
    for block in blocks(page, *SHELL):
        for words in commands(block):
            try:
                check_command(words)
            except (SystemExit, ConfigError) as error:
                pytest.fail(f"{page}, block of line {block.line}: {' '.join(words)}: {error}")
    for words in commands_in_text(page):
        if " ".join(words[1:]) in {*COMMANDS, *GROUPS}:  # the name of a command
            continue
        try:
            check_command(words)
        except (SystemExit, ConfigError) as error:
            pytest.fail(f"{page}: {' '.join(words)}: {error}")


@pytest.mark.parametrize(
    "command",
    [
        "raymimic train --algo td3_bc --datasets demos.hdf5",
        "raymimic train --algo td3_bc --set algo.alhpa=5",
        "raymimic train --algo td3bc",
        "raymimic train --config mine.json --set train.bach_size=5",
        "A=1 raymimic evaluete model.pth",
        "cd there && .venv/bin/raymimic evaluate --episodes none",
        "ray job submit --address http://HEAD:8265 -- raymimic train --workers many",
        "raymimic tune tune_configs/td3_bc_pbt.yaml --set scheduler.asha.grace=1",
        "raymimic config td4_bc",
        "python -m raymimic.command",
        "python benchmarks/nothing.py",
    ],
)
def test_a_wrong_command_is_noticed(command: str) -> None:
    *_, words = commands(Block("", 0, "sh", command))
    with pytest.raises((SystemExit, ConfigError, AssertionError)):
        check_command(words)


def test_files_in_blocks_can_be_read(tmp_path: Path) -> None:
    sweeps = 0
    for block in (block for page in PAGES for block in blocks(page, "yaml", "json")):
        if block.language == "json":
            content = json.loads(block.text)
            if "algo_name" in content:
                config_factory(content["algo_name"], content)
            continue
        sweeps += 1
        (tmp_path / "sweep.yaml").write_text(block.text)
        sweep_from_file(tmp_path / "sweep.yaml")
    assert sweeps > 0


@pytest.mark.slow
def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_hopper(tmp_path / "demos.hdf5")
    monkeypatch.setenv("PYTHONPATH", str(PROGRAMS.parent))
    # The page about training leaves a checkpoint for the others.
    pages = sorted(set(PYTHON_PAGES) - NEEDS_A_STORE, key=lambda page: page != "docs/train.md")
    ran = run_process(str(PROGRAMS / "run_pages.py"), *pages, cwd=tmp_path)
    assert ran.status == 0, ran.out + ran.err
    assert [line.partition(":")[0] for line in ran.out.splitlines() if ".md: " in line] == pages


@pytest.mark.slow
def test_the_config_of_the_page_on_images_trains(cli: Callable[..., Ran], tmp_path: Path) -> None:
    """On the data of the page, with fewer and smaller steps."""
    exec(next(blocks("docs/images.md", "python")).text, {})
    texts = [block.text for block in blocks("docs/images.md", "json")]
    (tmp_path / "cameras.json").write_text(*(text for text in texts if "algo_name" in text))
    less = ["train.num_epochs=1", "train.batch_size=4", "experiment.epoch_every_n_steps=2"]
    quiet = ["mlflow.enabled=false", "experiment.logging.log_tb=false", "train.cuda=false"]
    few = ["experiment.validation_epoch_every_n_steps=1"]
    ran = cli(
        *("train", "--config", "cameras.json", "--workers", "0", "--json"),
        *("--set", *less, *quiet, *few),
    )
    assert ran.status == 0, ran.err
    assert {"Train/Loss", "Valid/Loss", "Timing/data_share"} <= ran.result["metrics"].keys()


def check_names(code: str) -> None:
    """Checks that a piece of Python compiles, and that the names that it imports exist."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                assert importlib.util.find_spec(alias.name) is not None, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module != "IPython.display":
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), alias.name


@pytest.mark.parametrize("page", sorted(NEEDS_A_STORE))
def test_other_python_blocks_import_names_that_exist(page: str) -> None:
    for block in blocks(page, "python"):
        check_names(block.text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_whole_and_without_outputs(path: Path) -> None:
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert cells
    for cell in cells:
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
        check_names("".join(cell["source"]))


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) == 2
