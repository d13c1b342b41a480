"""Evaluations on Ray actors while training goes on."""

import contextlib
import logging
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from raymimic.cluster.lost import LOST_ACTOR
from raymimic.cluster.watch import ClusterWatch, RoomWatch
from raymimic.config import import_modules
from raymimic.envs.fit import TriedEnv
from raymimic.errors import RaymimicError
from raymimic.rollout.apart import evaluate_apart
from raymimic.rollout.evaluation import EvalJob, EvalResult, evaluate
from raymimic.rollout.tryout import Tryout
from raymimic.user_modules import ImportPath

logger = logging.getLogger(__name__)

RETRIES = 3
"""How often a part of an evaluation is played again after its process ended."""


class _RolloutActor:
    """A process that plays parts of evaluations, one after the other."""

    def __init__(self, num_envs: int, imports: Sequence[str], import_path: ImportPath) -> None:
        import_path.join()
        self._num_envs = num_envs
        self._imports = imports

    def pid(self) -> int:
        return os.getpid()

    def try_out(self, tryout: Tryout) -> dict[str, TriedEnv]:
        import_modules(self._imports)
        return tryout.run()

    def play(self, part: EvalJob) -> EvalResult:
        return evaluate(part, self._num_envs, self._imports)

    def play_apart(self, part: EvalJob) -> EvalResult:
        return evaluate_apart(part, self._imports)


@dataclass
class _Part:
    """A part of an evaluation that an actor plays."""

    job: EvalJob
    actor: Any
    ref: Any
    apart: bool = False
    result: EvalResult | None = None


class RolloutPool:
    """Ray actors that evaluate checkpoints.

    The seeds of a job are divided among the actors, and the results joined in the order of the
    seeds: they do not depend on the number of actors and environments. If an actor's process or
    node is lost, its next process plays its part again. If that ends too, several times in a row,
    a simulator crashes: then each episode is played apart, and those that crash have failed.

    Args:
        num_actors: at least 1.
        envs_per_actor: environments that one actor steps together.
        cpus_per_actor: CPUs that Ray reserves for each; fractions are fine.
        imports: modules that each actor imports first.
        cluster: notices the end of the cluster, after which no result arrives.
    """

    def __init__(
        self,
        num_actors: int,
        envs_per_actor: int,
        cpus_per_actor: float = 1.0,
        imports: Sequence[str] = (),
        cluster: ClusterWatch | None = None,
    ) -> None:
        self._cluster = cluster
        self._room: RoomWatch | None = None
        if cluster is not None:
            bundle, patience_s = {"CPU": cpus_per_actor}, cluster.patience_s
            self._room = RoomWatch(bundle, "a rollout actor", patience_s, logger.warning)
        actor_class: Any = ray.remote(_RolloutActor)
        # Not within the placement group of a sweep's trial, which reserves its own process only.
        actor_class = actor_class.options(
            num_cpus=cpus_per_actor,
            max_restarts=-1,
            max_task_retries=RETRIES,
            scheduling_strategy="DEFAULT",
        )
        arguments = (envs_per_actor, tuple(imports), ImportPath.of_this_process())
        self._actors: list[Any] = [actor_class.remote(*arguments) for _ in range(num_actors)]
        self._pending: list[tuple[EvalJob, list[_Part]]] = []
        self._tryout: Tryout | None = None
        self._placed_at: float | None = None

    @property
    def pending(self) -> list[EvalJob]:
        """Evaluations without a result yet, oldest first."""
        return [job for job, _ in self._pending]

    def pids(self) -> list[int]:
        """The actors' process ids; waits until they have started and finished earlier jobs."""
        pids: list[int] = ray.get([actor.pid.remote() for actor in self._actors])
        return pids

    def begin_tryout(self, tryout: Tryout) -> None:
        """Begins to try environments in the first actor."""
        self._tryout = tryout
        self._here = self._actors[0].pid.remote()
        self._answer = self._actors[0].try_out.remote(tryout)

    @property
    def placed(self) -> bool:
        """Whether the cluster has found a place for the first actor."""
        if self._placed_at is None and ray.wait([self._here], timeout=0.0)[0]:
            self._placed_at = time.monotonic()
        return self._placed_at is not None

    def tried(self) -> dict[str, TriedEnv] | None:
        """Returns the actions that each environment takes; None while they are being tried.

        Raises:
            RaymimicError: one cannot be made, does not fit, or ended or held up its process.
        """
        tryout = self._tryout
        assert tryout is not None
        if not self.placed or self._placed_at is None:
            return None
        try:
            bounds: dict[str, TriedEnv] = ray.get(self._answer, timeout=0.0)
            return bounds
        except GetTimeoutError:
            if time.monotonic() > self._placed_at + tryout.timeout_s:
                raise tryout.hung() from None
            return None
        except LOST_ACTOR as error:
            raise tryout.ended(f"ended its process {RETRIES + 1} times in a row") from error
        except RayError as error:
            raise _explained(error, tryout.envs) from error

    def submit(self, job: EvalJob, interrupted: bool = False) -> None:
        """Queues a job behind those that are pending.

        Args:
            job: episodes to play.
            interrupted: makes no difference, as the pool notices an actor's crash.
        """
        parts = job.split(len(self._actors))
        self._pending.append(
            (
                job,
                [
                    _Part(part, actor, actor.play.remote(part))
                    for actor, part in zip(self._actors, parts, strict=False)
                ],
            )
        )

    def poll(self, timeout: float = 0.0) -> list[EvalResult]:
        """Returns the evaluations that have finished, each once.

        Args:
            timeout: how long to wait for the oldest job [s].

        Returns:
            results, oldest job first.

        Raises:
            ClusterLostError: the cluster has ended, or has had no room for an actor for too long.
            RaymimicError: the evaluation raised it, for instance about a checkpoint that cannot be
                read; Ray's error with its traceback is the cause. The job is no longer pending.
        """
        if self._cluster is not None:
            self._cluster.check()
        if self._room is not None and self._pending:
            self._room.check()
        deadline = time.monotonic() + timeout
        results: list[EvalResult] = []
        while self._pending:  # each actor plays jobs in order, so the oldest is ready first
            job, parts = self._pending[0]
            left = 0.0 if results else max(0.0, deadline - time.monotonic())
            ray.wait([part.ref for part in parts], num_returns=len(parts), timeout=left)
            try:
                for part in parts:
                    self._take(part)
            except RaymimicError:
                if results:
                    break  # finished results must not be lost; the next poll raises
                self._pending.pop(0)
                if self._cluster is not None:
                    self._cluster.check(now=True)  # its end would explain the error
                raise
            done = [part.result for part in parts if part.result is not None]
            if len(done) < len(parts):
                break
            self._pending.pop(0)
            results.append(EvalResult.merge(job, done))
        return results

    def _take(self, part: _Part) -> None:
        """Stores the result of a part, if its actor has finished it."""
        if part.result is not None:
            return
        try:
            part.result = ray.get(part.ref, timeout=0.0)
        except GetTimeoutError:
            return
        except LOST_ACTOR:
            if not part.apart:
                part.apart, part.ref = True, part.actor.play_apart.remote(part.job)
                return
            reason = f"its process died {RETRIES + 1} times in a row"
            part.result = EvalResult.failed(part.job, reason)
        except RayError as error:
            raise _explained(error, part.job.env_metas) from error

    def close(self) -> None:
        """Ends the actors; pending jobs are dropped."""
        for actor in self._actors:
            with contextlib.suppress(RayError):  # the cluster may have ended
                ray.kill(actor)
        self._actors.clear()
        self._pending.clear()


def _explained(error: RayError, envs: Iterable[str]) -> RaymimicError:
    """The exception of an actor as an error for the user."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, RaymimicError):
        return cause
    return RaymimicError(f"playing {', '.join(envs)} failed: {type(cause).__name__}: {cause}")
