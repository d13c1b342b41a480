"""A tracker, an evaluator and an end of a link that keep their calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raymimic.checkpoints.records import Evaluation
from raymimic.envs.fit import TriedEnv
from raymimic.rollout.evaluation import EvalJob, EvalResult
from raymimic.rollout.tryout import Tryout
from raymimic.tracking.episode_rows import EpisodeRow
from raymimic.tracking.run_contents import KeptModel
from raymimic.tracking.tracker import Status, Tracker
from raymimic.training.link import Event


@dataclass
class RecordingTracker(Tracker):
    """Keeps its calls, each as a tuple with the method's name first."""

    calls: list[Any] = field(default_factory=list)
    episodes: dict[int, Mapping[str, Sequence[EpisodeRow]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def start(
        self, run_dir: Path, config: Mapping[str, Any], tags: Mapping[str, str]
    ) -> str | None:
        self.calls.append(("start", run_dir, dict(tags)))
        return None

    def log_epoch(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        self.calls.append(("epoch", epoch, step, dict(metrics)))

    def log_evaluation(
        self,
        epoch: int,
        step: int,
        metrics: Mapping[str, float],
        episodes: Mapping[str, Sequence[EpisodeRow]],
    ) -> None:
        self.calls.append(("epoch", epoch, step, dict(metrics)))
        self.episodes[epoch] = episodes

    def log_system(self, metrics: Mapping[str, float]) -> None:
        self.calls.append(("system", dict(metrics)))

    def log_artifact(self, path: Path, artifact_path: str | None = None) -> None:
        self.calls.append(("artifact", path.name, artifact_path))

    def log_model(self, model: KeptModel) -> None:
        self.calls.append(("model", model.path.name, model.epoch, model.step))

    def keep_models(self, kept: Mapping[str, Sequence[str]]) -> None:
        self.calls.append(("models", dict(kept)))

    def log_note(self, text: str) -> None:
        self.notes.append(text)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self.calls.append(("tags", dict(tags)))

    def finish(self, status: Status) -> None:
        self.calls.append(("finish", status))

    @property
    def epochs(self) -> list[tuple[int, int, dict[str, float]]]:
        """Epoch, step and metrics of each `log_epoch` and `log_evaluation`."""
        return [call[1:] for call in self.calls if call[0] == "epoch"]


@dataclass
class ScriptedEvaluator:
    """Gives the bounds and results that a test puts into it."""

    bounds: dict[str, TriedEnv] | None = None
    placed: bool = True
    jobs: list[tuple[EvalJob, bool]] = field(default_factory=list)
    results: list[EvalResult] = field(default_factory=list)
    done: int = 0

    def begin_tryout(self, tryout: Tryout) -> None:
        self.tryout = tryout

    def tried(self) -> dict[str, TriedEnv] | None:
        return self.bounds

    def submit(self, job: EvalJob, interrupted: bool = False) -> None:
        self.jobs.append((job, interrupted))

    def poll(self, timeout: float = 0.0) -> list[EvalResult]:
        results, self.results = self.results, []
        self.done += len(results)
        return results

    @property
    def pending(self) -> list[EvalJob]:
        return [job for job, _ in self.jobs[self.done :]]

    def close(self) -> None:
        pass


@dataclass
class RecordingLink:
    """The training loop's end of a link whose driver evaluates nothing."""

    events: list[Event] = field(default_factory=list)
    stop_reason: str | None = None

    def send(self, event: Event) -> None:
        self.events.append(event)

    def evaluations(self) -> list[Evaluation]:
        return []

    def stopped(self) -> str | None:
        return self.stop_reason

    def may_begin(self) -> bool:
        return True
