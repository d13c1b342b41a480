"""Ray Tune's early stopping, as a sweep's trials need it.

Both schedulers count gradient steps. A trial that has come to its last step has ended by itself,
and need not be stopped for it.
"""

import sys
from typing import Any

from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

from raymimic.sweep.spec import SweepSpec
from raymimic.sweep.trial import SCORE, STEP


class Halving(ASHAScheduler):
    """ASHA (Li et al. 2020, arXiv:1810.05934).

    Args:
        spec: the sweep.
    """

    def __init__(self, spec: SweepSpec) -> None:
        options = spec.scheduler_options
        self._last_step = spec.total_steps or sys.maxsize
        super().__init__(
            time_attr=STEP,
            max_t=max(self._last_step, options["grace_steps"]) + 1,
            grace_period=options["grace_steps"],
            reduction_factor=options["reduction_factor"],
        )

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Compares a trial with others of its age."""
        decision = str(super().on_trial_result(tune_controller, trial, result))
        return self.CONTINUE if result.get(STEP) == self._last_step else decision


class Median(MedianStoppingRule):
    """The median rule (Golovin et al. 2017, Google Vizier, section 3.2.2).

    Args:
        spec: the sweep.
    """

    def __init__(self, spec: SweepSpec) -> None:
        options = spec.scheduler_options
        self._last_step = spec.total_steps
        super().__init__(
            time_attr=STEP,
            grace_period=options["grace_steps"],
            min_samples_required=options["min_samples"],
            # Trials don't take turns: each start of a process costs more than it could find out.
            min_time_slice=sys.maxsize,
        )

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Compares a trial with the means of others; scores that are told again count once."""
        known = self._results.get(trial)
        if SCORE not in result or (known and result[STEP] <= known[-1][STEP]):
            return self.CONTINUE
        decision = str(super().on_trial_result(tune_controller, trial, result))
        return self.CONTINUE if result[STEP] == self._last_step else decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Adds nothing: all scores are known, and a trial's last word may be none."""
