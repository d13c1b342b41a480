"""Evaluations on Ray actors while training goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    RayError,
    RayTaskError,
)

from raymimic.errors import EnvError, RaymimicError
from raymimic.rollout.evaluation import EvalJob, EvalResult, Video, evaluate

__all__ = ["EvalJob", "EvalResult", "RolloutPool", "Video"]

RETRIES = 3
"""How often a part of an evaluation is played again after its process died."""


class _Actor:
    """A process that plays parts of evaluations, one after the other."""

    def __init__(self, num_envs: int, imports: Sequence[str]) -> None:
        self._num_envs = num_envs
        self._imports = imports

    def pid(self) -> int:
        return os.getpid()

    def play(self, part: EvalJob) -> EvalResult:
        return evaluate(part, self._num_envs, self._imports)


class RolloutPool:
    """Ray actors that evaluate checkpoints.

    The seeds of a job are cut over the actors, and what comes back is joined in the order of the
    seeds: it does not depend on the number of actors and environments. A part whose process is
    killed, or whose node is lost, is played again by the actor's next incarnation.

    Args:
        num_actors: at least 1.
        envs_per_actor: environments that one actor steps together.
        cpus_per_actor: what Ray reserves for each; fractions are fine.
        imports: modules that each actor imports first.
    """

    def __init__(
        self,
        num_actors: int,
        envs_per_actor: int,
        cpus_per_actor: float = 1.0,
        imports: Sequence[str] = (),
    ) -> None:
        actor_class: Any = ray.remote(_Actor)
        # Not within the placement group of a sweep's trial, which reserves its own process only.
        actor_class = actor_class.options(
            num_cpus=cpus_per_actor,
            max_restarts=-1,
            max_task_retries=RETRIES,
            scheduling_strategy="DEFAULT",
        )
        self._actors: list[Any] = [
            actor_class.remote(envs_per_actor, tuple(imports)) for _ in range(num_actors)
        ]
        self._pending: list[tuple[EvalJob, list[Any]]] = []

    @property
    def pending(self) -> list[EvalJob]:
        """Jobs without a result yet, oldest first."""
        return [job for job, _ in self._pending]

    def pids(self) -> list[int]:
        """The actors' process ids; waits until they have started and finished earlier jobs."""
        pids: list[int] = ray.get([actor.pid.remote() for actor in self._actors])
        return pids

    def submit(self, job: EvalJob) -> None:
        """Queues a job behind those that are pending."""
        parts = job.split(len(self._actors))
        refs = [actor.play.remote(part) for actor, part in zip(self._actors, parts, strict=False)]
        self._pending.append((job, refs))

    def poll(self, timeout: float = 0.0) -> list[EvalResult]:
        """Returns what is finished, each result once.

        Args:
            timeout: seconds to wait for the oldest job; 0 does not wait.

        Returns:
            Results, oldest job first.

        Raises:
            EnvError: an environment cannot be made, or its process died again and again.
            RaymimicError: whatever else the evaluation raised, an environment of the user's
                perhaps; Ray's error with its traceback is the cause. Its job is no longer pending.
        """
        deadline = time.monotonic() + timeout
        results: list[EvalResult] = []
        while self._pending:  # each actor plays jobs in order, so the oldest is ready first
            job, refs = self._pending[0]
            left = 0.0 if results else max(0.0, deadline - time.monotonic())
            try:
                parts = ray.get(refs, timeout=left)
            except GetTimeoutError:
                break
            except RayError as error:
                if results:
                    break  # what is finished must not be lost; the next poll raises
                self._pending.pop(0)
                raise _explained(error, job) from error
            self._pending.pop(0)
            results.append(EvalResult.merge(job, parts))
        return results

    def close(self) -> None:
        """Ends the actors; pending jobs are dropped."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors.clear()
        self._pending.clear()


def _explained(error: RayError, job: EvalJob) -> Exception:
    """What the actor raised, or what its repeated death means."""
    envs = ", ".join(job.env_metas)
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, RaymimicError):
            return cause
        return RaymimicError(f"playing {envs} failed: {type(cause).__name__}: {cause}")
    if isinstance(error, ActorDiedError | ActorUnavailableError):
        return EnvError(f"the process that plays {envs} died {RETRIES + 1} times in a row: {error}")
    return error
