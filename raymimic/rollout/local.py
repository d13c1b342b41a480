"""Evaluations without Ray: in one process beside the training, or in this one."""

from collections.abc import Sequence

from raymimic.envs.fit import TriedEnv
from raymimic.errors import RaymimicError
from raymimic.rollout.apart import evaluate_apart, play_each
from raymimic.rollout.child import ChildProcess
from raymimic.rollout.evaluation import EvalJob, EvalResult, evaluate
from raymimic.rollout.tryout import Tryout, TryoutProcess


class LocalEvaluator:
    """Plays each evaluation when it is submitted; otherwise like `RolloutPool`.

    Evaluations are played in a child process, where the environments were tried: a simulator that
    crashes, or ends its process by `os._exit`, costs its episode and not the training. An
    environment or algorithm that only this process has registered is played in this process.

    Args:
        num_envs: environments that are stepped together.
        imports: modules to import first.
        apart: play in the child process from the beginning; otherwise in this process, which
            somebody else must start again after a crash.
    """

    def __init__(self, num_envs: int, imports: Sequence[str] = (), apart: bool = True) -> None:
        self._num_envs = num_envs
        self._imports = tuple(imports)
        self._apart = apart
        self._results: list[EvalResult] = []
        self._child: ChildProcess | None = None
        self._tryout: TryoutProcess | None = None

    def begin_tryout(self, tryout: Tryout) -> None:
        """Begins to try environments, in the child process."""
        self._child = ChildProcess()
        self._tryout = TryoutProcess(tryout, self._imports, self._child)

    def tried(self) -> dict[str, TriedEnv] | None:
        """The actions that each environment takes; None while they are being tried.

        Raises:
            RaymimicError: one cannot be made, does not fit, or ended or held up its process.
        """
        assert self._tryout is not None
        bounds = self._tryout.poll()
        if bounds is not None and (self._tryout.only_here or not self._apart):
            self._apart = False
            self.close()
        return bounds

    @property
    def placed(self) -> bool:
        """Always true: nothing has to be reserved."""
        return True

    @property
    def pending(self) -> list[EvalJob]:
        """Always empty: a submitted job is finished."""
        return []

    def submit(self, job: EvalJob, interrupted: bool = False) -> None:
        """Plays the job.

        Args:
            job: episodes to play.
            interrupted: whether it was under way when an earlier process ended, perhaps because
                the simulator crashed. Then it is played in a child process in any case.

        Raises:
            RaymimicError: as `evaluate`.
        """
        if self._apart or interrupted:
            self._results.append(self._play_apart(job))
        else:
            self._results.append(evaluate(job, self._num_envs, self._imports))

    def _play_apart(self, job: EvalJob) -> EvalResult:
        """Plays in the child process, and episode by episode where that crashes."""
        self._child = child = self._child or ChildProcess()
        child.call(play_each, [job], self._num_envs, self._imports)
        try:
            child.finished(timeout=None)
        except RaymimicError:
            # Perhaps an algorithm that only this process has registered; else this raises it too.
            played = evaluate(job, self._num_envs, self._imports)
            self._apart = False
            return played
        if child.crashed:
            self.close()
            self._apart = True
            return evaluate_apart(job, self._imports)
        result: EvalResult = child.records[0]
        return result

    def poll(self, timeout: float = 0.0) -> list[EvalResult]:
        """Returns the results since the last call."""
        results, self._results = self._results, []
        return results

    def close(self) -> None:
        """Ends the child process."""
        if self._child is not None:
            self._child.close()
            self._child = None
