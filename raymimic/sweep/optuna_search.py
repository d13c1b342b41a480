"""Optuna as a searcher of Ray Tune that thinks in settings, of which each is several trials.

A setting's score is the mean over its seeds of the best score of each. Optuna hears of it when the
last of its seeds has ended. The study lies beside the sweep, so that a resumed sweep goes on with
what Optuna knew.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search import Searcher

from raymimic.sweep.result import TrialResult
from raymimic.sweep.space import to_optuna
from raymimic.sweep.spec import SweepSpec, Trial, setting_id
from raymimic.sweep.trial import ENTRY, entry

# Of settings that were tried before, after which the space counts as exhausted.
_REPEATS = 50
_DRAWS = 1000
_SETTING = "setting_id"


class OptunaSettings(Searcher):
    """Suggests one trial after the other, all seeds of a setting in a row.

    Args:
        spec: the sweep.
        study: file of the study; made where it is not there.
        result_of: what is known of a trial, by its id.
        replays: scores of earlier trials, which the scheduler shall hear of first.
    """

    def __init__(
        self,
        spec: SweepSpec,
        study: Path,
        result_of: Callable[[str], TrialResult | None],
        replays: Sequence[dict[str, Any]] = (),
    ) -> None:
        super().__init__(metric=None, mode=None)
        self._spec, self._result_of, self._replays = spec, result_of, list(replays)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = JournalStorage(JournalFileBackend(str(study)))
        self.study = optuna.create_study(
            study_name=spec.name,
            storage=storage,
            direction="maximize" if spec.mode == "max" else "minimize",
            load_if_exists=True,
        )
        known = self.study.get_trials(deepcopy=False)
        # A session that draws as the one before would only suggest the same again.
        seed = spec.search_seed + len(known)
        self._samplers = optuna.samplers.TPESampler(seed=seed), optuna.samplers.RandomSampler(seed)
        self._left = spec.num_settings
        self._asked: dict[str, int] = {}  # a setting's number in the study
        self._queue: list[Trial] = []
        self._running: dict[str, Trial] = {}
        for one in known:
            if _SETTING in one.user_attrs:
                self._left -= 1
                if one.state == TrialState.RUNNING:  # in a session that was killed
                    self._begin(one.number, one.user_attrs["setting"])

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial's config, or that there are no more."""
        if self._replays:
            return {ENTRY: self._replays.pop(0)}
        for attempt in range(_REPEATS + _DRAWS):
            if self._queue or self._left <= 0:
                break
            # In a space of few settings TPE comes back to the best; the budget is for others.
            self.study.sampler = self._samplers[attempt >= _REPEATS]
            self._ask()
        if not self._queue:
            return Searcher.FINISHED  # type: ignore[return-value] # a word, as Ray Tune wants it
        trial = self._queue.pop(0)
        self._running[trial_id] = trial
        return {ENTRY: entry(trial)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tells Optuna of the setting when that was the last of its seeds."""
        trial = self._running.pop(trial_id, None)
        if trial is not None:
            self._tell_if_done(trial)

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the study's file is all that a resumed sweep needs."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing: see :meth:`save`."""

    def _ask(self) -> None:
        asked = self.study.ask()
        setting = to_optuna(self._spec.space, asked)
        name = setting_id(setting)
        tried = {t.user_attrs.get(_SETTING) for t in self.study.get_trials(deepcopy=False)}
        if name in tried:
            self.study.tell(asked, state=TrialState.FAIL)
            return
        asked.set_user_attr("setting", setting)
        asked.set_user_attr(_SETTING, name)
        self._left -= 1
        self._begin(asked.number, setting)

    def _begin(self, number: int, setting: dict[str, Any]) -> None:
        self._asked[setting_id(setting)] = number
        trials = [self._spec.trial(setting, seed) for seed in self._spec.seeds]
        open_ones = [t for t in trials if not self._has_ended(t)]
        self._queue += open_ones
        if not open_ones:
            self._tell_if_done(trials[0])

    def _has_ended(self, trial: Trial) -> bool:
        result = self._result_of(trial.trial_id)
        return result is not None and (
            result.status in ("finished", "failed")
            or (result.status == "stopped" and result.error is None)
        )

    def _tell_if_done(self, trial: Trial) -> None:
        number = self._asked.get(trial.setting_id)
        waiting = [t.setting_id for t in (*self._queue, *self._running.values())]
        if number is None or trial.setting_id in waiting:
            return
        del self._asked[trial.setting_id]
        results = [
            self._result_of(self._spec.trial(trial.setting, seed).trial_id)
            for seed in self._spec.seeds
        ]
        scores = [r.best for r in results if r and r.status != "failed" and r.best is not None]
        if len(scores) < len(results):  # a mean over fewer seeds could not be compared
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, sum(scores) / len(scores))
