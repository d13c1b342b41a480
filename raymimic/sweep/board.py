"""What the driver of a sweep knows of each trial, and whom it tells.

Ray Tune calls a :class:`Board` for whatever happens. The board keeps one result a trial, appends
each change to `results.jsonl`, passes it on to MLflow, and shows it on the terminal.
"""

import math
from dataclasses import replace
from statistics import fmean
from typing import Any

from ray.tune import Stopper
from ray.tune.progress_reporter import TrialProgressCallback

from raymimic.errors import OutputError
from raymimic.sweep.folder import Clock, SweepFolder
from raymimic.sweep.live import LiveTable
from raymimic.sweep.mlflow_sweep import SweepRecords
from raymimic.sweep.population import Adoption, find_offered
from raymimic.sweep.result import TrialResult
from raymimic.sweep.space import Setting
from raymimic.sweep.spec import SweepSpec, Trial
from raymimic.sweep.trial import ENTRY, SCORE, STEP, Ended, entry, kept_as, score_of
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
        self._adoptions: list[tuple[str, Adoption, Setting]] = []

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
        if result is None:
            return False
        by_scheduler = result.status == "stopped" and result.error is None
        # Of a population, those that are alive have gone on.
        lost = result.status == "failed" and self._spec.scheduler == "pbt"
        return result.status == "finished" or by_scheduler or lost

    def left(self, trials: list[Trial]) -> list[dict[str, Any]]:
        """What Ray Tune shall run: the trials that have not ended."""
        return [self._entry(trial) for trial in trials if not self.has_ended(trial)]

    def replays(self) -> list[dict[str, Any]]:
        """Scores of trials that have ended, for a scheduler that compares others with them."""
        if self._spec.scheduler not in ("asha", "median"):
            return []
        over = [r for r in self.results.values() if self.has_ended(_begun(r))]
        return [entry(_begun(result), replay=result.curve) for result in over]

    def amend(self) -> None:
        """Closes records of trials that ended just before an earlier session was killed."""
        for result in self.results.values():
            if self.has_ended(_begun(result)):
                self._records.amend(_begun(result), result)

    def result_of(self, trial_id: str) -> TrialResult | None:
        """What is known of a trial, also if it has failed and Ray Tune has not said so yet."""
        known = self.results.get(trial_id)
        if known is None or known.status != "running":
            return known
        ended = Ended.of(self.home(trial_id))
        failed = ended is not None and ended.error is not None
        return replace(known, status="failed") if failed else known

    def _entry(self, trial: Trial) -> dict[str, Any]:
        known = self.results.get(trial.trial_id)
        if known is None or not known.schedule:
            return entry(trial)
        newest, adopt = known.schedule[-1], None
        if newest["from"] is not None:
            adoption = Adoption(newest["from"], newest["step"])
            adopt = find_offered(storage.join(self._folder.uri, "logs"), adoption)
        trial = replace(trial, setting=newest["setting"])
        return entry(trial, run_dir=known.run_dir, adopt=adopt)

    def adopt(self, trial_id: str, adoption: Adoption, setting: Setting) -> None:
        """A trial goes on from another's weights, with another setting.

        It is noted when Ray Tune has told of the result that led to it, which still belongs to the
        trial's own weights.
        """
        self._adoptions.append((trial_id, adoption, setting))

    def _note_adoptions(self) -> None:
        for trial_id, adoption, setting in self._adoptions:
            known = self.results[trial_id]
            begin = {
                "step": adoption.step,
                "from": adoption.donor,
                "setting": setting,
                "episodes": known.episodes,
            }
            run_dir = adoption.run_dir(self.home(trial_id))
            self._put(replace(known, run_dir=run_dir, schedule=[*known.schedule, begin]))
        self._adoptions = []

    @property
    def episodes(self) -> int:
        """Evaluation episodes that the search has played."""
        return sum(result.episodes for result in self.results.values())

    def home(self, trial_id: str) -> str:
        """The folder of a trial."""
        return storage.join(self._folder.trials, trial_id)

    # -- Ray Tune's calls --

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has a process; perhaps again."""
        told, trial_id = trial.config[ENTRY], str(trial)
        if told["replay"] is not None:
            return
        known = self.results.get(trial_id)
        if known is None:
            setting = told["trial"]["setting"]
            first = {"step": 0, "from": None, "setting": setting, "episodes": 0}
            known = TrialResult(
                trial_id=trial_id,
                setting_id=told["trial"]["setting_id"],
                setting=setting,
                seed=told["trial"]["seed"],
                status="running",
                curve=[],
                best=None,
                last=None,
                best_checkpoint=None,
                run_dir=self.home(trial_id),
                episodes=0,
                schedule=[first] if self._spec.scheduler == "pbt" else [],
            )
        known = replace(known, status="running", error=None)
        self._put(known)
        self._table.began(known)
        self._records.open(_begun(known))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial has a score, or tells of epochs without one."""
        known = self.results.get(str(trial))
        if known is None or "epochs" not in result:
            return
        self._records.log(known.trial_id, result["epochs"])
        epoch, step, _ = max(result["epochs"], key=lambda told: told[0])
        self._table.reached(known.trial_id, epoch, not known.curve or step > known.curve[-1][0])
        if SCORE in result:
            known = self._scored(known, result)
        if known != self.results[known.trial_id]:
            self._put(known)

    def _scored(self, known: TrialResult, result: dict[str, Any]) -> TrialResult:
        step, score = int(result[STEP]), float(result[SCORE])
        if known.curve and step <= known.curve[-1][0]:
            return known  # a trial that was restarted tells all that its checkpoints know
        before = known.schedule[-1]["episodes"] if known.schedule else 0
        known = replace(
            known,
            curve=[*known.curve, (step, score)],
            last=score,
            episodes=before + result["episodes"],
        )
        better = known.best is None or (
            score > known.best if self._spec.mode == "max" else score < known.best
        )
        if not better or not math.isfinite(score):
            return known
        file = f"model_epoch_{result['epoch']}.pth"
        path = storage.join(known.run_dir, "models", file)
        setting = known.schedule[-1]["setting"] if known.schedule else known.setting
        return replace(known, best=score, best_checkpoint=path, setting=setting)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended by itself, or was stopped."""
        known = self.results.get(str(trial))
        if known is None:
            return
        ended = Ended.of(self.home(known.trial_id))
        if ended is None:
            known = replace(known, status="stopped", error=self.budget.reason)
        elif ended.error is not None:
            known = replace(known, status="failed", error=ended.error)
        else:
            known = replace(known, status="finished")
        self._end(known)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has failed for good: its process was lost again and again."""
        known = self.results.get(str(trial))
        if known is not None:
            lines = str(trial.get_error() or "its process was lost").strip().splitlines()
            self._end(replace(known, status="failed", error=lines[-1]))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Ray Tune has looked round once more."""
        self._note_adoptions()
        self._table.show(self.results.values())

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Ends the trials of which Ray Tune has said no more."""
        for trial in trials:
            known = self.results.get(str(trial))
            if known is None or known.status != "running":
                continue
            if trial.status == "ERROR":  # its process could not be given to the next one
                self.on_trial_error(0, trials, trial)
            elif self.budget.reason is not None:  # else an error or the user ended the sweep
                self.on_trial_complete(0, trials, trial)

    def _end(self, result: TrialResult) -> None:
        result = self._with_best(result)
        self._put(result)
        self._records.close(_begun(result), result)
        self._table.ended(result)

    def _with_best(self, result: TrialResult) -> TrialResult:
        """Adds which of equally good checkpoints is kept, and what each of its episodes returned.

        Episodes are known of the return alone, which is what a score is the mean of.
        """
        if result.best_checkpoint is None:
            return result
        store = CheckpointStore(result.best_checkpoint.rsplit("/models/", 1)[0], None)
        metric = self._spec.metric
        outcomes = {outcome.epoch: outcome for outcome in store.outcomes}
        best = next((e for e in store.entries if kept_as(metric) in e.keep), None)
        # A trial that is stopped upon a score has not settled the evaluation which that is of.
        found = outcomes.get(best.epoch) if best else None
        if best and found and score_of(metric, found.metrics) == result.best:
            result = replace(result, best_checkpoint=store.path(best))
        measure, _, environment = metric.removeprefix("Rollout/").partition("/")
        files = {store.path(e): e.epoch for e in store.entries}
        epoch = files.get(result.best_checkpoint or "")
        if measure != "Return" or epoch not in outcomes:
            return result
        played = outcomes[epoch].episodes
        names = [environment] if environment else list(played)
        # A score is a mean over environments, which are not to be drawn against each other.
        together = zip(*(played.get(name, []) for name in names), strict=False)
        scores = [fmean(one_each) for one_each in together]
        return replace(result, episode_scores=scores)

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


def _begun(result: TrialResult) -> Trial:
    """The trial as it began; under PBT its setting has changed since."""
    setting = result.schedule[0]["setting"] if result.schedule else result.setting
    return Trial(result.setting_id, setting, result.seed)
