"""Plays an evaluation in processes of its own, where a crash costs one episode only."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from raymimic.rollout.child import ChildProcess
from raymimic.rollout.evaluation import EvalJob, EvalResult, evaluate


def evaluate_apart(job: EvalJob, imports: Sequence[str] = ()) -> EvalResult:
    """Plays one episode after the other in another process, and a new one after each crash.

    An episode follows from its seed alone, so a crash changes no other episode.

    Args:
        job: episodes to play.
        imports: modules to import first.

    Raises:
        RaymimicError: as `evaluate`.
    """
    singles = [
        replace(job, env_metas={name: meta}, seeds=[seed], film=int(index < job.film))
        for name, meta in job.env_metas.items()
        for index, seed in enumerate(job.seeds)
    ]
    results: list[EvalResult] = []
    while len(results) < len(singles):
        child = ChildProcess()
        try:
            child.call(play_each, singles[len(results) :], 1, tuple(imports))
            child.finished(timeout=None)
            results += child.records
            if len(results) < len(singles):
                crashed = singles[len(results)]
                reason = f"its process ended with {child.story()}"
                results.append(EvalResult.failed(crashed, reason))
        finally:
            child.close()
    whole = EvalResult.merge(job, results)
    return replace(whole, seconds=sum(result.seconds for result in results))


def play_each(jobs: list[EvalJob], num_envs: int, imports: tuple[str, ...]) -> Iterator[EvalResult]:
    """Plays jobs one after the other; a child process calls this.

    Args:
        jobs: episodes to play.
        num_envs: environments that are stepped together.
        imports: modules to import first.

    Yields:
        the result of each job.
    """
    for job in jobs:
        yield evaluate(job, num_envs, imports=imports)
