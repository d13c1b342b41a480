"""The driver as a state machine: events in, records, evaluations and messages out."""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from image_files import replace_key, write_cameras
from PIL import Image
from recording import RecordingTracker, ScriptedEvaluator
from tiny import small_config
from waiting import wait_for

from raymimic.checkpoints.logs import EvaluationLog
from raymimic.checkpoints.records import EpochRecord, Evaluation, KeptCheckpoint
from raymimic.envs.fit import TriedEnv
from raymimic.envs.seeds import evaluation_seeds
from raymimic.errors import DatasetError
from raymimic.recording.report_files import kept_report
from raymimic.rollout.episodes import Episode
from raymimic.rollout.evaluation import EvalResult, Video
from raymimic.tracking.figures import learning_curve
from raymimic.tracking.tracker import TrackerGroup
from raymimic.training.driver import Driver, raise_fatal
from raymimic.training.link import Committed, Fatal, Loading, MachineLoad, Mishap, Started
from raymimic.training.note import run_note
from raymimic.training.prepare import Prepared, prepare
from raymimic.training.progress import ProgressReporter
from raymimic.training.run import Run
from raymimic.training.run_folder import RunFolder

ENV = "Hopper-v5"
INFO = {
    "parameters": 10,
    "samples": 120,
    "split": "",
    "place": "the data take 1.0 MB: in memory",
    "cached": False,
    "device": "cpu",
    "action_range": [[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]],
    "steps_per_epoch": 5,
    "warnings": [],
}


@dataclass
class Stage:
    """A driver, and everything around it."""

    driver: Driver
    evaluator: ScriptedEvaluator
    tracker: RecordingTracker
    posted: list[Evaluation]
    out: io.StringIO
    folder: RunFolder

    def start(self, **fields: Any) -> None:
        given = {"epoch": 0, "info": INFO, "history": [], "evaluations": [], "pending": {}}
        self.driver.handle(Started(**given | fields))

    def finish_evaluation(self, returns: list[float | None], **fields: Any) -> None:
        """Ends the oldest pending evaluation; an episode without a return has failed."""
        job = self.evaluator.pending[0]
        episodes = [
            Episode.failed(seed, "it fell")
            if value is None
            else Episode(seed, value, 5, success=False, terminated=False, seconds=0.1)
            for seed, value in zip(job.seeds, returns, strict=True)
        ]
        self.evaluator.results.append(EvalResult(job, {ENV: episodes}, 1.0, **fields))
        self.driver.poll()


@pytest.fixture(scope="module")
def prepared(hopper: Path) -> Prepared:
    """A training with an evaluation of three episodes after each epoch."""
    settings = {
        "train.data": str(hopper),
        "train.num_epochs": 4,
        "mlflow.enabled": False,
        "experiment.epoch_every_n_steps": 5,
        "experiment.logging.log_tb": False,
        "experiment.rollout.n": 3,
        "experiment.rollout.rate": 1,
    }
    return prepare(small_config("td3_bc", **settings))


@pytest.fixture
def stage(prepared: Prepared, tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    stages: list[Stage] = []

    def make(prepared: Prepared = prepared, **settings: Any) -> Stage:
        config = prepared.config.deepcopy()
        with config.unlocked():
            config.train.output_dir = str(tmp_path)
            for key, value in settings.items():
                config.set_path(key, value)
        folder = RunFolder.create(config)
        evaluator, tracker, posted, out = ScriptedEvaluator(), RecordingTracker(), [], io.StringIO()
        run = Run(
            replace(prepared, config=config),
            folder,
            TrackerGroup([tracker]),
            ProgressReporter(4, stream=out),
            tags={"algo": "td3_bc"},
        )
        made = Stage(Driver(run, evaluator, posted.append), evaluator, tracker, posted, out, folder)
        stages.append(made)
        return made

    yield make
    for each in stages:
        each.folder.release()


def record(epoch: int) -> EpochRecord:
    return EpochRecord(epoch, 5 * epoch, {"Train/Loss": 1 / epoch, "Timing/steps_per_s": 9.0}, 0.0)


def test_records_begin_once_the_workers_have_loaded_everything(
    stage: Callable[..., Stage],
) -> None:
    made = stage()
    assert made.evaluator.tryout.envs.keys() == {ENV}
    assert made.tracker.calls == []
    assert not made.driver.started
    made.start()
    assert made.tracker.calls == [("start", made.folder.local, {"algo": "td3_bc"})]
    assert "training td3_bc (10 parameters) on 120 samples, device cpu" in made.out.getvalue()


def test_returns_and_losses_are_told_with_the_decimals_that_matter(
    stage: Callable[..., Stage],
) -> None:
    made = stage()
    made.start()
    made.driver.handle(Committed(2, "two.pth", [record(1), record(2)], evaluate=True))
    made.finish_evaluation([1234.56, 1234.56, 1234.56])
    assert f"{ENV} return 1235 [1235, 1235]\n" in made.out.getvalue()
    note = run_note(made.driver.config, "run", {2: made.posted[0]}, None)
    assert "| 1235 | [1235, 1235] |" in note


def test_the_load_of_workers_machines_is_logged_once_there_is_a_record(
    stage: Callable[..., Stage],
) -> None:
    made, loads = stage(), [{"system/two/cpu_utilization_percentage": n} for n in (50.0, 60.0)]
    made.driver.handle(MachineLoad(loads[0]))
    assert made.tracker.calls == []
    made.start()
    made.driver.handle(MachineLoad(loads[1]))
    assert made.tracker.calls[1:] == [("system", loads[1])]


def test_how_far_the_cache_is_stands_beside_the_task(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    staged = stage()
    for demos in range(150):
        staged.driver.handle(Loading(f"caching a.hdf5: {demos} of 150 demos"))
        now += 1.0
    staged.start()
    said = staged.out.getvalue().splitlines()
    task = "loading data and networks; waiting for the first reset of Hopper-v5"
    assert said[:3] == [  # as off a terminal: one line, and one each minute
        f"{task} (caching a.hdf5: 0 of 150 demos) …",
        f"{task} (caching a.hdf5: 60 of 150 demos) … 1 min 00 s",
        f"{task} (caching a.hdf5: 120 of 150 demos) … 2 min 00 s",
    ]
    assert "the data take 1.0 MB: in memory" in said


def test_a_mishap_of_several_workers_is_one_warning(stage: Callable[..., Stage]) -> None:
    made = stage()
    made.start()
    for _ in range(2):
        made.driver.handle(Mishap("the thermometer of two is broken"))
    assert made.out.getvalue().count("warning: the thermometer of two is broken\n") == 1
    assert made.driver.fatal is None


def test_epochs_are_logged_with_their_commit_and_an_evaluation_at_its_epoch(
    stage: Callable[..., Stage], prepared: Prepared
) -> None:
    made = stage()
    made.start()
    made.driver.handle(Committed(2, "two.pth", [record(1), record(2)], evaluate=True))
    assert [(epoch, step) for epoch, step, _ in made.tracker.epochs] == [(1, 5), (2, 10)]
    ((job, interrupted),) = made.evaluator.jobs
    assert (job.checkpoint, interrupted) == ("two.pth", False)
    assert list(job.seeds) == list(evaluation_seeds(prepared.config.train.seed, 2, 3))
    made.driver.handle(Committed(3, "three.pth", [record(3)], evaluate=False))

    made.finish_evaluation([10.0, None, 30.0])
    assert not made.driver.evaluating
    epoch, step, metrics = made.tracker.epochs[-1]
    assert (epoch, step) == (2, 10)
    assert metrics[f"Rollout/Return/{ENV}"] == 20.0
    assert metrics[f"Rollout/Failed_Episodes/{ENV}"] == 1.0
    (evaluation,) = made.posted
    assert (evaluation.epoch, evaluation.returns) == (2, {ENV: 20.0})
    assert evaluation.episodes == {ENV: [10.0, 30.0]}
    assert evaluation.step == 10
    first, failed, _ = evaluation.played[ENV]
    assert first == {
        **{"seed": job.seeds[0], "episode_return": 10.0, "length": 5},
        **{"success": False, "error": None},
    }
    assert failed == {
        **{"seed": job.seeds[1], "episode_return": None, "length": None},
        **{"success": None, "error": "it fell"},
    }
    assert made.tracker.episodes == {2: evaluation.played}
    assert EvaluationLog(made.folder.uri).read() == [evaluation]
    (line,) = (made.folder.local / "evaluations.jsonl").read_text().splitlines()
    assert json.loads(line)["returns"] == {ENV: 20.0}
    assert made.driver.metrics["Train/Loss"] == 1 / 3
    assert made.driver.metrics[f"Rollout/Return/{ENV}"] == 20.0
    assert made.driver.last_epoch == 3
    text = made.out.getvalue()
    assert f"warning: in epoch 2, {ENV}: 1 of 3 episodes failed (it fell)" in text
    assert f"evaluated epoch 2: {ENV} return 20.0" in text


def test_kept_checkpoints_are_models_once_and_those_that_went_are_named(
    stage: Callable[..., Stage], tmp_path: Path
) -> None:
    made = stage()
    made.start()
    kept = []
    for epoch in (1, 2):
        (tmp_path / f"{epoch}.pth").write_text("weights")
        kept.append(
            KeptCheckpoint(str(tmp_path / f"{epoch}.pth"), epoch, f"{epoch}" * 64, ("best",))
        )
    gone = KeptCheckpoint(str(tmp_path / "gone.pth"), 2, "3" * 64, ("best",))
    for number, now in enumerate((kept[:1], kept[:1], [kept[1], gone], []), start=1):
        made.driver.handle(Committed(number, "x.pth", [record(number)], evaluate=False, kept=now))
    calls = [call for call in made.tracker.calls if call[0] in {"model", "models"}]
    assert calls == [
        ("model", "1.pth", 1, 5),
        ("models", {"1" * 64: ("best",)}),
        ("model", "2.pth", 2, 10),
        ("models", {"2" * 64: ("best",), "3" * 64: ("best",)}),
        ("models", {}),
    ]


def test_a_restart_logs_and_plays_nothing_twice(stage: Callable[..., Stage]) -> None:
    made = stage()
    made.start()
    made.driver.handle(Committed(1, "one.pth", [record(1)], evaluate=True))
    made.driver.handle(Committed(2, "two.pth", [record(2)], evaluate=True))
    made.finish_evaluation([1.0, 2.0, 3.0])
    before = len(made.tracker.calls)
    # The workers were lost before they settled epoch 1, and while epoch 2 is played.
    made.start(epoch=2, history=[record(1), record(2)], pending={1: "one.pth", 2: "two.pth"})
    assert len(made.tracker.calls) == before
    assert [job.checkpoint for job, _ in made.evaluator.jobs] == ["one.pth", "two.pth"]
    assert [evaluation.epoch for evaluation in made.posted] == [1, 1]
    assert made.posted[0] == made.posted[1]
    assert "workers restarted; training goes on after epoch 2" in made.out.getvalue()


def test_a_resumed_run_is_told_again_and_its_pending_evaluation_played(
    stage: Callable[..., Stage],
) -> None:
    made = stage()
    metrics = {f"Rollout/Return_CI_{end}/{ENV}": 7.0 for end in ("Low", "High")}
    settled = Evaluation(1, metrics, {ENV: 7.0}, {ENV: 0.0}, {ENV: [7.0]})
    made.start(
        epoch=2, history=[record(1), record(2)], evaluations=[settled], pending={2: "two.pth"}
    )
    # The step of an evaluation by an earlier version is that of its epoch.
    assert [(epoch, step) for epoch, step, _ in made.tracker.epochs] == [(1, 5), (2, 10), (1, 5)]
    ((job, interrupted),) = made.evaluator.jobs
    assert (job.checkpoint, interrupted) == ("two.pth", True)
    assert made.posted == []
    # The terminal has it from the earlier process; the next epoch's line still says the return.
    assert "epoch 1" not in made.out.getvalue()
    assert "epoch 2/4" not in made.out.getvalue()
    made.driver.handle(Committed(4, "four.pth", [record(3), record(4)], evaluate=False))
    (line,) = [line for line in made.out.getvalue().splitlines() if line.startswith("epoch 3/4")]
    assert line.endswith(f"{ENV} return 7 [7, 7]")


def test_training_begins_once_the_environments_fit(stage: Callable[..., Stage]) -> None:
    made = stage()
    assert not made.driver.may_begin()
    made.start()
    made.evaluator.bounds = {ENV: TriedEnv([-1.0, -0.5, -1.0], [1.0, 1.0, 1.0])}
    assert made.driver.may_begin()
    (warning,) = [line for line in made.out.getvalue().splitlines() if "warning" in line]
    assert "component 1 of the data's actions goes from -1 to 1" in warning
    assert f"{ENV} takes -0.5 to 1: actions are clipped" in warning


def test_training_begins_untried_where_the_cluster_has_no_place(
    stage: Callable[..., Stage],
) -> None:
    made = stage(**{"ray.placement_timeout_s": 0.0})
    made.evaluator.placed = False
    assert made.driver.may_begin()
    assert made.driver.may_begin()
    assert made.out.getvalue().count("training begins before its environments were tried") == 1


def test_the_first_fatal_error_is_raised_as_it_was(stage: Callable[..., Stage]) -> None:
    made = stage()
    made.driver.handle(Fatal("DatasetError", "the data have changed", "in worker.py"))
    made.driver.handle(Fatal("TrainingError", "another rank follows", ""))
    assert made.driver.fatal is not None
    with pytest.raises(DatasetError, match="the data have changed") as raised:
        raise_fatal(made.driver.fatal)
    assert raised.value.__notes__ == ["in worker.py"]


def test_videos_lie_flat_and_go_with_their_checkpoint(stage: Callable[..., Stage]) -> None:
    made = stage()
    made.driver.envs = {"gym_pusht/PushT-v0": {}}
    for epoch in (3, 12):
        checkpoint = f"{epoch}.pth"
        made.driver.handle(Committed(epoch, checkpoint, [record(epoch)], evaluate=True))
        film = [Video("gym_pusht/PushT-v0", 1, b"film")]
        made.finish_evaluation([1.0, 2.0, 3.0], videos=film)
    videos = made.folder.local / "videos"
    names = ["gym_pusht-PushT-v0_epoch_12.mp4", "gym_pusht-PushT-v0_epoch_3.mp4"]
    assert sorted(path.name for path in videos.iterdir()) == names
    made.driver.finish()  # and no checkpoint is kept
    assert list(videos.iterdir()) == []


def test_the_learning_curve_has_a_title_and_the_data_as_reference(
    stage: Callable[..., Stage], hopper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Any, str]] = []

    def draw(history: Any, out: Path, references: Any, title: str) -> bool:
        drawn.append((references, title))
        return learning_curve(history, out, references, title)

    monkeypatch.setattr("raymimic.tracking.figures.learning_curve", draw)
    made = stage(**{"train.hdf5_filter_key": "train"})
    made.start()
    assert made.driver.draw_learning_curve() is None  # nothing has happened yet
    made.driver.handle(Committed(1, "one.pth", [record(1)], evaluate=True))
    made.finish_evaluation([10.0, 20.0, 30.0])
    path = made.driver.draw_learning_curve()
    assert path is not None
    assert path.exists()
    references, title = drawn[-1]
    # `prepared` trains on all demos.
    with h5py.File(hopper) as file:
        mean = np.mean([file[f"data/demo_{i}/rewards"][:].sum() for i in range(6)])
    assert references == {ENV: {"data": pytest.approx(mean)}}
    assert title == f"{made.driver.config.experiment.name} · td3_bc · hopper.hdf5 (train)"


def test_a_run_is_described_when_it_begins_and_with_its_results(
    stage: Callable[..., Stage],
) -> None:
    made = stage()
    made.start()
    assert len(made.tracker.notes) == 1
    assert f"raymimic train --resume {made.folder.uri}" in made.tracker.notes[0]
    made.driver.handle(Committed(1, "one.pth", [record(1)], evaluate=True))
    made.finish_evaluation([1.0, 2.0, 3.0])
    made.start(epoch=1)  # a worker was lost
    assert len(made.tracker.notes) == 1

    class Store:
        """Keeps the checkpoint of the first epoch as the best."""

        best = last = SimpleNamespace(epoch=1)

        def path(self, entry: Any) -> str:
            return f"/models/{entry.epoch}.pth"

    made.driver.describe(Store())  # type: ignore[arg-type]
    assert "Best checkpoint: return 2, 95 % interval [" in made.tracker.notes[1]
    assert "raymimic evaluate /models/1.pth" in made.tracker.notes[1]


def test_a_report_of_the_data_is_linked_if_there_is_one(
    stage: Callable[..., Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYMIMIC_CACHE", str(tmp_path / "cache"))
    made = stage()
    made.start()
    assert "report" not in made.out.getvalue()
    data = made.driver._data
    report = kept_report(data.paths[0], data.digest)
    report.parent.mkdir(parents=True)
    report.write_text("<html>")
    made = stage()
    made.start()
    assert ("artifact", report.name, "data") in made.tracker.calls
    assert f"report of the data: {report}" in made.out.getvalue()


@pytest.mark.parametrize("fault", ["folder", "process"])
def test_a_report_that_cannot_be_made_ends_no_training(
    stage: Callable[..., Stage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    if fault == "folder":  # of which nothing can be told, as of one that may not be searched
        monkeypatch.setenv("RAYMIMIC_CACHE", str(tmp_path / ("x" * 300)))
        made = stage()
        made.start()
    else:
        made = stage()
        place = tmp_path / "gone"
        place.mkdir()
        monkeypatch.chdir(place)
        place.rmdir()
        monkeypatch.syspath_prepend("")
        made.start(info={**INFO, "cached": True})
        assert "the report of the data is not made: [Errno 2]" in caplog.text
    made.driver.handle(Committed(1, "1.pth", [record(1)], evaluate=False))
    made.driver.close()


@pytest.mark.slow
def test_a_report_of_cached_data_is_made_beside_the_training_which_may_end_before(
    stage: Callable[..., Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYMIMIC_CACHE", str(tmp_path / "cache"))
    made = stage()
    page = kept_report(made.driver._data.paths[0], made.driver._data.digest)
    made.start(info={**INFO, "cached": True})
    made.driver.close()
    assert not page.exists()

    made = stage()
    made.start(info={**INFO, "cached": True})
    wait_for(page.exists, "the page")
    assert ("artifact", page.name, "data") not in made.tracker.calls
    made.driver.handle(Committed(1, "1.pth", [record(1)], evaluate=False))
    made.driver.close()
    assert made.tracker.calls.count(("artifact", page.name, "data")) == 1
    assert made.out.getvalue().count(f"report of the data: {page}") == 1
    assert page.read_text().endswith("</html>\n")
    assert {file.suffix for file in page.parent.iterdir()} == {".html", ".lock"}


def test_what_is_seen_on_the_images_is_told_and_never_ends_a_run(
    stage: Callable[..., Stage], tmp_path: Path
) -> None:
    path = write_cameras(tmp_path / "cameras.hdf5")
    replace_key(path, "camera_1", np.zeros_like)
    cameras = {"train.data": str(path), "experiment.rollout.enabled": False}
    cameras |= {"observation.modalities.obs.rgb": ["camera_0", "camera_1"]}
    images = prepare(small_config("bc", **cameras))
    made = stage(prepared=images)
    made.start()
    assert ("artifact", "images.png", "figures") in made.tracker.calls
    assert Image.open(made.folder.local / "logs" / "images.png").format == "PNG"
    assert f"warning: dataset '{path}': obs/camera_1 is black in 9 of 9 frames\n" in (
        made.out.getvalue()
    )
    path.write_bytes(b"gone")
    made = stage(prepared=images)
    made.start()
    assert made.tracker.calls == [("start", made.folder.local, {"algo": "td3_bc"})]
    assert f"warning: the images of '{path}' are not drawn: dataset" in made.out.getvalue()
    assert made.driver.started
