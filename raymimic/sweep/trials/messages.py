"""The messages between a trial's process and the sweep's driver.

A trial reports to Ray Tune; Ray Tune hands a trial its order. A trial that ended by itself leaves
an `Ended` in its folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raymimic import storage
from raymimic.sweep.spec.sweep_spec import Trial
from raymimic.tracking.episode_rows import EpisodeRow
from raymimic.tracking.tracker import Status, Tracker

# Epoch, gradient steps and metrics of an epoch or of an evaluation, and an evaluation's episodes.
LoggedEpoch = tuple[int, int, dict[str, float], dict[str, list[EpisodeRow]]]

# Keys of a trial's report to Ray Tune.
STEP = "gradient_steps"
SCORE = "score"
# Key of the order that Ray Tune hands a trial.
ORDER_KEY = "entry"

_ENDED = "ended.json"
# A trial without a score reports its epochs after so long [s].
_SIGN_OF_LIFE_S = 10.0


@dataclass(frozen=True)
class Ended:
    """The end of a trial that ended by itself; a trial that was stopped leaves none.

    Attributes:
        error: why the trial failed for good, in one sentence; None when it finished.
    """

    error: str | None

    @classmethod
    def of(cls, home: str) -> Ended | None:
        """Reads the end of the trial of a folder; None if there is none."""
        try:
            return cls(json.loads(storage.read_bytes(storage.join(home, _ENDED)))["error"])
        except FileNotFoundError:
            return None

    @staticmethod
    def forget(home: str) -> None:
        """Removes the end of an earlier process, as a new one trains on."""
        storage.remove(storage.join(home, _ENDED))

    def write(self, home: str) -> None:
        """Writes the end into the trial's folder."""
        content = json.dumps({"error": self.error}).encode()
        storage.write_bytes(storage.join(home, _ENDED), content)


def trial_order(
    trial: Trial,
    *,
    replay: list[tuple[int, float]] | None = None,
    run_dir: str | None = None,
    adopt: str | None = None,
) -> dict[str, Any]:
    """The order that Ray Tune hands the process of a trial.

    Args:
        trial: the trial.
        replay: scores of a trial that has ended, to be reported again to the scheduler.
        run_dir: folder of the training; None: the trial's own folder.
        adopt: Ray Tune's checkpoint with which the training begins there.
    """
    return {"trial": asdict(trial), "replay": replay, "run_dir": run_dir, "adopt": adopt}


def kept_as(metric: str) -> str:
    """The reason for which a training keeps the checkpoint with the best score."""
    if metric.startswith("Valid/"):
        return "best_validation"
    _, measure, *env = metric.split("/", 2)
    return f"best_{measure.lower()}/{env[0]}" if env else "best"


def score_of(metric: str, metrics: Mapping[str, float]) -> float | None:
    """The value of a sweep's metric in an epoch; None where the epoch lacks it.

    Args:
        metric: a full name, or a name without the environment, which means the mean over them.
        metrics: the epoch's metrics by full name.
    """
    if metric in metrics:
        return float(metrics[metric])
    values = [value for name, value in metrics.items() if name.startswith(f"{metric}/")]
    played = sum(name.startswith("Rollout/Failed_Episodes/") for name in metrics)
    if not values or len(values) < played:  # all episodes of an environment failed
        return None
    return float(sum(values) / len(values))


class TuneTracker(Tracker):
    """Reports a training's epochs to Ray Tune, whenever one has a score.

    A score is reported with the gradient step of the evaluated checkpoint, however late the
    evaluation ends, and with all epochs since the last report. Epochs without a score are reported
    after a while, and at the end.

    Args:
        metric: the metric that gives the score.
        rollouts: episodes of an evaluation in each environment.
        report: `ray.tune.report`.
    """

    def __init__(self, metric: str, rollouts: int, report: Callable[..., None]) -> None:
        self._metric, self._rollouts, self._report = metric, rollouts, report
        self._epochs: list[LoggedEpoch] = []
        self._episodes = 0
        self._reported_at = time.monotonic()

    def log_epoch(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker.log_epoch`."""
        self._log((epoch, step, dict(metrics), {}))

    def log_evaluation(
        self,
        epoch: int,
        step: int,
        metrics: Mapping[str, float],
        episodes: Mapping[str, Sequence[EpisodeRow]],
    ) -> None:
        """See `Tracker.log_evaluation`."""
        rows = {name: list(played) for name, played in episodes.items()}
        self._log((epoch, step, dict(metrics), rows))

    def _log(self, logged: LoggedEpoch) -> None:
        self._epochs.append(logged)
        epoch, step, metrics, _ = logged
        environments = sum(name.startswith("Rollout/Return/") for name in metrics)
        self._episodes += self._rollouts * environments
        score = score_of(self._metric, metrics)
        if score is not None:
            self.report({STEP: step, SCORE: score, "epoch": epoch})
        elif time.monotonic() - self._reported_at > _SIGN_OF_LIFE_S:
            self.report({})

    def report(self, score: Mapping[str, Any], **attached: Any) -> None:
        """Reports a score, if there is one, and all epochs since the last report.

        Args:
            score: the score with its gradient step and epoch; empty without one.
            **attached: further arguments of `ray.tune.report`.
        """
        metrics = {**score, "epochs": self._epochs, "episodes": self._episodes}
        self._report(metrics, **attached)
        self._epochs, self._reported_at = [], time.monotonic()

    def finish(self, status: Status) -> None:
        """Reports the epochs after the last score."""
        if status == "FINISHED" and self._epochs:
            self.report({})
