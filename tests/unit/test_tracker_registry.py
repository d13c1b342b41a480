"""A tracker is one file and one line; trainings and sweeps tell it the same things."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sweeps import result_of, small_spec
from tiny import Ran, small_config, train_args, write_hopper

from raymimic.errors import ConfigError
from raymimic.sweep.outcome.report import SweepReport
from raymimic.sweep.outcome.table import SweepOutcome
from raymimic.sweep.trials.folder import SweepFolder
from raymimic.sweep.trials.records import SweepRecords
from raymimic.tracking.mlflow_tracker import MLflowTracker
from raymimic.tracking.registry import TRACKERS, register_tracker, trackers_for
from raymimic.tracking.tensorboard_tracker import TensorBoardTracker
from raymimic.tracking.tracker import RunInfo, Tracker

DOCS = Path(__file__).parents[2] / "docs" / "trackers.md"
# A user's module: writes one JSON line for each call into a file of the run's folder.
MODULE = """
import json

from raymimic.tracking import RunInfo, Tracker, register_tracker


@register_tracker("lines")
def make_tracker(config, run):
    return Lines(config.algo_name, run)


class Lines(Tracker):
    def __init__(self, algo, run):
        self.algo, self.run = algo, run

    def start(self, run_dir, config, tags):
        self.file = run_dir / "lines.jsonl"
        run_dir.mkdir(parents=True, exist_ok=True)
        self.write("start", self.algo, self.run.kind, self.run.name, sorted(tags))

    def write(self, *words):
        with self.file.open("a") as file:
            file.write(json.dumps(words) + "\\n")

    def log_epoch(self, epoch, step, metrics):
        self.write("epoch", epoch, step, sorted(metrics))

    def log_numbers(self, step, numbers):
        self.write("numbers", step, numbers)

    def log_note(self, text):
        self.write("note", text.splitlines()[0])

    def set_tags(self, tags):
        self.write("tags", tags)

    def finish(self, status):
        self.write("finish", status)

    def is_closed(self, run_dir):
        file = run_dir / "lines.jsonl"
        return not file.exists() or '"finish"' in file.read_text()

    def finish_sweep(self, status):
        self.write("finish_sweep", status)
"""


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The user's module `lines_tracker` in the current folder; unregistered afterwards."""
    (tmp_path / "lines_tracker.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(TRACKERS)
    yield
    TRACKERS.clear()
    TRACKERS.update(before)
    sys.modules.pop("lines_tracker", None)


def written(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]


def test_the_config_chooses_the_built_in_trackers() -> None:
    config = small_config("bc", **{"train.data": "x.hdf5"})
    run = RunInfo("x")
    kinds = [type(tracker) for tracker in trackers_for(config, run)]
    assert kinds == [MLflowTracker, TensorBoardTracker]
    # A sweep's runs have no event files.
    kinds = [type(tracker) for tracker in trackers_for(config, RunInfo("x", kind="sweep"))]
    assert kinds == [MLflowTracker]
    config.mlflow.enabled = False
    config.experiment.logging.log_tb = False
    assert trackers_for(config, run) == []
    config.mlflow.enabled = True
    config.mlflow.tracking_uri = "htp://host"
    with pytest.raises(ConfigError, match="unknown scheme 'htp'"):
        trackers_for(config, run)


def test_a_training_tells_users_trackers(
    lines: None, cli: Callable[..., Ran], tmp_path: Path
) -> None:
    data = write_hopper(tmp_path / "hopper.hdf5")
    documented = DOCS.read_text().split("```python\n")[1].split("```")[0]
    (tmp_path / "csv_tracker.py").write_text(documented)
    settings = ("train.num_epochs=2", "experiment.rollout.enabled=false")
    args = train_args(data, *settings)
    ran = cli(*args, "--import", "lines_tracker", "csv_tracker", "--json")
    assert ran.status == 0, ran.err
    (start, *others) = written(Path(ran.result["run_dir"]))
    assert start[:3] == ["start", "td3_bc", "training"]
    assert {"algo", "raymimic.dataset_digest", "raymimic.version.torch"} <= set(start[4])
    note = ["note", "**td3_bc** on `hopper.hdf5`"]  # at the beginning, and with the results
    assert [line[:2] for line in others] == [
        *(note, ["epoch", 1], ["epoch", 2], note, ["finish", "FINISHED"])
    ]
    assert any(name.startswith("Train/") for name in others[1][3])
    metrics = (Path(ran.result["run_dir"]) / "metrics.csv").read_text().splitlines()
    assert {line.split(",")[0] for line in metrics} == {"1", "2"}
    assert [line.split(",")[1] for line in metrics if line[0] == "1"] != []


def test_a_sweep_tells_a_users_tracker(lines: None, tmp_path: Path) -> None:
    import lines_tracker  # type: ignore[import-not-found] # noqa: F401

    spec = small_spec(tmp_path, seeds=[1])
    folder = SweepFolder.create(spec)
    records = SweepRecords(spec, {"algo": "td3_bc", "dataset": "hopper"})
    first, second = spec.trials()
    with records.of(folder):
        for trial in (first, second):
            records.open(trial)
            records.log(trial.trial_id, [(1, 10, {"Valid/Loss": 0.5}, {})])
        records.close(first, result_of(first))
    name = spec.name_of(first.setting)
    assert written(folder.local / "trials" / first.trial_id) == [
        ["start", "td3_bc", "trial", f"{name}_seed1", _TAGS],
        ["epoch", 1, 10, ["Valid/Loss"]],
        ["tags", {"status": "finished"}],
        ["finish", "FINISHED"],
    ]
    # A run that was still open at the end is closed as killed.
    assert written(folder.local / "trials" / second.trial_id)[-1] == ["finish", "KILLED"]
    assert written(folder.local) == [
        ["start", "td3_bc", "sweep", "s", ["algo", "dataset", "sweep"]],
        ["finish", "FINISHED"],
        ["finish_sweep", "FINISHED"],
    ]


def test_a_sweeps_run_is_described_by_its_results(lines: None, tmp_path: Path) -> None:
    import lines_tracker  # noqa: F401

    spec = small_spec(tmp_path, seeds=[1])
    folder = SweepFolder.create(spec)
    records = SweepRecords(spec, {"dataset": "hopper"})
    scores = {"curve": [(20, 1.0)], "best": 1.0, "last": 1.0, "episodes": 2}
    results = [result_of(trial, **scores) for trial in spec.trials()]
    with records.of(folder):
        records.report(SweepReport(SweepOutcome.of(spec, results), "headline", []), None)
    note = ["note", "**td3_bc** on `hopper`: 2 settings, seeds 1"]
    assert note in written(folder.local)


def test_a_trial_that_a_killed_driver_left_open_is_closed(lines: None, tmp_path: Path) -> None:
    import lines_tracker  # noqa: F401

    spec = small_spec(tmp_path, seeds=[1])
    folder = SweepFolder.create(spec)
    first, second = spec.trials()
    killed = SweepRecords(spec, {"dataset": "hopper"})
    killed._local = folder.local
    killed.open(first)  # the process ends here
    records = SweepRecords(spec, {"dataset": "hopper"})
    with records.of(folder):
        # Of the second there is no record to close.
        records.close_left_open([(trial, result_of(trial)) for trial in (first, second)])
    home = folder.local / "trials"
    assert [line[0] for line in written(home / first.trial_id)] == [
        *("start", "start", "tags", "finish")
    ]
    assert not (home / second.trial_id / "lines.jsonl").exists()
    with SweepRecords(spec, {"dataset": "hopper"}).of(folder):
        records.close_left_open([(first, result_of(first))])  # it is closed by now
    assert len(written(home / first.trial_id)) == 4


def test_mlflow_closes_a_trial_again_whose_folder_is_lost(tmp_path: Path) -> None:
    config = small_config("bc", **{"train.data": "x.hdf5"})
    (local,) = trackers_for(config, RunInfo("t", kind="trial"))
    (behind_a_uri,) = trackers_for(config, RunInfo("t", kind="trial", key="s3://b/s/trials/t"))
    assert local.is_closed(tmp_path)  # nothing was logged
    assert not behind_a_uri.is_closed(tmp_path)


def test_the_trials_of_a_sweep_go_to_the_store_of_its_own_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    sweep_dir = tmp_path / "out" / "s" / "20260101"
    sweep_dir.mkdir(parents=True)
    (sweep_dir.parent / "mlflow.db").touch()  # as sweeps of 0.1.0 have left it
    config = small_config("bc", **{"train.data": "x.hdf5"})
    (parent,) = trackers_for(config, RunInfo("s", kind="sweep"))
    assert isinstance(parent, MLflowTracker)
    monkeypatch.setattr(parent, "_spawn", lambda: None)  # nothing is delivered here
    parent.start(sweep_dir, {}, {})
    (child,) = trackers_for(config, RunInfo("t", kind="trial", sweep_dir=sweep_dir))
    assert isinstance(child, MLflowTracker)
    monkeypatch.setattr(child, "_spawn", lambda: None)
    child.start(sweep_dir / "trials" / "t", {}, {})
    assert parent.tracking_uri == child.tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_trackers_name_is_taken_once(lines: None) -> None:
    with pytest.raises(ConfigError, match=r"'mlflow' of .* is taken by raymimic\.tracking\.mlflow"):
        register_tracker("mlflow")(lambda config, run: None)


def test_a_factory_that_fails_is_named(lines: None) -> None:
    def broken(config: Any, run: RunInfo) -> Tracker:
        raise KeyError("TOKEN")

    register_tracker("broken")(broken)
    config = small_config("bc", **{"train.data": "x.hdf5"})
    with pytest.raises(ConfigError, match=r"tracker 'broken' .* KeyError: 'TOKEN'.*; fix it there"):
        trackers_for(config, RunInfo("x"))


def test_the_registry_loads_no_library() -> None:
    code = (
        "import sys, raymimic.tracking;"
        "raymimic.tracking.register_tracker;"
        "sys.exit(any(m in sys.modules for m in ('mlflow', 'torch', 'ray', 'tensorboardX')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


_TAGS = ["algo", "dataset", "seed", "setting", "sweep", "trial"]
