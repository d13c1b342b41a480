"""The promises of the command line when nothing goes wrong."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checks import assert_same, state_of
from tiny import LAYERS, run_process, train_args
from waiting import wait_for

from raymimic.config import config_factory
from raymimic.training.run_folder import RunFolder

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
    assert {p.name for p in run.iterdir()} >= {
        *("models", "videos", "logs", "config.json"),
        *("checkpoints.json", "epochs.jsonl", "evaluations.jsonl", "last.pth"),
    }
    assert {p.name for p in (run / "logs").iterdir()} >= {"log.txt", "tb", "learning_curve.png"}
    last, best = Path(result["last_checkpoint"]), Path(result["best_checkpoint"])
    assert last == run / "models" / "model_epoch_2.pth"
    assert best.parent == run / "models"
    models = {p.name for p in (run / "models").iterdir()}
    listed = json.loads((run / "checkpoints.json").read_text())["checkpoints"]
    assert models == {entry["file"] for entry in listed}
    assert (run / "last.pth").samefile(last)
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


@pytest.mark.mlflow
def test_train_as_robomimic_calls_it(hopper, tmp_path):
    args = ["-m", "raymimic.scripts.train", *debug_args(hopper, "td3_bc")]
    ran = run_process(*args, cwd=tmp_path)
    assert ran.status == 0, ran.err
    base = tmp_path / "td3_bc_trained_models"
    assert_layout(ran.result, base)
    saved = json.loads((Path(ran.result["run_dir"]) / "mlflow_run.json").read_text())
    assert ran.result["mlflow_run_id"] == saved["run_id"]
    assert (tmp_path / "mlflow.db").exists()


def test_train_from_a_file(cli, hopper, tmp_path):
    ran = cli(*train_args(hopper), "--json")
    config = str(Path(ran.result["run_dir"]) / "config.json")
    again = cli("train", "--config", config, "--json")
    assert again.result["run_dir"] != ran.result["run_dir"]
    assert_same(state_of(again), state_of(ran))


# -- resume --


@pytest.mark.parametrize(
    "settings", [[], ["experiment.validate=true", "train.validation_fraction=0.3"]]
)
def test_resume_with_more_epochs_equals_an_uninterrupted_run(cli, hopper, settings):
    ran = cli(*train_args(hopper, *settings, "train.num_epochs=4"), "--json")
    whole = state_of(ran)
    assert whole["epoch"] == 4
    assert ("Valid/Loss" in ran.result["metrics"]) == bool(settings)

    first = cli(*train_args(hopper, *settings), "--name", "short", "--json")
    args = ["--algo", "td3_bc", "--name", "short", "--resume"]
    resumed = cli("train", *args, "--json", "--set", "train.num_epochs=4")
    assert resumed.result["run_dir"] == first.result["run_dir"]
    assert "training goes on after epoch 2 of 4" in resumed.out
    assert_same(state_of(resumed), whole)
    metrics = [one.result["metrics"].get("Valid/Loss") for one in (resumed, ran)]
    assert metrics[0] == metrics[1]


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
    args = train_args(hopper, "experiment.epoch_every_n_steps=100", "ray.commit_interval_s=0")
    killed = subprocess.Popen(
        [sys.executable, "-m", "raymimic", *args, "train.num_epochs=100000", "--name", "killed"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )
    folder = tmp_path / "td3_bc_trained_models" / "killed"
    try:
        wait_for(lambda: list(folder.glob("*/models/model_epoch_*.pth")), "a checkpoint")
    finally:
        killed.kill()
    assert killed.wait() == -signal.SIGKILL  # it had not ended yet
    # With a margin for a checkpoint that is written but not listed yet.
    written = folder.glob("*/models/model_epoch_*.pth")
    epochs = 2 + max(int(path.stem.rpartition("_")[2]) for path in written)

    resume = ["--algo", "td3_bc", "--name", "killed", "--resume", "--json"]
    resumed = cli("train", *resume, "--set", f"train.num_epochs={epochs}")
    assert len(list(folder.iterdir())) == 1
    whole = cli(*args, f"train.num_epochs={epochs}", "--name", "whole", "--json")
    assert_same(state_of(resumed), state_of(whole))


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


@pytest.mark.slow
def test_evaluate_gives_the_same_episodes_again(cli, hopper):
    ckpt = cli(*train_args(hopper), "--json").result["last_checkpoint"]

    def evaluate(seed: int, *more: str) -> list[dict[str, Any]]:
        args = ["--actors", "0", "--episodes", "3", "--horizon", "40", "--seed", str(seed), *more]
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
    blind = evaluate(0, "--blank", "flat")
    assert [e["seed"] for e in blind] == [e["seed"] for e in one]
    assert [e["episode_return"] for e in blind] != [e["episode_return"] for e in one]
    wrong = cli("evaluate", ckpt, "--blank", "flt")
    assert wrong.status == 2
    assert "--blank 'flt': the policy reads no such observation; did you mean 'flat'?" in wrong.err


def test_config(cli):
    ran = cli("config", "td3_bc")
    assert ran.status == 0
    assert "num_workers" in ran.out
    (alpha,) = [line for line in ran.out.splitlines() if "alpha" in line]
    assert "2.5" in alpha
    assert len(alpha.split("#")[1]) > 10  # its comment


def test_dataset_make_and_info(cli, tmp_path):
    args = ["--expert", "1", "--medium", "1", "--actors", "0"]
    ran = cli("dataset", "make", "walker2d-medium-expert", *args)
    assert ran.status == 0, ran.err
    path, expert, medium, valid = ran.out.splitlines()
    assert path == "dataset: walker2d_medium_expert.hdf5"
    assert expert.startswith("expert: ")
    assert "transitions in 1 episode, mean return " in medium
    assert valid.startswith("no filter key 'valid': the demos are too few")

    ran = cli("dataset", "info", "walker2d_medium_expert.hdf5")
    assert ran.status == 0, ran.err
    assert "2 demos" in ran.out
    assert "obs/flat [17]" in ran.out
    assert "filter key 'expert': 1 demo" in ran.out


# -- imports --


def test_help_imports_nothing_heavy(tmp_path):
    code = "import sys, raymimic.cli\ntry: raymimic.cli.main(['train', '--help'])\nfinally: "
    code += "print([m for m in ('torch', 'ray', 'mlflow', 'h5py', 'numpy') if m in sys.modules])"
    ran = run_process("-c", code, cwd=tmp_path)
    assert ran.status == 0
    assert "--workers" in ran.out
    assert ran.out.splitlines()[-1] == "[]"
