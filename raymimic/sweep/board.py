"""What the driver of a sweep knows of each trial, and whom it tells.

Ray Tune calls a :class:`Board` for whatever happens. The board keeps one result a trial, appends
each change to `results.jsonl`, passes it on to MLflow, and shows it on the terminal.
"""

from dataclasses import asdict, replace
from typing import Any

from ray.tune import Stopper
from ray.tune.progress_reporter import TrialProgressCallback

from raymimic.errors import OutputError
from raymimic.sweep.folder import Clock, SweepFolder
from raymimic.sweep.live import LiveTable
from raymimic.sweep.mlflow_sweep import SweepRecords
from raymimic.sweep.result import TrialResult
from raymimic.sweep.spec import SweepSpec, Trial
from raymimic.sweep.trial import ENTRY, SCORE, STEP, Ended
from raymimic.training.checkpoint import CheckpointStore
from raymimic.utils import storage


class Board(TrialProgressCallback):
    """Keeps the results of a sweep.

    It stands in for Ray Tune's own reporter, which would print beside it even when told not to.

    Args:
        spec: the sweep.
        folder: its folder; what it holds of an earlier session is taken over.
        records: MLflow's runs.
        quiet: print nothing.
    """

    def __init__(
        self, spec: SweepSpec, folder: SweepFolder, records: SweepRecords, quiet: bool
    ) -> None:
        self.results = folder.results()
        self.budget = Budget(spec, self, Clock(folder.local))
        self.failure: OutputError | None = None
        self._spec, self._folder, self._records = spec, folder, records
        self._table = LiveTable(spec, quiet)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune stores its callbacks for a restore that is not used."""
        return {}

    def clear(self) -> None:
        """Takes the live table off the terminal."""
        self._table.clear()

    def say(self, text: str) -> None:
        """Prints a line."""
        self._table.line(text)

    def has_ended(self, trial: Trial) -> bool:
        """Whether a trial needs no more training.

        One that failed is tried again when the sweep is resumed, and so is one that the budget
        stopped.
        """
        result = self.results.get(trial.trial_id)
        return result is not None and (
            result.status == "finished" or (result.status == "stopped" and result.error is None)
        )

    def entries(self, trials: list[Trial], again: bool) -> list[dict[str, Any]]:
        """What Ray Tune shall run.

        Args:
            trials: all trials of the sweep.
            again: trials that have ended report their scores again, for a scheduler that compares
                others with them.
        """
        over = [t for t in trials if self.has_ended(t)]
        for trial in over:
            self._records.amend(trial, self.results[trial.trial_id])
        entries = [
            {"trial": asdict(t), "replay": self.results[t.trial_id].curve} for t in over if again
        ]
        return entries + [
            {"trial": asdict(t), "replay": None} for t in trials if not self.has_ended(t)
        ]

    @property
    def episodes(self) -> int:
        """Evaluation episodes that the search has played."""
        return sum(result.episodes for result in self.results.values())

    def run_dir(self, trial: Trial) -> str:
        """The folder of a trial."""
        return storage.join(self._folder.trials, trial.trial_id)

    # -- Ray Tune's calls --

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has a process; perhaps again."""
        ours = _trial_of(trial)
        if ours is None:
            return
        known = self.results.get(ours.trial_id)
        if known is None:
            known = TrialResult(
                trial_id=ours.trial_id,
                setting_id=ours.setting_id,
                setting=ours.setting,
                seed=ours.seed,
                status="running",
                curve=[],
                best=None,
                last=None,
                best_checkpoint=None,
                run_dir=self.run_dir(ours),
                episodes=0,
            )
        known = replace(known, status="running", error=None)
        self._put(known)
        self._table.began(known)
        self._records.open(ours)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial has a score."""
        ours = _trial_of(trial)
        if ours is None or SCORE not in result:
            return
        known = self.results[ours.trial_id]
        self._records.log(ours.trial_id, result["epochs"])
        step, score = int(result[STEP]), float(result[SCORE])
        new = not known.curve or step > known.curve[-1][0]
        self._table.reached(ours.trial_id, result["epoch"], new)
        if not new:
            return  # a trial that was restarted tells all that its checkpoints know
        better = known.best is None or (
            score > known.best if self._spec.mode == "max" else score < known.best
        )
        known = replace(
            known,
            curve=[*known.curve, (step, score)],
            last=score,
            episodes=result["episodes"],
        )
        if better and score - score == 0.0:
            checkpoint = f"model_epoch_{result['epoch']}.pth"
            path = storage.join(known.run_dir, "models", checkpoint)
            known = replace(known, best=score, best_checkpoint=path, episode_scores=[])
        self._put(known)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended by itself, or was stopped."""
        ours = _trial_of(trial)
        if ours is None:
            return
        known = self.results[ours.trial_id]
        ended = Ended.of(known.run_dir)
        if ended is None:
            known = replace(known, status="stopped", error=self.budget.reason)
        elif ended.error is not None:
            known = replace(known, status="failed", error=ended.error)
        else:
            known = replace(known, status="finished")
        self._end(known)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has failed for good: its process was lost again and again."""
        ours = _trial_of(trial)
        if ours is not None:
            lines = str(trial.get_error() or "its process was lost").strip().splitlines()
            self._end(replace(self.results[ours.trial_id], status="failed", error=lines[-1]))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Ray Tune has looked round once more."""
        self._table.show(self.results.values())

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Ends the trials that Ray Tune stopped with the whole sweep, of which it says no more."""
        if self.budget.reason is None:
            return  # an error or the user ended it
        for trial in trials:
            ours = _trial_of(trial)
            known = self.results.get(ours.trial_id) if ours is not None else None
            if known is not None and known.status == "running":
                self.on_trial_complete(0, trials, trial)

    def _end(self, result: TrialResult) -> None:
        self._put(replace(result, episode_scores=self._episode_scores(result)))
        self._records.close(result)
        self._table.ended(result)

    def _episode_scores(self, result: TrialResult) -> list[float]:
        """The return of each episode in the evaluation with the best score."""
        measure, _, environment = self._spec.metric.removeprefix("Rollout/").partition("/")
        if measure != "Return" or result.best_checkpoint is None:
            return []
        store = CheckpointStore(result.run_dir, None)
        for outcome in store.outcomes:
            if result.best_checkpoint.endswith(f"model_epoch_{outcome.epoch}.pth"):
                names = [environment] if environment else list(outcome.episodes)
                return [score for name in names for score in outcome.episodes.get(name, [])]
        return []

    def _put(self, result: TrialResult) -> None:
        self.results[result.trial_id] = result
        try:
            self._folder.add(result)
        except OutputError as error:  # which Ray Tune would take for a trial's
            self.failure = self.failure or error


class Budget(Stopper):
    """Ends a sweep that has used up its hours or its episodes.

    Args:
        spec: the sweep.
        board: knows the episodes, and what ails the sweep's folder.
        clock: knows the hours.
    """

    def __init__(self, spec: SweepSpec, board: Board, clock: Clock) -> None:
        self.reason: str | None = None
        self._spec, self._board, self._clock = spec, board, clock

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: see :class:`Board`."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No single trial is stopped here."""
        return False

    def stop_all(self) -> bool:
        """Whether the sweep must end now.

        Raises:
            OutputError: its folder cannot be written.
        """
        if self._board.failure is not None:
            raise self._board.failure
        hours, episodes = self._spec.hours, self._spec.episodes
        seconds = self._clock.seconds()
        if hours is not None and seconds > hours * 3600:
            self.reason = f"the sweep's {hours:g} hours were over"
        elif episodes is not None and self._board.episodes >= episodes:
            self.reason = f"the sweep's {episodes} evaluation episodes were played"
        return self.reason is not None


def _trial_of(trial: Any) -> Trial | None:
    """The trial of ours behind one of Ray Tune's; none where that only replays scores."""
    entry = trial.config[ENTRY]
    return Trial(**entry["trial"]) if entry["replay"] is None else None
