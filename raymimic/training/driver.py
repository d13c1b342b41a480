"""The driver's side of a training: evaluations, records and messages to the user.

The driver only answers events of the training loop (`link.py`). It may be killed at any time: all
its knowledge is in the checkpoints, their list, and the tracker's spool.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raymimic import errors
from raymimic.checkpoints.logs import EvaluationLog
from raymimic.checkpoints.records import EpochRecord, Evaluation, KeptCheckpoint
from raymimic.checkpoints.store import CheckpointStore
from raymimic.data.returns import reference_returns
from raymimic.data.training_data import data_label
from raymimic.envs.fit import TriedEnv, clipping_warnings
from raymimic.envs.seeds import evaluation_seeds
from raymimic.rollout.evaluation import EvalJob, EvalResult, Evaluator
from raymimic.rollout.stats import failures, summarize
from raymimic.storage import file_names, join, remove, write_bytes
from raymimic.terminal import readable, shown
from raymimic.training.data_reports import DataReports
from raymimic.training.kept_models import KeptModels, dataset_uses
from raymimic.training.link import (
    Committed,
    Event,
    Fatal,
    Loading,
    MachineLoad,
    Mishap,
    Progress,
    Started,
)
from raymimic.training.note import ChosenCheckpoint, run_note
from raymimic.training.pictures import draw_images
from raymimic.training.run import Run

logger = logging.getLogger(__name__)

# Between two drawings of the learning curve during training.
_FIGURE_INTERVAL_S = 60.0
# An evaluation is slow if it takes so many times as long as the longest before it.
_SLOW = 3.0


class Driver:
    """Answers one training's events.

    Args:
        run: the training, and the places of its results and records.
        evaluator: plays evaluations; None if nothing is evaluated.
        post: passes a finished evaluation to the training loop.
    """

    def __init__(
        self, run: Run, evaluator: Evaluator | None, post: Callable[[Evaluation], None]
    ) -> None:
        self.config, self.envs = run.prepared.config, run.prepared.envs
        self._data = run.prepared.data
        self.folder, self.tracker, self.progress = run.folder, run.tracker, run.progress
        self.evaluator = evaluator
        self.fatal: Fatal | None = None
        self.started = False
        self.loading = ""  # how far the first rank is, before it has started
        self._tags, self._data = run.tags, run.prepared.data
        self._models = KeptModels(self.config, self._data, self.tracker)
        self._reports = DataReports(self._data, self.config.train.allow_links)
        self._post = post
        self._no_video: str | None = None
        self._warned: set[int | str] = set()  # epochs and environments
        self._tryout = None if evaluator is None else run.prepared.tryout()
        self._tryout_begun = time.monotonic()
        self._action_range: list[list[float]] | None = None
        self._action_bounds: dict[str, TriedEnv] = {}
        self._records: dict[int, EpochRecord] = {}
        self._evaluations: dict[int, Evaluation] = {}
        self._log: EvaluationLog | None = None
        self._submitted: dict[int, float] = {}  # when, by epoch
        self._epochs: dict[str, int] = {}  # by checkpoint
        self._longest_s = 0.0
        self._drawn = time.monotonic()
        self._references: dict[str, dict[str, float]] | None = None  # read when first drawn
        if evaluator is not None and self._tryout is not None:
            evaluator.begin_tryout(self._tryout)

    # -- before the first step --

    def may_begin(self) -> bool:
        """Whether training may begin: the environments have been tried and fit the policy.

        If the cluster finds no place to try them in time, training begins without.

        Raises:
            EnvError: one of them does not fit.
        """
        if self._tryout is None or self.evaluator is None:
            return True
        bounds = self.evaluator.tried()
        if bounds is not None:
            self._tryout = None
            self._action_bounds = bounds
            self._warn_of_clipping()
            return True
        waited = time.monotonic() - self._tryout_begun
        if self.evaluator.placed or waited < self._tryout.placement_timeout_s:
            return self.started
        self.progress.warn(
            "training begins before its environments were tried, as the cluster has had no place "
            f"for a rollout actor for {self._tryout.placement_timeout_s:.0f} s; lower "
            "ray.cpus_per_actor or ray.rollout_actors"
        )
        return True

    @property
    def preparation(self) -> str:
        """The tasks that come before the first step, for the user."""
        loading = "loading data and networks"
        if self._tryout is None:
            return loading
        return f"{loading}; waiting for the first reset of {', '.join(self.envs)}"

    def _warn_of_clipping(self) -> None:
        """Warns if the data's actions exceed the range that an environment takes."""
        if self._action_range is None:
            return
        low, high = self._action_range
        for sentence in clipping_warnings(low, high, self._action_bounds):
            self.progress.warn(sentence)
        self._action_bounds = {}

    # -- events --

    def handle(self, event: Event) -> None:
        """Answers an event of the training loop."""
        match event:
            case Started():
                self._on_started(event)
            case Loading():
                self.loading = event.text
                self.progress.phase(self.preparation, self.loading)
            case Progress():
                self.progress.within(event.epoch, event.step, event.steps_per_s)
            case Committed():
                self._link_reports()
                for record in event.records:
                    self._record(record)
                self._keep(event.kept)
                if event.evaluate:
                    self._evaluate(event.epoch, event.checkpoint)
                self._say_if_only_evaluations_are_left(event.epoch)
            case MachineLoad():
                if self.started:  # before, there is no record
                    self.tracker.log_system(event.metrics)
            case Mishap():
                self.progress.warn(event.message)
            case Fatal():
                self.fatal = self.fatal or event

    def _on_started(self, event: Started) -> None:
        """Answers the (re)start of the loop: catches up with its checkpoint."""
        restarted = self.started
        if restarted:
            self.progress.line(f"workers restarted; training goes on after epoch {event.epoch}")
        else:
            info = event.info
            self.progress.line(
                f"training {self.config.algo_name} ({info['parameters']:,} parameters) on "
                f"{info['samples']:,} samples, device {info['device']}"
            )
            for line in filter(None, (info["place"], info["split"])):
                self.progress.line(line)
            self.folder.write_config(self.config)  # a resumed run may have another number of epochs
            self.tracker.start(self.folder.local, self.config.to_dict(), self._tags)
            self.tracker.log_datasets(dataset_uses(self.config, self._data))
            self._show_images()
            self._link_reports()
            if event.info["cached"]:
                self._reports.make_missing()
            if self.config.experiment.logging.log_tb:  # which writes its event files again
                self.folder.drop_replaced("logs", "tb")
            self._action_range = info["action_range"]
            self._warn_of_clipping()
        for warning in event.info["warnings"]:
            self.progress.warn(warning)  # a restart repeats some
        self.started = True
        self.progress.started(event.epoch, event.info["steps_per_epoch"])
        # The tracker may lack epochs and evaluations of the checkpoint, and some wait to be played.
        told = not restarted  # by the process that this one resumes
        for record in event.history:
            self._record(record, told)
        if event.has_evaluation_log:
            self._log = EvaluationLog(self.folder.uri, self.folder.lease)
            # Later epochs are trained again; their evaluations are appended again.
            self._log.drop_after(event.epoch)
        for evaluation in event.evaluations:
            self._record_evaluation(evaluation, told)
        if not restarted:
            self._describe()
        for epoch, checkpoint in event.pending.items():
            self._evaluate(epoch, checkpoint, interrupted=True)
        self._say_if_only_evaluations_are_left(event.epoch)

    def _show_images(self) -> None:
        """Gives the tracker pictures of the data's images, and warns of what is wrong with them."""
        drawn = draw_images(self.config, self._data, self.folder.local / "logs")
        for file in drawn.files:
            self.tracker.log_artifact(file, "figures")
        for warning in drawn.warnings:
            self.progress.warn(warning)
        if drawn.files:
            self.progress.line(f"images: {', '.join(shown(file) for file in drawn.files)}")

    def _link_reports(self) -> None:
        """Gives the tracker the reports of the data that this machine has by now."""
        for report in self._reports.found():
            self.tracker.log_artifact(report, "data")
            self.progress.line(f"report of the data: {report}")

    def _record(self, record: EpochRecord, told: bool = False) -> None:
        if record.epoch in self._records:
            return
        self._records[record.epoch] = record
        self.tracker.log_epoch(record.epoch, record.step, record.metrics)
        self.progress.epoch(
            record.epoch,
            record.step,
            {
                name: record.metrics[key]
                for name, key in (("loss", "Train/Loss"), ("validation", "Valid/Loss"))
                if key in record.metrics
            },
            record.metrics.get("Timing/steps_per_s", 0.0),
            told,
        )

    # -- evaluations --

    def _evaluate(self, epoch: int, checkpoint: str, interrupted: bool = False) -> None:
        if epoch in self._evaluations:  # the workers have lost it
            self._deliver(self._evaluations[epoch])
            return
        # A checkpoint may be announced twice: by its commit, and by a restart that was under way.
        if self.evaluator is None or epoch in self._submitted:
            return
        rollout = self.config.experiment.rollout
        base = self.config.train.seed if rollout.seed is None else rollout.seed
        self._submitted[epoch] = time.monotonic()
        self._epochs[checkpoint] = epoch
        self.evaluator.submit(
            EvalJob(
                checkpoint=checkpoint,
                env_metas=self.envs,
                seeds=evaluation_seeds(base, epoch, rollout.n),
                horizon=rollout.horizon,
                terminate_on_success=rollout.terminate_on_success,
                use_goals=self.config.use_goals,
                film=int(self.config.experiment.render_video),
                video_skip=self.config.experiment.video_skip,
            ),
            interrupted,
        )
        self.poll()

    def poll(self, timeout: float = 0.0) -> None:
        """Records the evaluations that have finished.

        Args:
            timeout: how long to wait for one [s].

        Raises:
            RaymimicError: an evaluation is impossible, for instance as its checkpoint is lost.
            LeaseLostError: another process has taken over the run.
        """
        self.folder.check_lease()
        if self.evaluator is not None:
            self._warn_if_waiting()
            for result in self.evaluator.poll(timeout):
                epoch = self._epochs[result.job.checkpoint]
                self._keep_videos(epoch, result)
                self._warn_of_failures(epoch, result)
                evaluation = self._evaluation(epoch, result)
                self._deliver(evaluation)
                self._record_evaluation(evaluation)

    def _deliver(self, evaluation: Evaluation) -> None:
        """Writes an evaluation to the run's folder, then passes it to the training loop."""
        if self._log is not None:
            self._log.append(evaluation)
        self._post(evaluation)

    def _say_if_only_evaluations_are_left(self, epoch: int) -> None:
        if epoch == self.config.train.num_epochs and self.evaluating:
            self.progress.line("training is done; waiting for the last evaluations")

    def _warn_if_waiting(self) -> None:
        """Warns once of a slow evaluation, as training would wait for it.

        The first may find no place in the cluster; later ones are slow compared with the longest.
        """
        assert self.evaluator is not None
        if not self.evaluator.pending:
            return
        epoch = self._epochs[self.evaluator.pending[0].checkpoint]
        limit = max(self.config.ray.placement_timeout_s, _SLOW * self._longest_s)
        if epoch in self._warned or time.monotonic() - self._submitted[epoch] <= limit:
            return
        self._warned.add(epoch)
        self.progress.warn(
            f"the evaluation of epoch {epoch} has not come back for {limit:.0f} s; if "
            "other jobs hold the cluster's CPUs, lower ray.cpus_per_actor or "
            "ray.rollout_actors, or wait; if its simulator hangs, end the training and go on with "
            "--resume"
        )

    @property
    def evaluating(self) -> bool:
        """Whether evaluations are under way."""
        return self.evaluator is not None and bool(self.evaluator.pending)

    def _warn_of_failures(self, epoch: int, result: EvalResult) -> None:
        """Warns once for each environment that episodes failed; metrics count them all."""
        for env, episodes in result.episodes.items():
            failed = failures(episodes)
            if failed is not None and env not in self._warned:
                self._warned.add(env)
                self.progress.warn(f"in epoch {epoch}, {env}: {failed}")

    def _keep_videos(self, epoch: int, result: EvalResult) -> None:
        """Writes an evaluation's videos, or tells once why there are none."""
        if result.no_video is not None and self._no_video is None:
            self._no_video = result.no_video
            self.progress.line(f"no videos: {result.no_video}")
        names = file_names(self.envs)
        for video in result.videos:
            name = f"{names[video.env]}_epoch_{epoch}.mp4"
            path = self.folder.local / "videos" / name
            write_bytes(str(path), video.mp4)

    def _evaluation(self, epoch: int, result: EvalResult) -> Evaluation:
        metrics: dict[str, float] = {}
        returns: dict[str, float] = {}
        rates: dict[str, float] = {}
        returned: dict[str, list[float]] = {}
        for env, episodes in result.episodes.items():
            summary = summarize(episodes)
            metrics |= {f"Rollout/{name}/{env}": value for name, value in summary.items()}
            returned[env] = [e.episode_return for e in episodes if e.error is None]
            if returned[env]:
                returns[env], rates[env] = summary["Return"], summary["Success_Rate"]
        seconds = time.monotonic() - self._submitted[epoch]
        self._longest_s = max(self._longest_s, seconds)
        metrics["Timing/rollout_s"] = seconds
        step = self._records[epoch].step if epoch in self._records else 0
        played = {env: [e.row for e in episodes] for env, episodes in result.episodes.items()}
        return Evaluation(epoch, metrics, returns, rates, returned, step, played)

    def _record_evaluation(self, evaluation: Evaluation, told: bool = False) -> None:
        epoch = evaluation.epoch
        if epoch in self._evaluations:
            return
        self._evaluations[epoch] = evaluation
        record = self._records.get(epoch)
        self.tracker.log_evaluation(
            epoch, record.step if record else evaluation.step, evaluation.metrics, evaluation.played
        )
        self.progress.evaluated(epoch, _summary(evaluation), told)
        if time.monotonic() - self._drawn > _FIGURE_INTERVAL_S:
            self.draw_learning_curve()
        self.folder.mirror()

    # -- results --

    @property
    def history(self) -> list[dict[str, Any]]:
        """All metrics by epoch, those of an evaluation at its checkpoint's epoch."""
        rows: list[dict[str, Any]] = []
        for epoch in sorted(self._records.keys() | self._evaluations.keys()):
            record, evaluation = self._records.get(epoch), self._evaluations.get(epoch)
            row: dict[str, Any] = {"epoch": epoch}
            if record is not None:
                row |= {"step": record.step, **record.metrics}
            if evaluation is not None:
                row |= evaluation.metrics
            rows.append(row)
        return rows

    @property
    def metrics(self) -> dict[str, float]:
        """The newest value of each metric."""
        newest: dict[str, float] = {}
        for row in self.history:
            newest |= row
        return newest

    @property
    def last_epoch(self) -> int:
        """The last epoch in a checkpoint; 0 before the first."""
        return max(self._records, default=0)

    def draw_learning_curve(self) -> Path | None:
        """Draws the learning curve into the run's folder, and gives it to the tracker.

        Returns:
            the picture's path; None if there is nothing to draw or it cannot be written.
        """
        # Importing matplotlib takes a second.
        from raymimic.tracking.figures import learning_curve

        self._drawn = time.monotonic()
        if self._references is None and self._evaluations:
            horizon = self.config.experiment.rollout.horizon
            self._references = reference_returns(self._data, horizon)
        config, path = self.config, self.folder.local / "logs" / "learning_curve.png"
        title = f"{config.experiment.name} · {config.algo_name} · {data_label(config)}"
        try:
            drawn = learning_curve(self.history, path, self._references, title)
        except OSError as error:
            logger.warning("cannot draw the learning curve to '%s': %s", path, error)
            return None
        if not drawn:
            return None
        self.tracker.log_artifact(path, "figures")
        return path

    def keep_models(self, store: CheckpointStore) -> None:
        """Gives the tracker the checkpoints that the training has kept in the end.

        Args:
            store: of the run.
        """
        self._keep(store.kept(at_end=True))

    def _keep(self, kept: Sequence[KeptCheckpoint]) -> None:
        steps = {e.epoch: self._records[e.epoch].step for e in kept if e.epoch in self._records}
        self._models.update(kept, steps)

    def describe(self, store: CheckpointStore) -> None:
        """Gives the tracker the description of the run with its results.

        Args:
            store: of the run.
        """
        entry = store.best or store.last
        if entry is None:
            return
        record = self._records.get(entry.epoch)
        loss = None if record is None else record.metrics.get("Valid/Loss")
        is_best = store.best is not None
        self._describe(ChosenCheckpoint(store.path(entry), entry.epoch, is_best, loss))

    def _describe(self, chosen: ChosenCheckpoint | None = None) -> None:
        self.tracker.log_note(run_note(self.config, self.folder.uri, self._evaluations, chosen))

    def finish(self) -> None:
        """Deletes the videos of checkpoints that are not kept, once training is over."""
        if not self.config.experiment.keep_all_videos:
            store = CheckpointStore(self.folder.uri, self.config.experiment.save)
            self._drop_videos({entry.epoch for entry in store.entries})

    def close(self) -> None:
        """Ends the process that makes reports of the data."""
        self._reports.close()

    def _drop_videos(self, kept: set[int]) -> None:
        """Deletes the videos of epochs whose checkpoint is not kept, as robomimic does."""
        for video in (self.folder.local / "videos").glob("*_epoch_*.mp4"):
            epoch = video.stem.rsplit("_", 1)[-1]
            if epoch.isdigit() and int(epoch) not in kept:
                video.unlink(missing_ok=True)
                remove(join(self.folder.uri, "videos", video.name))


def _summary(evaluation: Evaluation) -> str:
    """One evaluation in a few words, for the user."""
    parts = []
    for env in evaluation.episodes or evaluation.returns:
        failed = int(evaluation.metrics.get(f"Rollout/Failed_Episodes/{env}", 0))
        if env not in evaluation.returns:
            parts.append(f"{env} all {failed} episodes failed")
            continue
        low = evaluation.metrics.get(f"Rollout/Return_CI_Low/{env}", math.nan)
        high = evaluation.metrics.get(f"Rollout/Return_CI_High/{env}", math.nan)
        text = (
            f"{env} return {readable(evaluation.returns[env])} [{readable(low)}, {readable(high)}]"
        )
        if rate := evaluation.success_rates.get(env):
            text += f", success {rate:.0%}"
        if failed:
            text += (
                f", {failed} of {failed + len(evaluation.episodes.get(env, ()))} episodes failed"
            )
        parts.append(text)
    return "; ".join(parts)


def raise_fatal(fatal: Fatal) -> None:
    """Raises the error that a worker sent."""
    kind = getattr(errors, fatal.kind, errors.TrainingError)
    error = kind(fatal.message)
    error.add_note(fatal.traceback)  # for --traceback
    raise error
