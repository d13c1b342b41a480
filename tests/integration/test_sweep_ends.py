"""Sweeps that end early, and what their records say then."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from test_mlflow_server import Server, history, wait_for, warnings_in
from test_sweep import RETURN, SWEEP, Tune
from tiny import write_hopper

from raymimic.sweep.board import Board
from raymimic.sweep.folder import SweepFolder
from raymimic.sweep.mlflow_sweep import SweepRecords
from raymimic.sweep.result import TrialResult
from raymimic.sweep.spec import SweepSpec, Trial
from raymimic.tracking.mlflow_tracker import MLflowTracker, sync

FACTS = {"algo": "td3_bc", "dataset": "hopper.hdf5"}
ENDLESS = SWEEP | {"seeds": [1], "set": SWEEP["set"] | {"train.num_epochs": 100_000}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


def wait_for_scores(tune: Tune, trials: int) -> None:
    def scored() -> bool:
        assert tune.process.poll() is None, tune.process.communicate()
        try:
            return sum(len(r["curve"]) >= 2 for r in tune.results().values()) >= trials
        except (ValueError, OSError):
            return False

    wait_for(scored, 240, f"{trials} trials to have scores")


def test_an_asked_end_is_recorded(server: Server, tmp_path: Path) -> None:
    sent, status = signal.SIGTERM, 143  # as clusters end what they run
    server.start()
    name = f"asked_{status}"
    where = {"mlflow.tracking_uri": server.uri, "mlflow.experiment_name": name}
    tune = Tune(tmp_path, name, ENDLESS | {"set": ENDLESS["set"] | where})
    try:
        wait_for_scores(tune, 1)
        family = psutil.Process(tune.process.pid).children(recursive=True)
        asked = [tune.process.pid]
        if sent == signal.SIGINT:  # which a terminal sends to all processes of its foreground job
            asked += [p.pid for p in family if os.getpgid(p.pid) == os.getpgid(tune.process.pid)]
        for pid in asked:
            os.kill(pid, sent)
        _, said = tune.process.communicate(timeout=120)
        assert tune.process.returncode == status
        assert not psutil.wait_procs(family, timeout=30)[1]
    finally:
        if tune.process.poll() is None:
            tune.kill()
    assert said.splitlines()[-1].endswith("; --resume goes on from the last checkpoint")
    assert "Traceback" not in said
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1 + len(tune.results())
    assert {run.info.status for run in runs} == {"KILLED"}
    # Nobody stopped these trials: a resumed sweep goes on with them.
    assert {result["status"] for result in tune.results().values()} == {"running"}


def test_a_sweep_that_cannot_write_says_so_and_ends(tmp_path: Path) -> None:
    tune = Tune(tmp_path, "full", ENDLESS | {"set": ENDLESS["set"] | {"mlflow.enabled": False}})
    try:
        wait_for_scores(tune, 1)
        path = tune.sweep_dir / "results.jsonl"
        resource.prlimit(tune.process.pid, resource.RLIMIT_FSIZE, (path.stat().st_size,) * 2)
        _, said = tune.process.communicate(timeout=120)
    finally:
        if tune.process.poll() is None:
            tune.kill()
    assert tune.process.returncode == 2
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
    return SweepSpec.from_dict(content | changes)


SEARCH = """
import sys, time
import raymimic.sweep.folder as folder
from raymimic.sweep.board import Board
from raymimic.sweep.mlflow_sweep import SweepRecords
from raymimic.sweep.spec import SweepSpec
folder._NOTE_EVERY_S = 0.1
spec = SweepSpec.from_file(sys.argv[1])
board = Board(spec, folder.SweepFolder.create(spec), SweepRecords(spec, {}), quiet=True)
for _ in range(1000):
    assert not board.budget.stop_all()
    time.sleep(0.05)
    print(".", flush=True)
"""


def test_hours_count_over_a_kill(tmp_path: Path) -> None:
    off = {"mlflow.enabled": False}
    spec = spec_of(tmp_path, budget={"hours": 4 / 3600}, set=off)
    (tmp_path / "s.json").write_text(json.dumps(spec.to_dict()))
    command = [sys.executable, "-c", SEARCH, str(tmp_path / "s.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as search:
        assert search.stdout is not None
        for _ in range(30):
            assert search.stdout.readline() == ".\n"
        search.kill()
    folder = SweepFolder.find(spec)
    board = Board(spec, folder, SweepRecords(spec, {}), quiet=True)
    used = json.loads((folder.local / "clock.json").read_text())["seconds"]
    assert used >= 30 * 0.05 - 0.2
    wait_for(board.budget.stop_all, 4 - used + 1, "the rest of the hours")
    assert board.budget.reason == "the sweep's 0.00111111 hours were over"


# -- a server that is not there --


def result_of(trial: Trial, run_dir: Path, status: str) -> TrialResult:
    return TrialResult(
        trial_id=trial.trial_id,
        setting_id=trial.setting_id,
        setting=trial.setting,
        seed=trial.seed,
        status=status,  # type: ignore[arg-type]
        curve=[(20, 1.0)],
        best=1.0,
        last=1.0,
        best_checkpoint=None,
        run_dir=str(run_dir),
        episodes=2,
    )


def end_trials(records: SweepRecords, folder: SweepFolder, trials: dict[int, Trial]) -> None:
    for number, trial in trials.items():
        records.open(trial)
        records.log(trial.trial_id, [(2, 40, {RETURN: float(number)})])
        records.close(trial, result_of(trial, folder.local, "finished"))


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
        assert run.data.metrics[RETURN] == trials.index(run.data.tags["trial"])
    assert parent.data.params["space.algo.alpha"] == '{"grid": [0.5, 2.5]}'
    assert parent.data.params["seeds"] == "[1, 2]"
    assert len(parent.data.params) < 30


def test_what_a_dead_server_missed_of_a_sweep_is_synced(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.kill()
    where = {"mlflow.tracking_uri": server.uri, "mlflow.experiment_name": "synced"}
    spec = spec_of(tmp_path, set=where)
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
    check_runs(server, "synced", spec)
    assert sync(folder.local).delivered == 0


def test_numbers_of_a_longer_search_replace_those_of_a_shorter(
    server: Server, tmp_path: Path
) -> None:
    server.start()
    run_id = None
    for numbers in ({1: 3.0}, {1: 3.0}, {1: 2.0, 2: 4.0}):
        tracker = MLflowTracker(server.uri, "numbers", finish_deadline_s=60)
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
