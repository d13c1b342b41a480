"""The results of a sweep's trials, kept by its driver.

Ray Tune calls a `TrialLedger` for each event. The ledger keeps one result a trial, appends each
change to `results.jsonl`, passes it to the sweep's records, and shows it on the terminal.
"""

import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ray.tune import Stopper
from ray.tune.progress_reporter import TrialProgressCallback

from raymimic import storage
from raymimic.checkpoints.store import CheckpointStore
from raymimic.errors import LeaseLostError, OutputError, printable
from raymimic.sweep.outcome.result import TrialResult
from raymimic.sweep.spec.space import Setting
from raymimic.sweep.spec.sweep_spec import SweepSpec, Trial
from raymimic.sweep.trials.folder import Clock, SweepFolder
from raymimic.sweep.trials.lineage import Adoption, find_offered
from raymimic.sweep.trials.live import LiveTable
from raymimic.sweep.trials.messages import (
    ORDER_KEY,
    SCORE,
    STEP,
    Ended,
    kept_as,
    score_of,
    trial_order,
)
from raymimic.sweep.trials.records import SweepRecords


class TrialLedger(TrialProgressCallback):
    """Keeps the results of a sweep.

    It replaces Ray Tune's own reporter, which would print beside it even when told not to.

    Args:
        spec: the sweep.
        folder: the sweep's folder; the ledger begins with the results that it holds.
        records: the sweep's records.
        quiet: print nothing.

    Attributes:
        results: the result of each trial, by its id.
        budget: ends the sweep when its hours or episodes are used up.
    """

    def __init__(
        self, spec: SweepSpec, folder: SweepFolder, records: SweepRecords, quiet: bool
    ) -> None:
        self.results = folder.results()
        self.budget = Budget(spec, self, Clock(folder.local))
        self._failure: LeaseLostError | OutputError | None = None
        self._spec, self._folder, self._records = spec, folder, records
        self._table = LiveTable(spec, quiet)
        self._adoptions: list[tuple[str, Adoption, Setting]] = []

    def __getstate__(self) -> dict[str, Any]:
        """An empty state: Ray Tune stores its callbacks for a restore that is not used."""
        return {}

    def clear(self) -> None:
        """Takes the live table off the terminal."""
        self._table.clear()

    def say(self, text: str) -> None:
        """Prints a line."""
        self._table.line(text)

    def has_ended(self, trial: Trial) -> bool:
        """Whether a trial needs no more training.

        A resumed sweep trains failed trials again, and those that the budget stopped.
        """
        result = self.results.get(trial.trial_id)
        if result is None:
            return False
        # Under PBT a failed trial stays failed: the rest of the population has moved on.
        lost = result.status == "failed" and self._spec.scheduler == "pbt"
        return result.status == "finished" or result.stopped_by_scheduler or lost

    def left(self, trials: list[Trial]) -> list[dict[str, Any]]:
        """The orders of the trials that have not ended."""
        return [self._order_of(trial) for trial in trials if not self.has_ended(trial)]

    def replays(self) -> list[dict[str, Any]]:
        """Orders that repeat the scores of ended trials, for a scheduler that compares."""
        if self._spec.scheduler not in ("asha", "median"):
            return []
        ended = [r for r in self.results.values() if self.has_ended(_first_trial(r))]
        return [trial_order(_first_trial(result), replay=result.curve) for result in ended]

    def close_left_open(self) -> None:
        """Closes records of trials that ended just before an earlier session was killed."""
        firsts = [(_first_trial(result), result) for result in self.results.values()]
        self._records.close_left_open([pair for pair in firsts if self.has_ended(pair[0])])

    def result_of(self, trial_id: str) -> TrialResult | None:
        """The result of a trial; `failed` as soon as the trial says so, before Ray Tune does."""
        result = self.results.get(trial_id)
        if result is None or result.status != "running":
            return result
        ended = Ended.of(self.home(trial_id))
        failed = ended is not None and ended.error is not None
        return replace(result, status="failed") if failed else result

    def _order_of(self, trial: Trial) -> dict[str, Any]:
        result = self.results.get(trial.trial_id)
        if result is None or not result.schedule:
            return trial_order(trial)
        phase, adopt = result.schedule[-1], None
        if phase["from"] is not None:
            adoption = Adoption(phase["from"], phase["step"])
            adopt = find_offered(storage.join(self._folder.uri, "logs"), adoption)
        trial = replace(trial, setting=phase["setting"])
        return trial_order(trial, run_dir=result.run_dir, adopt=adopt)

    def adopt(self, trial_id: str, adoption: Adoption, setting: Setting) -> None:
        """Notes that a trial goes on from another's weights, with another setting.

        The result follows at the end of Ray Tune's round: the score that led to the adoption is
        reported in the same round, and still belongs to the trial's earlier weights.
        """
        self._adoptions.append((trial_id, adoption, setting))

    def _apply_adoptions(self) -> None:
        for trial_id, adoption, setting in self._adoptions:
            result = self.results[trial_id]
            phase = {
                "step": adoption.step,
                "from": adoption.donor,
                "setting": setting,
                "episodes": result.episodes,
            }
            run_dir = adoption.run_dir(self.home(trial_id))
            self._put(replace(result, run_dir=run_dir, schedule=[*result.schedule, phase]))
        self._adoptions = []

    @property
    def episodes(self) -> int:
        """Number of evaluation episodes that the search has played."""
        return sum(result.episodes for result in self.results.values())

    def home(self, trial_id: str) -> str:
        """The folder of a trial."""
        return storage.join(self._folder.trials, trial_id)

    # -- Ray Tune's calls --

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Opens a trial whose process starts, or starts again."""
        order, trial_id = trial.config[ORDER_KEY], str(trial)
        if order["replay"] is not None:
            return
        result = self.results.get(trial_id) or self._new_result(trial_id, Trial(**order["trial"]))
        result = replace(result, status="running", error=None)
        self._put(result)
        self._table.began(result)
        self._records.open(_first_trial(result))

    def _new_result(self, trial_id: str, trial: Trial) -> TrialResult:
        result = TrialResult.begun(trial, self.home(trial_id))
        if self._spec.scheduler != "pbt":
            return result
        first = {"step": 0, "from": None, "setting": trial.setting, "episodes": 0}
        return replace(result, schedule=[first])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Takes a trial's report: epochs, with or without a score."""
        old, report = self.results.get(str(trial)), result
        if old is None or "epochs" not in report:
            return
        self._records.log(old.trial_id, report["epochs"])
        epoch, step, *_ = max(report["epochs"], key=lambda logged: logged[0])
        self._table.reached(old.trial_id, epoch, not old.curve or step > old.curve[-1][0])
        new = self._scored(old, report) if SCORE in report else old
        if new != old:
            self._put(new)

    def _scored(self, result: TrialResult, report: dict[str, Any]) -> TrialResult:
        step, score = int(report[STEP]), float(report[SCORE])
        if result.curve and step <= result.curve[-1][0]:
            return result  # a restarted trial repeats the scores that its checkpoints hold
        before = result.schedule[-1]["episodes"] if result.schedule else 0
        result = replace(
            result,
            curve=[*result.curve, (step, score)],
            last=score,
            episodes=before + report["episodes"],
        )
        better = result.best is None or (
            score > result.best if self._spec.mode == "max" else score < result.best
        )
        if not better or not math.isfinite(score):
            return result
        file = f"model_epoch_{report['epoch']}.pth"
        path = storage.join(result.run_dir, "models", file)
        setting = result.schedule[-1]["setting"] if result.schedule else result.setting
        return replace(result, best=score, best_checkpoint=path, setting=setting)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Closes a trial that ended by itself or was stopped."""
        result = self.results.get(str(trial))
        if result is None:
            return
        ended = Ended.of(self.home(result.trial_id))
        if ended is None:
            result = replace(result, status="stopped", error=self.budget.reason)
        elif ended.error is not None:
            result = replace(result, status="failed", error=ended.error)
        else:
            result = replace(result, status="finished")
        self._end(result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Closes a trial that failed for good: it was lost, or its code failed, again and again."""
        result = self.results.get(str(trial))
        if result is not None:
            self._end(replace(result, status="failed", error=_last_error(trial)))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Ends a round of Ray Tune's loop."""
        self._apply_adoptions()
        self._table.show(self.results.values())

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Ends the trials whose end Ray Tune did not report."""
        for trial in trials:
            result = self.results.get(str(trial))
            if result is None or result.status != "running":
                continue
            if trial.status == "ERROR":  # its process could not be given to the next trial
                self.on_trial_error(0, trials, trial)
            elif self.budget.reason is not None:  # else an error or the user ended the sweep
                self.on_trial_complete(0, trials, trial)

    def _end(self, result: TrialResult) -> None:
        result = self._with_best(result)
        self._put(result)
        self._records.close(_first_trial(result), result)
        self._table.ended(result)

    def _with_best(self, result: TrialResult) -> TrialResult:
        """Adds the checkpoint that is kept among equally good ones, and its episodes' returns.

        Only returns have known episodes: such a score is their mean.
        """
        if result.best_checkpoint is None:
            return result
        store = CheckpointStore(result.best_checkpoint.rsplit("/models/", 1)[0], None)
        metric = self._spec.metric
        evaluations = {evaluation.epoch: evaluation for evaluation in store.evaluations}
        best = next((e for e in store.entries if kept_as(metric) in e.keep), None)
        # A trial that is stopped upon a score has not settled that score's evaluation.
        evaluation = evaluations.get(best.epoch) if best else None
        if best and evaluation and score_of(metric, evaluation.metrics) == result.best:
            result = replace(result, best_checkpoint=store.path(best))
        measure, _, environment = metric.removeprefix("Rollout/").partition("/")
        epochs = {store.path(e): e.epoch for e in store.entries}
        epoch = epochs.get(result.best_checkpoint or "")
        if measure != "Return" or epoch not in evaluations:
            return result
        played = evaluations[epoch].episodes
        names = [environment] if environment else list(played)
        # A score is a mean over environments, so its episodes are such means too.
        together = zip(*(played.get(name, []) for name in names), strict=False)
        return replace(result, episode_scores=[fmean(returns) for returns in together])

    def check_folder(self) -> None:
        """Makes sure that the sweep's folder can be written.

        Raises:
            OutputError: the folder cannot be written.
            LeaseLostError: another process has taken over the sweep.
        """
        if self._failure is not None:
            raise self._failure
        self._folder.check_lease()

    def _put(self, result: TrialResult) -> None:
        self.results[result.trial_id] = result
        try:
            self._folder.add(result)
        except (LeaseLostError, OutputError) as error:  # Ray Tune would blame the trial
            self._failure = self._failure or error


def _last_error(trial: Any) -> str:
    """The last line of a trial's last error.

    Ray Tune appends each error to a file; `Trial.get_error` looks for it where it is copied later.
    """
    story = ""
    with suppress(OSError, TypeError):  # a trial that had no process has no file
        story = Path(trial.error_file).read_text(errors="replace").rpartition("Failure # ")[2]
    # Of an exception this is the traceback in the process, which begins with its name in Ray.
    lines = story.strip().splitlines() if "ray::" in story else []
    return printable(lines[-1]) if lines else "its process was lost"


class Budget(Stopper):
    """Ends a sweep that has used up its hours or its episodes.

    Args:
        spec: the sweep.
        ledger: counts the episodes, and notices when the sweep's folder fails.
        clock: counts the hours.

    Attributes:
        reason: why the sweep was ended; None while it goes on.
    """

    def __init__(self, spec: SweepSpec, ledger: TrialLedger, clock: Clock) -> None:
        self.reason: str | None = None
        self._spec, self._ledger, self._clock = spec, ledger, clock

    def __getstate__(self) -> dict[str, Any]:
        """An empty state: see `TrialLedger`."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stops no single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether the sweep must end now.

        Raises:
            OutputError: the sweep's folder cannot be written.
            LeaseLostError: another process has taken over the sweep.
        """
        self._ledger.check_folder()
        hours, episodes = self._spec.hours, self._spec.episodes
        seconds = self._clock.seconds()
        if hours is not None and seconds > hours * 3600:
            self.reason = f"the sweep's {hours:g} hours were over"
        elif episodes is not None and self._ledger.episodes >= episodes:
            self.reason = f"the sweep's {episodes} evaluation episodes were played"
        return self.reason is not None


def _first_trial(result: TrialResult) -> Trial:
    """The trial as it began; under PBT its setting has changed since."""
    setting = result.schedule[0]["setting"] if result.schedule else result.setting
    return Trial(result.setting_id, setting, result.seed)
