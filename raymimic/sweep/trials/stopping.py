"""Ray Tune's early stopping, as a sweep's trials need it.

Both schedulers count gradient steps. They never stop a trial at its last step: it has ended by
itself.
"""

import sys
from typing import Any

from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

from raymimic.cluster.ray_internals import median_results
from raymimic.sweep.spec.sweep_spec import SweepSpec
from raymimic.sweep.trials.messages import SCORE, STEP


class AshaScheduler(ASHAScheduler):
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
        """Compares a trial with others at the same step."""
        decision = str(super().on_trial_result(tune_controller, trial, result))
        return self.CONTINUE if result.get(STEP) == self._last_step else decision


class MedianScheduler(MedianStoppingRule):
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
            # Never pauses a trial for another: starting a process costs more than pausing saves.
            min_time_slice=sys.maxsize,
        )

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Compares a trial with the means of others; repeated scores count once."""
        earlier = median_results(self, trial)
        if SCORE not in result or (earlier and result[STEP] <= earlier[-1][STEP]):
            return self.CONTINUE
        decision = str(super().on_trial_result(tune_controller, trial, result))
        return self.CONTINUE if result[STEP] == self._last_step else decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Ignores the final report: its score is known already, or missing."""
