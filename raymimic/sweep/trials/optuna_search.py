"""Optuna as a searcher of Ray Tune; each setting that it suggests is several trials.

A setting's score is the mean over its seeds of each trial's best score. Optuna gets the score when
the last of the trials has ended. The study's file lies beside the sweep, so a resumed sweep goes
on with the same study.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search import Searcher

from raymimic.sweep.outcome.result import TrialResult
from raymimic.sweep.spec.space import to_optuna
from raymimic.sweep.spec.sweep_spec import SweepSpec, Trial, setting_id
from raymimic.sweep.trials.messages import ORDER_KEY, trial_order

# The sampler is TPE for so many repeated settings, then random; after these too, the space counts
# as exhausted.
_REPEATS = 50
_DRAWS = 1000
_SETTING = "setting_id"


class OptunaSettings(Searcher):
    """Suggests one trial after the other, all seeds of a setting in a row.

    Args:
        spec: the sweep.
        study: file of the study; made if it is missing.
        result_of: gives a trial's result, by the trial's id.
        replays: orders that repeat scores of earlier trials, for the scheduler; suggested first.
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
        earlier = self.study.get_trials(deepcopy=False)
        # With the seed of an earlier session, this one would suggest the same settings again.
        seed = spec.search_seed + len(earlier)
        self._samplers = optuna.samplers.TPESampler(seed=seed), optuna.samplers.RandomSampler(seed)
        self._left = spec.num_settings
        self._asked: dict[str, int] = {}  # a setting's number in the study
        self._queue: list[Trial] = []
        self._running: dict[str, Trial] = {}
        for asked in earlier:
            if _SETTING in asked.user_attrs:
                self._left -= 1
                if asked.state == TrialState.RUNNING:  # in a session that was killed
                    self._begin(asked.number, asked.user_attrs["setting"])

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial's config, or Ray Tune's word for the end."""
        if self._replays:
            return {ORDER_KEY: self._replays.pop(0)}
        for attempt in range(_REPEATS + _DRAWS):
            if self._queue or self._left <= 0:
                break
            # In a small space TPE repeats the best setting; the budget is for new ones.
            self.study.sampler = self._samplers[attempt >= _REPEATS]
            self._ask()
        if not self._queue:
            return Searcher.FINISHED  # type: ignore[return-value] # a string, as Ray Tune wants it
        trial = self._queue.pop(0)
        self._running[trial_id] = trial
        return {ORDER_KEY: trial_order(trial)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Gives Optuna the setting's score after the last of its trials."""
        trial = self._running.pop(trial_id, None)
        if trial is not None:
            self._tell_if_done(trial)

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: a resumed sweep needs the study's file alone."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing: see `save`."""

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
        left = [trial for trial in trials if not self._has_ended(trial)]
        self._queue += left
        if not left:
            self._tell_if_done(trials[0])

    def _has_ended(self, trial: Trial) -> bool:
        result = self._result_of(trial.trial_id)
        return result is not None and (
            result.status in ("finished", "failed") or result.stopped_by_scheduler
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
