"""Small real sweeps: the driver killed and resumed, one real MLflow server, every scheduler."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_mlflow_server import Server
from tiny import write_hopper

DEADLINE_S = 600.0
EPOCHS, RATE, STEPS = 12, 2, 20
RETURN = "Rollout/Return/Hopper-v5"

SWEEP = {
    "algo": "td3_bc",
    "set": {
        "algo.actor.layer_dims": [8, 8],
        "algo.critic.layer_dims": [8, 8],
        "observation.modalities.obs.low_dim": ["flat"],
        "experiment.epoch_every_n_steps": STEPS,
        "experiment.rollout.n": 2,
        "experiment.rollout.horizon": 15,
        "experiment.rollout.rate": RATE,
        "train.batch_size": 16,
        "train.num_epochs": EPOCHS,
        "train.cuda": False,
        "train.output_dir": "out",
    },
    "space": {"algo.alpha": {"grid": [0.5, 2.5]}},
    "seeds": [1, 2],
    "final_episodes": 3,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


class Tune:
    """`raymimic tune` in a process of its own.

    Args:
        folder: where it runs.
        name: of the sweep.
        sweep: content of its file; or none, where `args` say what to run.
        args: more of them.
    """

    def __init__(self, folder: Path, name: str, sweep: dict[str, Any] | None, *args: str) -> None:
        self.folder, self.name = folder, name
        data = folder / "hopper.hdf5"
        if not data.exists():
            write_hopper(data)
        if sweep is not None:
            (folder / f"{name}.yaml").write_text(json.dumps(sweep | {"dataset": str(data)}))
            args = (f"{name}.yaml", *args)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "raymimic", "tune", "--json", *args],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    @property
    def sweep_dir(self) -> Path:
        (found,) = (self.folder / "out" / self.name).glob("*/sweep.json")
        return found.parent

    def results(self) -> dict[str, dict[str, Any]]:
        """The last line of each trial."""
        lines = (self.sweep_dir / "results.jsonl").read_text().splitlines()
        return {result["trial_id"]: result for result in map(json.loads, lines)}

    def wait_until_one_has_ended_and_one_runs(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.process.communicate()
            with contextlib.suppress(ValueError, OSError):
                states = [(r["status"], len(r["curve"])) for r in self.results().values()]
                ended = any(status == "finished" for status, _ in states)
                if ended and any(s == "running" and n >= 2 for s, n in states):
                    return
            time.sleep(0.05)
        raise TimeoutError("no trial has ended")

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def outcome(self) -> dict[str, Any]:
        out, err = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == 0, err
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
        return result


@pytest.mark.parametrize("options", [{"asha": {}}, {"median": {"min_samples": 2}}])
def test_a_scheduler_stops_weak_settings(tmp_path: Path, options: dict[str, Any]) -> None:
    rate = "algo.optim_params.policy.learning_rate.initial"
    sweep = {
        "algo": "bc",
        "set": {
            **{key: value for key, value in SWEEP["set"].items() if not key.startswith("algo.")},
            "algo.actor_layer_dims": [8, 8],
            "experiment.rollout.enabled": False,
            "experiment.validate": True,
            "train.hdf5_filter_key": "train",
            "train.hdf5_validation_filter_key": "valid",
            "train.num_epochs": 4,
            "mlflow.enabled": False,
        },
        # Two that learn, and two that cannot.
        "space": {rate: {"grid": [1e-2, 3e-3, 1e-9, 1e-10]}},
        "seeds": [1],
        "scheduler": options,
        "metric": "Valid/Loss",
        "final_episodes": 0,
    }
    tune = Tune(tmp_path, next(iter(options)), sweep, "--max-concurrent", "2")
    outcome = tune.outcome()
    ends = {r["setting"][rate]: (r["status"], len(r["curve"])) for r in tune.results().values()}
    assert ("finished", 4) in (ends[1e-2], ends[3e-3])
    assert ends[1e-9][0] == ends[1e-10][0] == "stopped"
    assert max(ends[1e-9][1], ends[1e-10][1]) < 4
    assert outcome["table"][0]["setting"][rate] in (1e-2, 3e-3)
    assert Path(outcome["table"][0]["best_checkpoint"]).exists()


def test_optuna_tries_every_seed_of_each_setting_while_episodes_last(tmp_path: Path) -> None:
    huber, norm = "algo.critic.use_huber", "algo.critic.max_gradient_norm"
    sweep = SWEEP | {
        "space": {
            "algo.alpha": {"loguniform": [0.5, 10]},
            huber: {"choice": [True, False]},
            norm: {"uniform": [0.5, 2.0], "when": {huber: True}},
        },
        "search": "optuna",
        "budget": {"trials": 40, "episodes": 14},
        "set": SWEEP["set"] | {"mlflow.enabled": False, "train.num_epochs": 2 * RATE},
    }
    tune = Tune(tmp_path, "optuna", sweep, "--max-concurrent", "2")
    outcome = tune.outcome()
    results = tune.results().values()
    assert all((norm in result["setting"]) == result["setting"][huber] for result in results)
    stopped = [result for result in results if result["status"] == "stopped"]
    assert stopped
    assert {r["error"] for r in stopped} == {"the sweep's 14 evaluation episodes were played"}
    assert {r["status"] for r in results} == {"stopped", "finished"}
    # Two episodes an evaluation; the trials beside the last one may have played one more.
    assert 14 <= sum(result["episodes"] for result in results) <= 16
    best = outcome["table"][0]
    assert sorted(best["by_seed"]) == ["1", "2"]
    assert best["trials"] == {"finished": 2}
