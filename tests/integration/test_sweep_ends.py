"""Sweeps that end early, and their records."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from mlflow_server import Server, history, warnings_in
from sweeps import RETURN, SWEEP, Tune, result_of
from tiny import PROGRAMS, write_hopper
from waiting import DEADLINE_S

from raymimic.sweep.spec.sweep_file import sweep_from_dict
from raymimic.sweep.spec.sweep_spec import SweepSpec, Trial
from raymimic.sweep.trials import folder as folders
from raymimic.sweep.trials.folder import SweepFolder
from raymimic.sweep.trials.ledger import TrialLedger
from raymimic.sweep.trials.records import SweepRecords
from raymimic.tracking.mlflow_tracker import MLflowTracker, sync

FACTS = {"algo": "td3_bc", "dataset": "hopper.hdf5"}
ENDLESS = SWEEP | {"seeds": [1], "set": SWEEP["set"] | {"train.num_epochs": 100_000}}


def wait_for_scores(tune: Tune, trials: int) -> None:
    tune.wait_for(
        lambda results: sum(len(r["curve"]) >= 2 for r in results.values()) >= trials,
        f"{trials} trials to have scores",
    )


@pytest.mark.ray
def test_an_asked_end_is_recorded(tune: Callable[..., Tune], server: Server) -> None:
    server.start()
    where = {"mlflow.tracking_uri": server.uri, "mlflow.experiment_name": "asked"}
    sweep = tune("asked", ENDLESS | {"set": ENDLESS["set"] | where}, "--max-concurrent", "2")
    wait_for_scores(sweep, 2)  # of all trials, so that none is just being started
    family = psutil.Process(sweep.process.pid).children(recursive=True)
    sweep.process.terminate()  # as clusters end their jobs
    _, said = sweep.process.communicate(timeout=DEADLINE_S)
    assert sweep.process.returncode == 143
    assert not psutil.wait_procs(family, timeout=DEADLINE_S)[1]
    assert said.splitlines()[-1].endswith("; --resume goes on from the last checkpoint")
    assert "Traceback" not in said
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("asked")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1 + len(sweep.results())
    assert {run.info.status for run in runs} == {"KILLED"}
    # Nobody stopped these trials: a resumed sweep goes on with them.
    assert {result["status"] for result in sweep.results().values()} == {"running"}


@pytest.mark.ray
def test_a_sweep_that_cannot_write_says_so_and_ends(tune: Callable[..., Tune]) -> None:
    sweep = tune("full", ENDLESS | {"set": ENDLESS["set"] | {"mlflow.enabled": False}})
    wait_for_scores(sweep, 1)
    path = sweep.sweep_dir / "results.jsonl"
    resource.prlimit(sweep.process.pid, resource.RLIMIT_FSIZE, (path.stat().st_size,) * 2)
    _, said = sweep.process.communicate(timeout=DEADLINE_S)
    assert sweep.process.returncode == 2
    assert said.splitlines()[-1] == (
        f"raymimic: error: cannot write '{path}': File too large; make room there, then --resume "
        "goes on with the sweep"
    )
    assert "Traceback" not in said


# -- hours --


def spec_of(tmp_path: Path, **changes: Any) -> SweepSpec:
    data = tmp_path / "hopper.hdf5"
    content = SWEEP | {
        "name": "s",
        "dataset": str(data if data.exists() else write_hopper(data)),
        "set": SWEEP["set"] | {"train.output_dir": str(tmp_path / "out")} | changes.pop("set", {}),
    }
    return sweep_from_dict(content | changes)


@pytest.mark.slow
def test_hours_count_over_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    off = {"mlflow.enabled": False}
    spec = spec_of(tmp_path, budget={"hours": 0.5}, set=off)
    (tmp_path / "s.json").write_text(json.dumps(spec.to_dict()))
    command = [sys.executable, PROGRAMS / "use_hours.py", str(tmp_path / "s.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as search:
        assert search.stdout is not None
        for _ in range(10):
            assert search.stdout.readline() == ".\n"
        search.kill()
    now = [0.0]
    monkeypatch.setattr(folders, "time", SimpleNamespace(monotonic=lambda: now[0]))
    folder = SweepFolder.find(spec)
    board = TrialLedger(spec, folder, SweepRecords(spec, {}), quiet=True)
    used = json.loads((folder.local / "clock.json").read_text())["seconds"]
    assert used >= 10 * 0.05 - 0.2
    now[0] = 1800 - used - 1
    assert not board.budget.stop_all()
    now[0] = 1800 - used + 1
    assert board.budget.stop_all()
    assert board.budget.reason == "the sweep's 0.5 hours were over"


# -- a server that is not there --


def end_trials(records: SweepRecords, folder: SweepFolder, trials: dict[int, Trial]) -> None:
    for number, trial in trials.items():
        records.open(trial)
        records.log(trial.trial_id, [(2, 40, {RETURN: float(number)}, {})])
        records.close(
            trial,
            result_of(
                trial, curve=[(20, 1.0)], best=1.0, last=1.0, episodes=2, run_dir=str(folder.local)
            ),
        )


def check_runs(server: Server, experiment: str, spec: SweepSpec) -> None:
    client = MlflowClient(server.uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    (parent,) = (run for run in runs if "trial" not in run.data.tags)
    children = [run for run in runs if run is not parent]
    trials = [trial.trial_id for trial in spec.trials()]
    assert sorted(run.data.tags["trial"] for run in children) == sorted(trials)
    for run in children:
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        value = run.data.metrics["Rollout/Hopper-v5/Return"]
        assert value == trials.index(run.data.tags["trial"])
    assert parent.data.params["space.algo.alpha"] == '{"grid": [0.5, 2.5]}'
    assert parent.data.params["seeds"] == "[1]"
    assert len(parent.data.params) < 30


@pytest.mark.mlflow
def test_what_a_dead_server_missed_of_a_sweep_is_synced(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.kill()
    where = {"mlflow.tracking_uri": server.uri, "mlflow.experiment_name": "sweep_synced"}
    spec = spec_of(tmp_path, seeds=[1], set=where)
    folder, records = SweepFolder.create(spec), SweepRecords(spec, FACTS)
    with records.of(folder):
        end_trials(records, folder, dict(enumerate(spec.trials())))
    outage, rest = warnings_in(caplog)
    assert f"MLflow at {server.uri} cannot be reached" in outage
    assert rest.endswith(f"deliver the rest with: raymimic mlflow sync {folder.local}")
    left = sync(folder.local).left
    server.start()
    report = sync(folder.local)
    assert (report.delivered, report.left, report.reason) == (left, 0, "")
    check_runs(server, "sweep_synced", spec)
    assert sync(folder.local).delivered == 0


@pytest.mark.mlflow
def test_numbers_of_a_longer_search_replace_those_of_a_shorter(
    server: Server, tmp_path: Path
) -> None:
    server.start()
    run_id = None
    for numbers in ({1: 3.0}, {1: 3.0}, {1: 2.0, 2: 4.0}):
        tracker = MLflowTracker(server.uri, "numbers", finish_deadline_s=DEADLINE_S)
        tracker.start(tmp_path, {}, {})
        for step, value in numbers.items():
            tracker.log_numbers(step, {"expected_online_performance/best": value})
        tracker.finish("FINISHED")
        run_id = tracker.run_id
    assert run_id is not None
    points = history(server, run_id, "expected_online_performance/best")
    assert sorted(points) == [(1, 2.0), (1, 3.0), (2, 4.0)]
    assert points.index((1, 3.0)) < points.index((1, 2.0))
    assert "gradient_steps" not in MlflowClient(server.uri).get_run(run_id).data.metrics
