"""Modules of the user's own: the files that may name them, and their places."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from tiny import Ran, run_process, train_args, train_here, write_hopper

from raymimic.checkpoints.policy import policy_from_checkpoint
from raymimic.envs.kinds import env_from_metadata
from raymimic.errors import ConfigError, ModuleNotImportedError
from raymimic.tracking import tags
from raymimic.training.run_folder import config_of_run
from raymimic.user_modules import ImportPath, check_imported, module_of, modules_of

# Registers an environment as others do, and leaves a trace.
MODULE = """
import gymnasium
from pathlib import Path

Path("imported").touch()
if "Mine-v0" not in gymnasium.registry:
    gymnasium.register("Mine-v0", "gymnasium.envs.mujoco.hopper_v5:HopperEnv", max_episode_steps=9)
"""
ROLLOUTS = [
    *("experiment.rollout.enabled=true", "experiment.rollout.rate=2", "experiment.rollout.n=1"),
    *("experiment.rollout.horizon=5", "experiment.render_video=false", "train.output_dir=out"),
]


@pytest.fixture
def module(tmp_path: Path) -> Iterator[str]:
    """A module in the current folder, which no test has imported."""
    (tmp_path / "my_env.py").write_text(MODULE)
    yield "my_env"
    sys.modules.pop("my_env", None)


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """A dataset that names the module."""
    path = write_hopper(tmp_path / "named.hdf5")
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_args"] = json.dumps({"env_name": "my_env:Mine-v0", "type": 2})
    return path


def refused(ran: Ran, tmp_path: Path, command: list[str]) -> list[str]:
    """Checks that a command was refused, and returns the words of the one that works."""
    assert (ran.status, ran.out) == (2, ""), ran
    assert ran.err.count("\n") == 1
    assert "'my_env'" in ran.err
    assert not (tmp_path / "imported").exists()
    *_, remedy = ran.err.strip().partition(": raymimic ")
    words = [*command, "--import", "my_env"]
    assert remedy == " ".join(f"'{w}'" if "[" in w else w for w in words)
    return words


def test_what_names_a_module() -> None:
    assert module_of("a.b:Env-v0") == "a.b"
    assert [module_of(name) for name in ("Env-v0", "ns/Env-v0", ":Env-v0", "", None, 5)] == [
        None
    ] * 6
    config = {
        "train": {"imports": ["one", "two"]},
        "experiment": {
            "env": "three:A-v0",
            "additional_envs": ["B-v0", "four:C-v0", "one:D-v0"],
            "env_meta_update_dict": {"env_name": "five:E-v0"},
        },
    }
    assert modules_of(config) == ["one", "two", "three", "four", "five"]


@pytest.mark.parametrize("value", [None, 5, "text", {}, []])
def test_a_config_that_names_nothing(value: Any) -> None:
    assert modules_of({"train": value, "experiment": value}) == []
    keys = ("env", "additional_envs", "env_meta_update_dict")
    sections = {"train": {"imports": value}, "experiment": dict.fromkeys(keys, value)}
    assert modules_of(sections) == []


def test_files_name_imported_modules_only() -> None:
    check_imported(["json", "raymimic"], "'x'")
    with pytest.raises(ModuleNotImportedError, match=r"'x' names the module 'nowhere'") as error:
        check_imported(["json", "nowhere"], "'x'")
    assert error.value.modules == ["nowhere"]
    check_imported(["nowhere"], "'x'", given=["renamed"])


def test_the_current_folder_is_searched_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, first, later = (tmp_path / name for name in ("here", "first", "later"))
    for folder in (here, first, later):
        folder.mkdir()
    monkeypatch.chdir(here)
    installed = [p for p in sys.path if Path(p).is_relative_to(sys.prefix)]
    installed += [p for p in sys.path if Path(p).is_relative_to(sys.base_prefix)]
    command = str(Path(sys.prefix) / "bin")  # where `raymimic` lies
    monkeypatch.setattr(sys, "path", [command, "", str(first), "/none", *installed, str(later)])
    path = ImportPath.of_this_process()
    assert path.first == (str(first),)
    assert path.last == (str(here), str(later))
    monkeypatch.setattr(sys, "path", installed[:])
    path.join()
    path.join()
    assert sys.path[0] == str(first)
    assert sys.path[1 : 1 + len(installed)] == installed
    assert sys.path.count(str(here)) == sys.path.count(str(later)) == 1


# -- datasets --


def test_a_dataset_imports_nothing(
    cli: Callable[..., Ran], module: str, named: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModuleNotImportedError, match="environment 'my_env:Mine-v0' names"):
        env_from_metadata({"env_name": "my_env:Mine-v0", "type": 2})
    command = train_args(named.name, *ROLLOUTS)
    words = refused(cli(*command), tmp_path, command)
    ran = cli(*words, "--json")
    assert ran.status == 0, ran.err
    assert "Rollout/Return/my_env:Mine-v0" in ran.result["metrics"]
    assert (tmp_path / "imported").exists()


def test_a_dataset_that_is_not_played_may_name_anything(
    cli: Callable[..., Ran], module: str, named: Path, tmp_path: Path
) -> None:
    ran = cli(*train_args(named))
    assert ran.status == 0, ran.err
    assert not (tmp_path / "imported").exists()


# -- configs --


def test_a_config_that_is_passed_is_the_users_word(
    cli: Callable[..., Ran],
    module: str,
    hopper: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = train_args(hopper, *ROLLOUTS, "experiment.env=my_env:Mine-v0")
    ran = cli(*command)  # named, but not found: the current folder is searched with --import only
    assert ran.status == 2
    assert "'my_env'" in ran.err
    assert "--import" in ran.err
    monkeypatch.syspath_prepend(str(tmp_path))
    ran = cli(*command, "--json")
    assert ran.status == 0, ran.err
    assert "Rollout/Return/my_env:Mine-v0" in ran.result["metrics"]
    assert config_of_run(ran.result["run_dir"]).experiment.env == "my_env:Mine-v0"


# -- run folders and checkpoints --


@pytest.fixture(scope="module")
def trained(hopper: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training with the module, of which no process remembers anything."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "my_env.py").write_text(MODULE)
    train_here(folder, *train_args(hopper, *ROLLOUTS), "--import", "my_env")
    del sys.modules["my_env"]
    return folder


@pytest.fixture
def run(cli: Callable[..., Ran], module: str, trained: Path, tmp_path: Path) -> dict[str, str]:
    """A copy of the training, in the current folder."""
    shutil.copytree(trained / "out", tmp_path / "out")
    (checkpoint,) = tmp_path.glob("out/*/*/last.pth")
    return {"run_dir": str(checkpoint.parent), "last_checkpoint": str(checkpoint)}


def test_a_checkpoint_imports_nothing(
    cli: Callable[..., Ran], run: dict[str, str], tmp_path: Path
) -> None:
    checkpoint = run["last_checkpoint"]
    with pytest.raises(ModuleNotImportedError, match="'my_env'"):
        policy_from_checkpoint(checkpoint)
    for command in (
        ["evaluate", checkpoint, "--actors", "0", "--episodes", "1", "--horizon", "3"],
        ["export", checkpoint, "out.pth"],
    ):
        words = refused(cli(*command), tmp_path, command)
        assert cli(*words).status == 0
        del sys.modules["my_env"]
        (tmp_path / "imported").unlink()


def test_a_checkpoint_of_a_module_that_has_another_name_now(
    cli: Callable[..., Ran], run: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "my_env.py").rename(tmp_path / "renamed.py")
    command = ["evaluate", run["last_checkpoint"], "--actors", "0", "--episodes", "1"]
    assert cli(*command, "--horizon", "3", "--import", "renamed").status == 0


def test_a_run_imports_nothing(
    cli: Callable[..., Ran], run: dict[str, str], tmp_path: Path
) -> None:
    command = ["train", "--resume", run["run_dir"], "--set", "train.num_epochs=3"]
    words = refused(cli(*command), tmp_path, command)
    ran = cli(*words, "--json")
    assert ran.status == 0, ran.err
    assert ran.result["last_checkpoint"].endswith("model_epoch_3.pth")


def test_a_run_does_not_choose_the_environments_module(
    cli: Callable[..., Ran], run: dict[str, str], tmp_path: Path
) -> None:
    path = Path(run["run_dir"]) / "config.json"
    config = json.loads(path.read_text())
    config["train"]["imports"] = []
    config["experiment"]["env"] = "my_env:Mine-v0"
    path.write_text(json.dumps(config))
    command = ["train", "--resume", run["run_dir"]]
    refused(cli(*command), tmp_path, command)
    ran = cli(*command, "--import", "json")  # another module is not this one
    assert ran.status == 2
    assert not (tmp_path / "imported").exists()


def test_a_run_does_not_choose_the_cluster(
    cli: Callable[..., Ran], run: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(run["run_dir"]) / "config.json"
    config = json.loads(path.read_text())
    config["ray"] |= {"address": "ray://192.0.2.1:1", "num_workers": 1}
    path.write_text(json.dumps(config))
    ran = cli("train", "--resume", run["run_dir"], "--import", "my_env")
    assert ran.status == 2
    assert "ray://192.0.2.1:1" in ran.err
    assert "--set ray.address" in ran.err


def test_a_checkpoint_does_not_choose_the_cluster(
    cli: Callable[..., Ran], run: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever owns a cluster could send it objects that run code here."""
    import raymimic.cluster.session as cluster

    ckpt = torch.load(run["last_checkpoint"], weights_only=True)
    config = json.loads(ckpt["config"])
    config["ray"]["address"] = "ray://192.0.2.1:1"
    torch.save({**ckpt, "config": json.dumps(config)}, "theirs.pth")
    asked: list[Any] = []

    def session(config: Any) -> Any:
        asked.append(config.ray.address)
        raise ConfigError("far enough")

    monkeypatch.setattr(cluster, "ray_session", session)
    ran = cli("evaluate", "theirs.pth", "--import", "my_env")
    assert "far enough" in ran.err
    assert asked == [None]


# -- the current folder --


def test_files_of_the_current_folder_are_no_modules(tmp_path: Path) -> None:
    early = ("typing", "pathlib", "re", "fnmatch")  # of which the package itself needs some
    for name in ("json", "mlflow", "argparse", "torch", *early, "raymimic_test"):
        (tmp_path / f"{name}.py").write_text(f"open('{name}-was-imported', 'w')\n")
    for args in (
        ("-m", "raymimic", "config", "td3_bc"),
        ("-m", "raymimic.scripts.train", "--algo", "td3_bc", "--dataset", "none.hdf5"),
    ):
        ran = run_process(*args, cwd=tmp_path)
        assert "Traceback" not in ran.err
    assert not list(tmp_path.glob("*-was-imported"))
    ran = run_process(
        "-m", "raymimic", "config", "td3_bc", "--import", "raymimic_test", "json", cwd=tmp_path
    )
    assert ran.status == 0, ran.err
    assert [p.name for p in tmp_path.glob("*-was-imported")] == ["raymimic_test-was-imported"]


def test_a_repository_in_the_current_folder_runs_nothing(tmp_path, monkeypatch):
    """Its settings name programs that git runs to compare files."""
    monkeypatch.chdir(tmp_path)

    def git(*arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    Path("file").write_text("before")
    git("add", "file")
    git("commit", "-m", "file")
    commit = git("rev-parse", "HEAD")
    assert tags._git_commit() == commit
    Path("file").write_text("after")
    assert tags._git_commit() == f"{commit}-dirty"
    Path(".gitattributes").write_text("file filter=theirs")
    git("config", "filter.theirs.clean", "touch ran; cat")
    git("config", "core.fsmonitor", "touch ran")
    assert tags._git_commit() == commit
    assert not Path("ran").exists()


def test_another_command_keeps_its_import_path(tmp_path: Path) -> None:
    """A package of the user's that imports raymimic, and a module that lies beside it."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("import raymimic\n")
    (tmp_path / "mine" / "__main__.py").write_text("import beside\n")
    (tmp_path / "beside.py").write_text("print('found')\n")
    ran = run_process("-m", "mine", cwd=tmp_path)
    assert (ran.status, ran.out) == (0, "found\n"), ran.err
