"""Scripts that import robomimic run on raymimic without an edit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raymimic.utils import file_utils

PROGRAMS = Path(__file__).parents[1] / "programs"


def run(*words: str | Path, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=300,
        check=False,
    )


def answer(program: str, hopper: Path, folder: Path) -> dict:
    done = run("-m", "raymimic.as_robomimic", PROGRAMS / program, hopper, folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_isaaclabs_scripts(hopper: Path, tmp_path: Path):
    told = answer("robomimic_isaaclab.py", hopper, tmp_path)
    assert told["actions"] == [[1, 3], [1, 3]]
    assert [name.split("_")[2] for name in told["models"]] == ["1", "2"]
    assert 1 <= told["logs"]["Horizon"] <= 5
    run_folder = Path(told["run"]).parent
    assert run_folder.parent == tmp_path / "their_run"
    assert "Train/Loss" not in (run_folder / "logs" / "log.txt").read_text()
    assert '"Loss"' in (run_folder / "logs" / "log.txt").read_text()
    assert list((run_folder / "logs" / "tb").iterdir())
    policy, checkpoint = file_utils.policy_from_checkpoint(
        ckpt_path=run_folder / "models" / told["models"][-1]
    )
    assert policy.obs_normalization_stats is not None
    assert checkpoint["env_metadata"]["env_name"] == "Hopper-v5"


@pytest.mark.slow
def test_mimicgens_scripts(hopper: Path, tmp_path: Path):
    told = answer("robomimic_mimicgen.py", hopper, tmp_path)
    assert told == {
        "first": [3, 11],
        "steps": [4, 11],
        "image": [[2, 3, 6, 5], 1.0],
        "crop": [3, 4, 4],
        "joined": [6, 4],
        "config": 1,
        "generated": 2,
        "paper": 2000,
        "url": False,
    }
    [run_folder] = (tmp_path / "runs").glob("generated_mlp_4_4/*")
    assert json.loads((run_folder / "config.json").read_text())["algo"]["actor_layer_dims"] == [
        4,
        4,
    ]
    assert list((run_folder / "models").iterdir()) or (run_folder / "last.pth").exists()
    assert (tmp_path / "log.txt").read_text() == "a line of the log\n"


@pytest.mark.slow
def test_robomimics_examples(hopper: Path, tmp_path: Path):
    told = answer("robomimic_examples.py", hopper, tmp_path)
    assert told["locks"] == [100, 200, 1e-4, [10], 10]
    assert told["losses"]
    assert told["features"] == [[1, 64 * 3 + 32], [1, 7]]
    assert told["scan"] == [1, 2, 3]
    assert told["own"] == [1.0, True, [5, 2]]
    [run_folder] = (tmp_path / "bc_rnn").iterdir()
    assert {"config.json", "logs", "models"} <= {path.name for path in run_folder.iterdir()}
    assert len(list((run_folder / "models").glob("model_epoch_*.pth"))) == 2


def test_a_script_may_import_it_by_itself(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(
        "import raymimic.as_robomimic\n"
        "import robomimic.utils.tensor_utils as theirs, raymimic.utils.tensor_utils as ours\n"
        "from robomimic.algo import RolloutPolicy\n"
        "import raymimic, robomimic, sys\n"
        "assert theirs is ours and robomimic is raymimic, theirs\n"
        "assert ours.__spec__.name == 'raymimic.utils.tensor_utils', ours.__spec__\n"
        "try:\n    import robomimic.utils.no_such\n"
        "except ModuleNotFoundError as error:\n    assert error.name == 'robomimic.utils.no_such'\n"
        "print(sys.argv[1:])\n"
    )
    for words in ([], ["-m", "raymimic.as_robomimic"]):
        done = run(*words, script, "--config", "x")
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "['--config', 'x']"


def test_the_real_package_keeps_its_place_unless_asked(tmp_path: Path):
    (tmp_path / "robomimic").mkdir()
    (tmp_path / "robomimic" / "__init__.py").write_text("real = True\n")
    script = tmp_path / "script.py"
    script.write_text("import robomimic\nprint(hasattr(robomimic, 'real'))\n")
    module = ("-m", "raymimic.as_robomimic")
    path = {"PYTHONPATH": str(tmp_path)}
    done = run(*module, script, **path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "robomimic itself is installed" in done.stderr
    assert "--replace" in done.stderr
    assert run(*module, "--replace", script, **path).stdout == "False\n"
    done = run("-c", "import raymimic.as_robomimic, robomimic; print(robomimic.real)", **path)
    assert "ConfigError: robomimic itself is installed" in done.stderr
    asked = {**path, "RAYMIMIC_AS_ROBOMIMIC": "replace"}
    done = run("-c", "import raymimic.as_robomimic, robomimic; print(robomimic.__name__)", **asked)
    assert done.stdout == "raymimic\n"
    done = run("-c", "import robomimic, raymimic.as_robomimic", **path)
    assert "imported already" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "usage: python -m raymimic.as_robomimic"),
        (["none.py"], "there is no script 'none.py'"),
        (["--config", "x"], "usage"),
        (["-m", "robomimic.scripts.none"], "no module 'robomimic.scripts.none' of raymimic"),
        (["-m", "email"], "there is no module 'email.__main__'"),
        (["-m", "none.at_all"], "there is no module 'none.at_all'"),
    ],
)
def test_a_command_that_names_no_script(words: list[str], said: str):
    done = run("-m", "raymimic.as_robomimic", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_module_runs_too(tmp_path: Path):
    (tmp_path / "theirs.py").write_text(
        "import robomimic, sys\nprint(robomimic.__name__, sys.argv[1])"
    )
    done = run("-m", "raymimic.as_robomimic", "-m", "theirs", "x", PYTHONPATH=str(tmp_path))
    assert done.stdout == "raymimic x\n", done.stderr


def test_a_folder_of_that_name_is_no_package(tmp_path: Path):
    (tmp_path / "robomimic" / "robomimic").mkdir(parents=True)  # a checkout in the current folder
    (tmp_path / "theirs.py").write_text("import robomimic\nprint(robomimic.__name__)\n")
    done = run("-m", "raymimic.as_robomimic", "-m", "theirs", PYTHONPATH=str(tmp_path))
    assert done.stdout == "raymimic\n", done.stderr


@pytest.mark.slow
def test_robomimics_own_scripts_run_as_modules(hopper: Path):
    done = run(
        *("-m", "raymimic.as_robomimic", "-m", "robomimic.scripts.get_dataset_info"),
        *("--dataset", hopper),
    )
    assert done.returncode == 0, done.stderr
    direct = run("-m", "raymimic.scripts.get_dataset_info", "--dataset", hopper)
    assert done.stdout == direct.stdout
    assert "key: " in done.stdout
    wrong = run("-m", "raymimic.as_robomimic", "-m", "robomimic.scripts.train", "--nonsense")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr


def test_a_module_of_algorithms_without_the_line_is_told_it(tmp_path: Path):
    (tmp_path / "their_algo.py").write_text("from robomimic.algo import PolicyAlgo\n")
    words = ("-m", "raymimic", "train", "--algo", "bc", "--dataset", "x", "--import", "their_algo")
    done = run(*words, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "put `import raymimic.as_robomimic` above it" in done.stderr


CHILDREN = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
import robomimic.utils.tensor_utils

def name(way):
    import robomimic.algo
    assert robomimic.algo.BC is not None
    return f"{way} {robomimic.__name__}"

if __name__ == "__main__":
    for way in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(way)
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            print(pool.submit(name, way).result())
"""


@pytest.mark.slow
@pytest.mark.parametrize("installed", [False, True])
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["-m", "raymimic.as_robomimic", "theirs.py"], ""),
        (["-m", "raymimic.as_robomimic", "-m", "theirs"], ""),
        (["theirs.py"], "import raymimic.as_robomimic"),
    ],
)
def test_child_processes_have_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], line: str, installed: bool
):
    monkeypatch.chdir(tmp_path)
    Path("theirs.py").write_text(line + CHILDREN)
    env = {}
    if installed:
        Path("robomimic").mkdir()
        Path("robomimic", "__init__.py").write_text("raise ValueError('the real one')\n")
        env = {"RAYMIMIC_AS_ROBOMIMIC": "replace"}
    done = run(*words, **env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["fork raymimic", "spawn raymimic", "forkserver raymimic"]
