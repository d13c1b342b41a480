"""Population based training: the weakest trials go on from the strongest's weights.

Every so many gradient steps all trials wait for each other. Then each of the weakest takes over
networks, targets, optimizers and schedules of one of the strongest, with perturbed hyperparameters
(Jaderberg et al. 2017, arXiv:1711.09846). Waiting makes the comparison fair, and the result
independent of how many trials run at a time.

Ray Tune's scheduler decides and copies (`lineage.py`).
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ray.tune.schedulers import PopulationBasedTraining

from raymimic.cluster.ray_internals import next_perturbation, population_state
from raymimic.sweep.outcome.result import TrialResult
from raymimic.sweep.spec.space import Setting, perturb
from raymimic.sweep.spec.sweep_spec import SweepSpec
from raymimic.sweep.trials.lineage import Adoption
from raymimic.sweep.trials.messages import ORDER_KEY, SCORE, STEP

# Key in a Ray Tune config: the trial it was copied from.
_DONOR = "donor"


class PbtScheduler(PopulationBasedTraining):
    """Ray Tune's scheduler with a sweep's space, and draws that follow from seed and step.

    Args:
        spec: the sweep.
        results: results of an earlier session, from which the population goes on.
        on_adoption: called with a trial that takes over another's weights, and its new setting.
    """

    def __init__(
        self,
        spec: SweepSpec,
        results: Mapping[str, TrialResult],
        on_adoption: Callable[[str, Adoption, Setting], None],
    ) -> None:
        options = spec.scheduler_options
        super().__init__(
            time_attr=STEP,
            perturbation_interval=options["interval_steps"],
            burn_in_period=_next_comparison(spec, list(results.values())),
            quantile_fraction=options["quantile"],
            custom_explore_fn=self._explore,
            log_config=False,
            synch=True,
        )
        self._spec, self._on_adoption = spec, on_adoption
        self._last_step = spec.total_steps or math.inf

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Makes a trial wait for the others; the last of them starts the exchange of weights."""
        comparison = next_perturbation(self)
        # Ignore reports repeated by a restarted trial, and those at the last step: nobody can
        # continue from them.
        if SCORE not in result or not comparison <= result[STEP] < self._last_step:
            return self.CONTINUE
        for live_trial in tune_controller.get_live_trials():
            if live_trial.is_finished():  # Ray Tune counts failed trials as alive
                population_state(self, live_trial).last_train_time = comparison
        # Ray Tune copies a donor's config as it is, so the config names its trial.
        trials = tune_controller.get_trials()
        for other in trials:
            other.config = {**other.config, _DONOR: str(other)}
        before = random.getstate()
        random.seed(f"{self._spec.search_seed} {result[STEP]}")
        try:
            decision = str(super().on_trial_result(tune_controller, trial, result))
        finally:
            random.setstate(before)
        for other in trials:
            donor = other.config[_DONOR]
            if donor != str(other):
                setting = other.config[ORDER_KEY]["trial"]["setting"]
                self._on_adoption(str(other), Adoption(donor, result[STEP]), setting)
        return decision

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Keeps the state of a trial that is restarted after its process was lost."""
        if population_state(self, trial) is None:
            super().on_trial_add(tune_controller, trial)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Lets the others go on if they waited for a trial that has ended."""
        self._go_on_without(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Lets the others go on if they waited for a trial that has failed for good."""
        # Ray Tune has marked a trial that it will restart as finished before it calls this.
        if not trial.is_finished():
            self._go_on_without(tune_controller, trial)

    def _go_on_without(self, tune_controller: Any, gone: Any) -> None:
        population_state(self, gone).last_train_time = next_perturbation(self)
        population_state(self, gone).last_score = None
        others = [
            trial
            for trial in tune_controller.get_live_trials()
            if trial is not gone and not trial.is_finished()
        ]
        times = [population_state(self, trial).last_train_time for trial in others]
        if others and min(times) >= next_perturbation(self):
            last: dict[str, Any] = population_state(self, others[0]).last_result or {}
            self.on_trial_result(tune_controller, others[0], last)

    def _explore(self, config: dict[str, Any]) -> dict[str, Any]:
        """The donor's config with perturbed hyperparameters."""
        trial = config[ORDER_KEY]["trial"]
        rng = np.random.default_rng(random.getrandbits(64))
        resample = self._spec.scheduler_options["resample"]
        setting = perturb(self._spec.space, trial["setting"], rng, resample)
        order = {**config[ORDER_KEY], "trial": {**trial, "setting": setting}, "run_dir": None}
        return {**config, ORDER_KEY: order}


def _next_comparison(spec: SweepSpec, results: Sequence[TrialResult]) -> int:
    """The gradient step at which trials are compared next.

    The last comparison is over if a trial has trained beyond it or adopted weights there. Else it
    is made again, with the same scores and the same draws.
    """
    interval: int = spec.scheduler_options["interval_steps"]
    living = [result for result in results if result.status != "failed"]
    reached = [result.curve[-1][0] if result.curve else 0 for result in living]
    if len(results) < spec.num_trials or not living:
        return interval
    last = min(reached) // interval * interval
    adopted = [phase["step"] for result in living for phase in result.schedule]
    over = last == 0 or max(*reached, *adopted) > last or last in adopted
    return last + interval if over else last
