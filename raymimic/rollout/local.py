"""Evaluations in this process, for training without Ray."""

from collections.abc import Sequence

from raymimic.rollout.evaluation import EvalJob, EvalResult, evaluate


class LocalEvaluator:
    """Plays each evaluation when it is submitted; otherwise like `RolloutPool`.

    Args:
        num_envs: environments that are stepped together.
        imports: modules to import first.
    """

    def __init__(self, num_envs: int, imports: Sequence[str] = ()) -> None:
        self._num_envs = num_envs
        self._imports = tuple(imports)
        self._results: list[EvalResult] = []

    @property
    def pending(self) -> list[EvalJob]:
        """Always empty: a submitted job is finished."""
        return []

    def submit(self, job: EvalJob) -> None:
        """Plays the job."""
        self._results.append(evaluate(job, self._num_envs, self._imports))

    def poll(self, timeout: float = 0.0) -> list[EvalResult]:
        """Returns the results since the last call."""
        results, self._results = self._results, []
        return results

    def close(self) -> None:
        """Nothing to end."""
