"""The driver's side of a training: evaluations, records and what the user sees.

Everything here happens in answer to events of the training loop (`link.py`). The driver may be
killed at any time: what it knows is in the checkpoints, their list, and the tracker's spool.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from raymimic.config import BaseConfig
from raymimic.tracking.tracker import TrackerGroup
from raymimic.training.checkpoint import CheckpointStore, Outcome
from raymimic.training.link import Committed, EpochRecord, Event, Fatal, Progress, Started
from raymimic.training.progress import ProgressReporter
from raymimic.training.run_folder import RunFolder
from raymimic.utils.storage import join, remove, write_bytes

if TYPE_CHECKING:
    from raymimic.rollout.evaluation import EvalJob, EvalResult

logger = logging.getLogger(__name__)

# Between two drawings of the learning curve while training goes on.
_FIGURE_INTERVAL_S = 60.0


class Evaluator(Protocol):
    """Whoever plays evaluation episodes: a pool of Ray actors, or this process."""

    def submit(self, job: "EvalJob") -> None:
        """Begins an evaluation."""

    def poll(self, timeout: float = 0.0) -> "list[EvalResult]":
        """Gives the evaluations that have finished, waiting for one at most so long."""

    @property
    def pending(self) -> "list[EvalJob]":
        """Evaluations that are under way."""

    def close(self) -> None:
        """Ends it."""


class Driver:
    """Answers one training's events.

    Args:
        config: the run's config.
        run: its folder.
        envs: environments to evaluate in, by the name that their metrics carry.
        tracker: where records go, from when the workers have loaded data and model.
        tags: facts about the run, for the tracker.
        progress: what the user sees.
        evaluator: who evaluates; `None` when nothing is to be evaluated.
        post: passes a finished evaluation to the training loop.
    """

    def __init__(
        self,
        config: BaseConfig,
        run: RunFolder,
        envs: dict[str, dict[str, Any]],
        tracker: TrackerGroup,
        tags: dict[str, str],
        progress: ProgressReporter,
        evaluator: Evaluator | None,
        post: Callable[[Outcome], None],
    ) -> None:
        self.config, self.run, self.envs = config, run, envs
        self.tracker, self.tags, self.progress = tracker, tags, progress
        self.evaluator = evaluator
        self.fatal: Fatal | None = None
        self.started = False
        self._post = post
        self._no_video: str | None = None
        self._warned = False
        self._records: dict[int, EpochRecord] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._submitted: dict[int, float] = {}
        self._drawn = time.monotonic()

    # -- events --

    def handle(self, event: Event) -> None:
        """Answers an event of the training loop."""
        match event:
            case Started():
                self._on_started(event)
            case Progress():
                self.progress.within(event.epoch, event.step, event.steps_per_s)
            case Committed():
                for record in event.records:
                    self._record(record)
                if event.evaluate:
                    self._evaluate(event.epoch, event.checkpoint)
            case Fatal():
                self.fatal = self.fatal or event

    def _on_started(self, event: Started) -> None:
        """The loop starts, perhaps again: catches up with what its checkpoints say."""
        if self.started:
            self.progress.line(f"workers restarted; training goes on after epoch {event.epoch}")
        else:
            info = event.info
            self.progress.line(
                f"training {self.config.algo_name} ({info['parameters']:,} parameters) on "
                f"{info['samples']:,} samples, device {info['device']}"
            )
            self.run.write_config(self.config)  # a resumed run may have another number of epochs
            self.tracker.start(self.run.local, self.config.to_dict(), self.tags)
            for warning in info["warnings"]:
                self.progress.line(f"warning: {warning}")
        self.started = True
        self.progress.started(event.epoch)
        # What checkpoints hold and nobody recorded, and what still waits for its evaluation.
        for record in event.history:
            self._record(record)
        for outcome in event.outcomes:
            self._record_outcome(outcome)
        for epoch, checkpoint in event.pending.items():
            if epoch in self._outcomes:
                self._post(self._outcomes[epoch])
            else:
                self._evaluate(epoch, checkpoint)

    def _record(self, record: EpochRecord) -> None:
        if record.epoch in self._records:
            return
        self._records[record.epoch] = record
        self.tracker.log_epoch(record.epoch, record.step, record.metrics)
        self.progress.epoch(
            record.epoch,
            record.step,
            record.metrics.get("Train/Loss"),
            record.metrics["Timing/steps_per_s"],
        )

    # -- evaluations --

    def _evaluate(self, epoch: int, checkpoint: str) -> None:
        from raymimic.envs.seeds import evaluation_seeds
        from raymimic.rollout.evaluation import EvalJob

        # A checkpoint may be announced twice: by its commit, and by a restart that was under way.
        if self.evaluator is None or epoch in self._submitted:
            return
        rollout = self.config.experiment.rollout
        base = self.config.train.seed if rollout.seed is None else rollout.seed
        self._submitted[epoch] = time.monotonic()
        self.evaluator.submit(
            EvalJob(
                epoch=epoch,
                checkpoint=checkpoint,
                env_metas=self.envs,
                seeds=evaluation_seeds(base, epoch, rollout.n),
                horizon=rollout.horizon,
                terminate_on_success=rollout.terminate_on_success,
                use_goals=self.config.use_goals,
                film=int(self.config.experiment.render_video),
                video_skip=self.config.experiment.video_skip,
            )
        )
        self.poll()

    def poll(self, timeout: float = 0.0) -> None:
        """Takes in the evaluations that have finished.

        Raises:
            EnvError: an environment cannot be made or stepped.
        """
        if self.evaluator is not None:
            self._warn_if_waiting()
            for result in self.evaluator.poll(timeout):
                self._keep_videos(result)
                outcome = self._outcome(result)
                self._record_outcome(outcome)
                self._post(outcome)

    def _warn_if_waiting(self) -> None:
        """Says once that evaluations do not get going, for which training would wait."""
        assert self.evaluator is not None
        limit = self.config.ray.placement_timeout_s
        if self._outcomes or self._warned or not self.evaluator.pending:
            return
        epoch = self.evaluator.pending[0].epoch
        if time.monotonic() - self._submitted[epoch] > limit:
            self._warned = True
            self.progress.line(
                f"warning: the evaluation of epoch {epoch} has not come back for {limit:g} s; if "
                "other jobs hold the cluster's CPUs, lower ray.cpus_per_actor or "
                "ray.rollout_actors, or wait"
            )

    @property
    def evaluating(self) -> bool:
        """Whether evaluations are under way."""
        return self.evaluator is not None and bool(self.evaluator.pending)

    def _keep_videos(self, result: "EvalResult") -> None:
        """Writes an evaluation's videos, or says once why there are none."""
        if result.no_video is not None and self._no_video is None:
            self._no_video = result.no_video
            self.progress.line(f"no videos: {result.no_video}")
        for video in result.videos:
            path = self.run.local / "videos" / f"{video.env}_epoch_{result.job.epoch}.mp4"
            write_bytes(str(path), video.mp4)

    def _outcome(self, result: "EvalResult") -> Outcome:
        from raymimic.rollout.stats import summarize

        metrics: dict[str, float] = {}
        returns: dict[str, float] = {}
        rates: dict[str, float] = {}
        played = {env: [e.episode_return for e in eps] for env, eps in result.episodes.items()}
        for env, episodes in result.episodes.items():
            summary = summarize(episodes)
            metrics |= {f"Rollout/{name}/{env}": value for name, value in summary.items()}
            returns[env], rates[env] = summary["Return"], summary["Success_Rate"]
        metrics["Timing/rollout_s"] = time.monotonic() - self._submitted[result.job.epoch]
        return Outcome(result.job.epoch, metrics, returns, rates, played)

    def _record_outcome(self, outcome: Outcome) -> None:
        if outcome.epoch in self._outcomes:
            return
        self._outcomes[outcome.epoch] = outcome
        record = self._records.get(outcome.epoch)
        self.tracker.log_epoch(outcome.epoch, record.step if record else 0, outcome.metrics)
        self.progress.evaluated(outcome.epoch, _summary(outcome))
        if time.monotonic() - self._drawn > _FIGURE_INTERVAL_S:
            self.draw()
        self.run.mirror()

    # -- results --

    @property
    def history(self) -> list[dict[str, Any]]:
        """All metrics by epoch, evaluations at the epoch that they belong to."""
        rows: list[dict[str, Any]] = []
        for epoch in sorted(self._records.keys() | self._outcomes.keys()):
            record, outcome = self._records.get(epoch), self._outcomes.get(epoch)
            row: dict[str, Any] = {"epoch": epoch}
            if record is not None:
                row |= {"step": record.step, **record.metrics}
            if outcome is not None:
                row |= outcome.metrics
            rows.append(row)
        return rows

    @property
    def metrics(self) -> dict[str, float]:
        """The newest value of each metric."""
        newest: dict[str, float] = {}
        for row in self.history:
            newest |= row
        return newest

    def draw(self) -> Path | None:
        """Draws the learning curve into the run's folder, and gives it to the tracker."""
        from raymimic.tracking.figures import learning_curve

        self._drawn = time.monotonic()
        if not self._records:
            return None
        path = self.run.local / "logs" / "learning_curve.png"
        try:
            learning_curve(self.history, path)
        except OSError as error:
            logger.warning("cannot draw the learning curve to '%s': %s", path, error)
            return None
        self.tracker.log_artifact(path, "figures")
        return path

    def finish(self) -> CheckpointStore:
        """Waits for the last evaluations and settles which checkpoint is the best.

        Returns:
            the run's checkpoints, settled.
        """
        waited = False
        while self.evaluating:
            if not waited:
                self.progress.line("training is done; waiting for the last evaluations")
                waited = True
            self.poll(timeout=1.0)
        store = self.settle()
        if not self.config.experiment.keep_all_videos:
            self._drop_videos({entry.epoch for entry in store.entries})
        return store

    def settle(self) -> CheckpointStore:
        """Writes what the evaluations found into the list of checkpoints, once training is over.

        Returns:
            the run's checkpoints.
        """
        store = CheckpointStore(self.run.uri, self.config.experiment.save)
        for outcome in sorted(self._outcomes.values(), key=lambda o: o.epoch):
            store.settle(outcome)
        return store

    def _drop_videos(self, kept: set[int]) -> None:
        """Deletes the videos of epochs whose checkpoint is not kept, as robomimic does."""
        for video in (self.run.local / "videos").glob("*_epoch_*.mp4"):
            epoch = video.stem.rsplit("_", 1)[-1]
            if epoch.isdigit() and int(epoch) not in kept:
                video.unlink(missing_ok=True)
                remove(join(self.run.uri, "videos", video.name))


def _summary(outcome: Outcome) -> str:
    """One evaluation in a few words."""
    parts = []
    for env, value in outcome.returns.items():
        low = outcome.metrics[f"Rollout/Return_CI_Low/{env}"]
        high = outcome.metrics[f"Rollout/Return_CI_High/{env}"]
        text = f"{env} return {value:.1f} [{low:.1f}, {high:.1f}]"
        if rate := outcome.success_rates[env]:
            text += f", success {rate:.0%}"
        parts.append(text)
    return "; ".join(parts)


def raise_fatal(fatal: Fatal) -> None:
    """Raises a worker's error as the error that it was."""
    from raymimic import errors

    kind = getattr(errors, fatal.kind, errors.TrainingError)
    error = kind(fatal.message)
    error.add_note(fatal.traceback)  # for --traceback
    raise error
