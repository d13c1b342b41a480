"""Small sweeps: their content, a process that runs one, results of their trials."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny import write_hopper
from waiting import DEADLINE_S, wait_for

from raymimic.sweep.outcome.result import TrialResult
from raymimic.sweep.spec.sweep_file import sweep_from_dict
from raymimic.sweep.spec.sweep_spec import SweepSpec, Trial

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
        "ray.rollout_actors": 1,  # each is a process to start
    },
    "space": {"algo.alpha": {"grid": [0.5, 2.5]}},
    "seeds": [1, 2],
    "final_episodes": 3,
}


class Tune:
    """`raymimic tune` in a process of its own.

    Args:
        folder: where it runs.
        name: of the sweep.
        sweep: content of its file; or none, where `args` name the sweep.
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
        )

    @property
    def sweep_dir(self) -> Path:
        return self.found_in(self.folder / "out")

    def found_in(self, base: Path) -> Path:
        """Its folder in another one."""
        (found,) = (base / self.name).glob("*/sweep.json")
        return found.parent

    def results(self) -> dict[str, dict[str, Any]]:
        """The last line of each trial."""
        return results_in(self.sweep_dir)

    def wait_for(
        self, condition: Callable[[dict[str, dict[str, Any]]], object], what: str
    ) -> dict[str, dict[str, Any]]:
        """Returns the results once they fulfil a condition while the sweep runs."""
        results: dict[str, dict[str, Any]] = {}

        def holds() -> object:
            assert self.process.poll() is None, self.process.communicate()
            with contextlib.suppress(ValueError, OSError):  # there is no file, or half a line
                results.clear()
                results.update(self.results())
                return condition(results)
            return False

        wait_for(holds, what, interval_s=0.02)
        return results

    def kill(self) -> None:
        """Kills its driver, unless it has ended."""
        self.process.kill()
        self.process.communicate()

    def outcome(self) -> dict[str, Any]:
        out, err = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == 0, err
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
        return result


def results_in(sweep_dir: Path) -> dict[str, dict[str, Any]]:
    """The last line of each trial that a sweep's folder, or its copy, holds."""
    lines = (sweep_dir / "results.jsonl").read_text().splitlines()
    return {result["trial_id"]: result for result in map(json.loads, lines)}


def result_of(trial: Trial, **changes: Any) -> TrialResult:
    """A result of a trial, which has finished if no change says otherwise."""
    return replace(TrialResult.begun(trial, ""), **{"status": "finished"} | changes)


def small_spec(folder: Path, **changes: Any) -> SweepSpec:
    """A sweep of two settings and two seeds, whose data and results lie in a folder."""
    data = folder / "hopper.hdf5"
    content = {
        "name": "s",
        "algo": "td3_bc",
        "dataset": str(data if data.exists() else write_hopper(data)),
        "set": {
            "observation.modalities.obs.low_dim": ["flat"],
            "train.output_dir": str(folder / "out"),
            "mlflow.enabled": False,
        },
        "space": {"algo.alpha": {"grid": [1.0, 2.0]}},
        "seeds": [1, 2],
    }
    return sweep_from_dict(content | changes)
