"""What the command line promises when nothing goes wrong."""

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import LAYERS, Ran, run_process, train_args

from raymimic.config import config_factory
from raymimic.training.run_folder import RunFolder
from raymimic.utils.file_utils import load_dict_from_checkpoint

PACKAGE = Path(__file__).parents[2] / "raymimic"


def state_of(ran: Ran) -> dict[str, Any]:
    """All of a finished training's last checkpoint that does not tell the time."""
    assert ran.status == 0, ran.err
    ckpt = load_dict_from_checkpoint(ran.result["last_checkpoint"])
    history = [
        {k: v for k, v in record["metrics"].items() if not k.startswith("Timing/")}
        for record in json.loads(ckpt["raymimic"]["history"])
    ]
    return {
        "model": ckpt["model"],
        "training_state": ckpt["raymimic"]["training_state"],
        "epoch": ckpt["variable_state"]["epoch"],
        "history": history,
    }


def assert_same(one: Any, other: Any, path: str = "") -> None:
    """Nested states are equal bit by bit."""
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert list(one) == list(other), path
        for key in one:
            assert_same(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), path
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{path}/{i}")
    else:
        assert one == other, path


# -- train --


def debug_args(dataset: Path, algo: str, *settings: str) -> list[str]:
    return [
        *("--algo", algo, "--dataset", str(dataset), "--workers", "0", "--debug", "--json"),
        *("--name", "mine", "--set", 'observation.modalities.obs.low_dim=["flat"]'),
        *(*LAYERS[algo], "train.batch_size=16", "experiment.render_video=false", *settings),
    ]


def assert_layout(result: dict[str, Any], base: Path) -> None:
    """The run's folder is laid out as robomimic's, and the result says where its files are."""
    run = Path(result["run_dir"])
    assert run.parent == base / "mine"
    assert {p.name for p in run.iterdir()} >= {"models", "videos", "logs", "config.json"}
    assert {p.name for p in (run / "logs").iterdir()} >= {"log.txt", "tb", "learning_curve.png"}
    last, best = Path(result["last_checkpoint"]), Path(result["best_checkpoint"])
    assert last == run / "models" / "model_epoch_2.pth"
    assert best.parent == run / "models"
    models = {p.name for p in (run / "models").iterdir()}
    listed = json.loads((run / "models" / "checkpoints.json").read_text())["checkpoints"]
    assert models == {"checkpoints.json", *(entry["file"] for entry in listed)}
    assert {last.name, best.name} <= models
    assert result["metrics"]["step"] == 2 * 3
    assert result["metrics"]["Rollout/Horizon/Hopper-v5"] <= 10
    assert json.loads((run / "config.json").read_text())["experiment"]["name"] == "mine"


@pytest.mark.parametrize("algo", ["bc", "td3_bc"])
def test_train(cli, hopper, tmp_path, algo):
    ran = cli("train", *debug_args(hopper, algo, "mlflow.enabled=false"))
    assert ran.status == 0, ran.err
    assert ran.err == ""
    assert_layout(ran.result, tmp_path / f"{algo}_trained_models")
    assert ran.result["mlflow_run_id"] is None


def test_train_as_robomimic_calls_it(hopper, tmp_path):
    args = ["-m", "raymimic.scripts.train", *debug_args(hopper, "td3_bc")]
    ran = run_process(*args, cwd=tmp_path)
    assert ran.status == 0, ran.err
    base = tmp_path / "td3_bc_trained_models"
    assert_layout(ran.result, base)
    saved = json.loads((Path(ran.result["run_dir"]) / "mlflow_run.json").read_text())
    assert ran.result["mlflow_run_id"] == saved["run_id"]
    assert (base / "mine" / "mlflow.db").exists()


def test_train_from_a_file(cli, hopper, tmp_path):
    ran = cli(*train_args(hopper), "--json")
    config = str(Path(ran.result["run_dir"]) / "config.json")
    again = cli("train", "--config", config, "--json")
    assert again.result["run_dir"] != ran.result["run_dir"]
    assert_same(state_of(again), state_of(ran))


# -- resume --


def test_resume_with_more_epochs_equals_an_uninterrupted_run(cli, hopper):
    whole = state_of(cli(*train_args(hopper, "train.num_epochs=4"), "--json"))
    assert whole["epoch"] == 4

    first = cli(*train_args(hopper), "--name", "short", "--json")
    args = ["--algo", "td3_bc", "--name", "short", "--resume"]
    resumed = cli("train", *args, "--json", "--set", "train.num_epochs=4")
    assert resumed.result["run_dir"] == first.result["run_dir"]
    assert_same(state_of(resumed), whole)


def test_resume_with_a_config_file_takes_the_epochs_from_it(cli, hopper, tmp_path):
    first = cli(*train_args(hopper), "--json")
    config = json.loads((Path(first.result["run_dir"]) / "config.json").read_text())
    config["train"]["num_epochs"] = 3
    (tmp_path / "mine.json").write_text(json.dumps(config))
    resumed = cli("train", "--config", "mine.json", "--resume", "--json")
    assert resumed.result["run_dir"] == first.result["run_dir"]
    assert state_of(resumed)["epoch"] == 3
    again = cli("train", "--resume", first.result["run_dir"], "--json")
    assert again.result["last_checkpoint"] == resumed.result["last_checkpoint"]


def test_resume_after_a_kill_equals_an_uninterrupted_run(cli, hopper, tmp_path):
    settings = ["experiment.epoch_every_n_steps=100", "train.num_epochs=5"]
    args = train_args(hopper, *settings, "ray.commit_interval_s=0")
    whole = state_of(cli(*args, "--name", "whole", "--json"))

    killed = subprocess.Popen(
        [sys.executable, "-m", "raymimic", *args, "--name", "killed"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    folder = tmp_path / "td3_bc_trained_models" / "killed"
    deadline = time.monotonic() + 100
    while not list(folder.glob("*/models/model_epoch_2.pth")) and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL  # it had not ended yet

    resumed = cli("train", "--algo", "td3_bc", "--name", "killed", "--resume", "--json")
    assert len(list(folder.iterdir())) == 1
    assert_same(state_of(resumed), whole)


@pytest.mark.parametrize("store", ["memory://runs", "file://{tmp_path}/store"])
def test_storage(cli, hopper, tmp_path, store):
    storage = f"ray.storage_path={store.format(tmp_path=tmp_path)}"
    whole = state_of(cli(*train_args(hopper, "train.num_epochs=3"), "--json"))
    first = cli(*train_args(hopper, storage), "--json")
    assert first.result["run_dir"].startswith(
        storage.partition("=")[2].removeprefix("file://") + "/test/"
    )
    assert first.result["last_checkpoint"].startswith(first.result["run_dir"] + "/models/")

    resume = ["train", "--algo", "td3_bc", "--resume", "--json"]
    resumed = cli(*resume, "--set", storage, "train.num_epochs=3")
    assert resumed.result["run_dir"] == first.result["run_dir"]
    assert_same(state_of(resumed), whole)
    # Where no local folder is left, the storage is enough.
    again = cli("train", "--resume", first.result["run_dir"], "--json")
    assert_same(state_of(again), whole)


def test_runs_of_one_second_share_no_folder(tmp_path):
    config = config_factory("bc")
    folders = []
    for storage in (None, "memory://one", "memory://other", None):
        with config.values_unlocked():
            config.train.output_dir = str(tmp_path)
            config.ray.storage_path = storage
        folders.append(RunFolder.create(config).local)
    assert len(set(folders)) == 4


# -- the other commands --


def test_evaluate_gives_the_same_episodes_again(cli, hopper):
    ckpt = cli(*train_args(hopper), "--json").result["last_checkpoint"]

    def evaluate(seed: int) -> list[dict[str, Any]]:
        args = ["--actors", "0", "--episodes", "3", "--horizon", "40", "--seed", str(seed)]
        ran = cli("evaluate", ckpt, *args, "--json", "out.json")
        assert ran.status == 0, ran.err
        for word in ("mean", "median", "interquartile mean", "95 % interval", "success rate"):
            assert word in ran.out
        report = json.loads(Path("out.json").read_text())
        returns = [episode["episode_return"] for episode in report["episodes"]]
        assert report["summary"]["Return"] == pytest.approx(sum(returns) / 3)
        for episode in report["episodes"]:
            assert episode.pop("seconds") > 0
        return report["episodes"]

    one, again, other = evaluate(0), evaluate(0), evaluate(1)
    assert one == again
    assert len(one) == 3
    assert not {e["seed"] for e in one} & {e["seed"] for e in other}


def test_config(cli):
    ran = cli("config", "td3_bc")
    assert ran.status == 0
    assert "num_workers" in ran.out
    (alpha,) = [line for line in ran.out.splitlines() if "alpha" in line]
    assert "2.5" in alpha
    assert len(alpha.split("#")[1]) > 10  # its comment


def test_dataset_make_and_info(cli, tmp_path):
    args = ["--expert", "1", "--medium", "1", "--procs", "1"]
    ran = cli("dataset", "make", "walker2d-medium-expert", *args)
    assert ran.status == 0, ran.err
    path, expert, medium = ran.out.splitlines()
    assert path == "dataset: walker2d_medium_expert.hdf5"
    assert expert.startswith("expert: ")
    assert "transitions in 1 episodes, mean return " in medium

    ran = cli("dataset", "info", "walker2d_medium_expert.hdf5")
    assert ran.status == 0, ran.err
    assert "2 demos" in ran.out
    assert "obs/flat [17]" in ran.out
    assert "filter key 'expert': 1 demos" in ran.out


# -- what is imported when --


def test_help_imports_nothing_heavy(tmp_path):
    code = "import sys, raymimic.cli\ntry: raymimic.cli.main(['train', '--help'])\nfinally: "
    code += "print([m for m in ('torch', 'ray', 'mlflow', 'h5py', 'numpy') if m in sys.modules])"
    ran = run_process("-c", code, cwd=tmp_path)
    assert ran.status == 0
    assert "--workers" in ran.out
    assert ran.out.splitlines()[-1] == "[]"


@pytest.mark.parametrize("package", ["algo", "models", "data", "envs", "config", "utils"])
def test_parts_that_know_neither_ray_nor_mlflow(package):
    files = list((PACKAGE / package).rglob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            found = {name.partition(".")[0] for name in names} & {"ray", "mlflow"}
            assert not found, f"{file}, line {node.lineno}"
