"""One trial of a sweep, as the process runs it that Ray Tune has placed.

A trial with one worker trains in that process itself; one with more starts Ray Train from there.
Either way it is an ordinary training (`raymimic.training.trainer.train_at`), in a folder that
follows from the trial alone. So whatever ends it, whoever starts it again goes on from its last
checkpoint.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymimic.errors import RaymimicError
from raymimic.tracking.tracker import Status
from raymimic.utils import storage

if TYPE_CHECKING:
    from raymimic.config import BaseConfig
    from raymimic.sweep.spec import SweepSpec, Trial

# Names in what a trial tells Ray Tune; schedulers count time in gradient steps.
STEP = "gradient_steps"
SCORE = "score"
# And in what Ray Tune tells a trial.
ENTRY = "entry"

_ENDED = "ended.json"
# For the process of a trial that was killed to let go of the trial's folder.
_PATIENCE_S = 60.0
# After which a trial tells how far it is, also without a score.
_SIGN_OF_LIFE_S = 10.0


@dataclass(frozen=True)
class Ended:
    """How a trial ended by itself; one that was stopped from outside leaves none.

    Attributes:
        error: why it failed for good, in one sentence; `None` when it finished.
    """

    error: str | None

    @classmethod
    def of(cls, run_dir: str) -> "Ended | None":
        """How the trial of a folder ended, if it did."""
        try:
            return cls(json.loads(storage.read_bytes(storage.join(run_dir, _ENDED)))["error"])
        except FileNotFoundError:
            return None

    def write(self, run_dir: str) -> None:
        """Leaves it in the trial's folder."""
        content = json.dumps({"error": self.error}).encode()
        storage.write_bytes(storage.join(run_dir, _ENDED), content)


def trial_config(spec: "SweepSpec", trial: "Trial") -> "BaseConfig":
    """The config that a trial trains with.

    It is the setting's own (`SweepSpec.config_for`) but for where it runs and what it keeps:
    records go to the sweep's driver, the checkpoint with the best score is kept, no film is made.
    """
    config = spec.config_for(trial)
    resources = spec.resources
    with config.values_unlocked():
        config.experiment.name = trial.trial_id
        config.experiment.logging.log_tb = False
        config.experiment.render_video = False
        config.mlflow.enabled = False
        save = config.experiment.save
        save.enabled, save.every_n_seconds, save.every_n_epochs, save.epochs = True, None, None, []
        save.on_best_validation = spec.metric.startswith("Valid/")
        save.on_best_rollout_return = spec.metric.startswith("Rollout/Return")
        save.on_best_rollout_success_rate = spec.metric.startswith("Rollout/Success_Rate")
        config.ray.num_workers = 0 if resources.workers == 1 else resources.workers
        if config.ray.threads_per_worker is None:
            config.ray.threads_per_worker = max(1, int(resources.cpus_per_worker))
    return config


def entry(
    trial: "Trial",
    *,
    replay: list[tuple[int, float]] | None = None,
    run_dir: str | None = None,
    adopt: str | None = None,
) -> dict[str, Any]:
    """What Ray Tune tells the process of a trial.

    Args:
        trial: what to train.
        replay: scores of a trial that needs no more training, of which a scheduler shall hear
            again.
        run_dir: where to go on, if that is not the trial's own folder.
        adopt: checkpoint of Ray Tune's with which to go on there.
    """
    return {"trial": asdict(trial), "replay": replay, "run_dir": run_dir, "adopt": adopt}


def kept_as(metric: str) -> str:
    """Why the checkpoint with the best score is kept (see `raymimic.training.checkpoint.Entry`)."""
    if metric.startswith("Valid/"):
        return "best_validation"
    _, measure, *env = metric.split("/", 2)
    return f"best_{measure.lower()}/{env[0]}" if env else "best"


def run_trial(
    config: dict[str, Any], spec: dict[str, Any], folder: str, sys_path: tuple[str, ...]
) -> None:
    """Trains one trial; Ray Tune calls it in the trial's process.

    Args:
        config: holds what `entry` made.
        spec: the sweep as plain values.
        folder: folder of all trials.
        sys_path: the driver's extra module folders, for a user's modules.
    """
    from ray import tune

    from raymimic.sweep.spec import SweepSpec, Trial
    from raymimic.training.trainer import train_at

    told = config[ENTRY]
    if told["replay"] is not None:
        for step, score in told["replay"]:
            tune.report({STEP: step, SCORE: score})
        return
    # What Ray Tune waits for a stopped trial to leave the process that the next one gets.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", str(int(_PATIENCE_S)))
    sys.path[:0] = [p for p in sys_path if p not in sys.path]
    sweep, trial = SweepSpec.from_dict(spec), Trial(**told["trial"])
    # Under population based training the entry is the donor's; only the name stays.
    trial_id = tune.get_context().get_trial_name()
    home = storage.join(folder, trial_id)
    storage.remove(storage.join(home, _ENDED))
    try:
        settings = trial_config(sweep, trial)
        settings.experiment.name = trial_id
        run_dir = told["run_dir"] or home
        reports = Reports(sweep.metric, settings.experiment.rollout.n, tune.report)
        if sweep.scheduler == "pbt":
            from raymimic.sweep.population import Lineage, PopulationReports, checkpoint_at

            given = tune.get_checkpoint()
            if given is None and told["adopt"] is not None:
                given = checkpoint_at(told["adopt"])
            lineage = Lineage(trial_id, run_dir).after(given, home)
            run_dir = lineage.run_dir
            reports = PopulationReports(sweep, settings, tune.report, lineage)
        train_at(settings, run_dir, reports, _PATIENCE_S)
    except RaymimicError as error:
        Ended(str(error)).write(home)  # a restart would only meet it again
    else:
        Ended(None).write(home)


def score_of(metric: str, metrics: Mapping[str, float]) -> float | None:
    """A sweep's metric among those of an epoch; `None` where it is not among them.

    Args:
        metric: a whole name, or one that lacks the environment: then the mean over these.
        metrics: by full name.
    """
    if metric in metrics:
        return float(metrics[metric])
    values = [value for name, value in metrics.items() if name.startswith(f"{metric}/")]
    return float(sum(values) / len(values)) if values else None


class Reports:
    """Tells Ray Tune what a training tells its tracker, whenever that has a score.

    A score is reported with the gradient step of the checkpoint that was evaluated, however late
    the evaluation comes, and with all epochs since the last report. Where none comes for long, and
    in the end, epochs follow without a score.

    Args:
        metric: what the score is.
        rollouts: episodes of an evaluation in each environment.
        report: `ray.tune.report`.
    """

    def __init__(self, metric: str, rollouts: int, report: Callable[..., None]) -> None:
        self._metric, self._rollouts, self._report = metric, rollouts, report
        self._epochs: list[tuple[int, int, dict[str, float]]] = []
        self._episodes = 0
        self._told = time.monotonic()

    def start(
        self, run_dir: Path, config: Mapping[str, Any], tags: Mapping[str, str]
    ) -> str | None:
        """See :meth:`~raymimic.tracking.tracker.Tracker.start`."""
        return None

    def log_epoch(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        """See :meth:`~raymimic.tracking.tracker.Tracker.log_epoch`."""
        self._epochs.append((epoch, step, dict(metrics)))
        environments = sum(name.startswith("Rollout/Return/") for name in metrics)
        self._episodes += self._rollouts * environments
        score = score_of(self._metric, metrics)
        if score is not None:
            self.report({STEP: step, SCORE: score, "epoch": epoch})
        elif time.monotonic() - self._told > _SIGN_OF_LIFE_S:
            self.report({})

    def report(self, score: Mapping[str, Any], **attached: Any) -> None:
        """Tells Ray Tune a score, if there is one, and all epochs since the last report.

        Args:
            score: with its gradient step and epoch; empty when there is none.
            **attached: further arguments of `ray.tune.report`.
        """
        metrics = {**score, "epochs": self._epochs, "episodes": self._episodes}
        self._report(metrics, **attached)
        self._epochs, self._told = [], time.monotonic()

    def log_artifact(self, path: Path, artifact_path: str | None = None) -> None:
        """Does nothing: files lie in the trial's folder."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Does nothing: the sweep's driver knows the trial."""

    def finish(self, status: Status) -> None:
        """Passes on the epochs that came after the last score."""
        if status == "FINISHED" and self._epochs:
            self.report({})
