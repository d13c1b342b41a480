"""One evaluation of one checkpoint, in this process or as a part of a larger one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from raymimic.errors import EnvError
from raymimic.rollout.episodes import Episode, Film, run_episodes
from raymimic.rollout.video import enable_rendering, encode_mp4


@dataclass(frozen=True)
class EvalJob:
    """What to evaluate; the same seeds in each environment.

    Args:
        epoch: that the result belongs to.
        checkpoint: path or URI that every actor's node can read, unchanged until the result is
            there.
        env_metas: environments by the name that results are logged under.
        seeds: one episode each, consecutive at best (see ``run_episodes``).
        horizon: steps after which an episode ends.
        terminate_on_success: ends an episode as soon as its task is solved.
        use_goals: gives the policy the environment's goal.
        film: how many of the first episodes in each environment are filmed.
        video_skip: steps per frame.
    """

    epoch: int
    checkpoint: str
    env_metas: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    horizon: int
    terminate_on_success: bool = True
    use_goals: bool = False
    film: int = 0
    video_skip: int = 5

    def split(self, parts: int) -> list[EvalJob]:
        """Cuts the seeds into at most ``parts`` consecutive, nearly equal, non-empty jobs."""
        n = len(self.seeds)
        bounds = [n * i // parts for i in range(parts + 1)]
        return [
            replace(self, seeds=self.seeds[low:high], film=max(0, min(self.film, high) - low))
            for low, high in pairwise(bounds)
            if low < high
        ]


@dataclass(frozen=True)
class Video:
    """The film of one episode, as the contents of an mp4 file."""

    env: str
    seed: int
    mp4: bytes


@dataclass(frozen=True)
class EvalResult:
    """What came of an evaluation.

    Args:
        job: that was asked for.
        episodes: by environment, in the order of the seeds.
        seconds: wall-clock time of the slowest part.
        videos: of the filmed episodes.
        no_video: why there is none although there should be, in one line.
    """

    job: EvalJob
    episodes: dict[str, list[Episode]]
    seconds: float
    videos: list[Video] = field(default_factory=list)
    no_video: str | None = None

    @classmethod
    def merge(cls, job: EvalJob, parts: Sequence[EvalResult]) -> EvalResult:
        """Joins the results of :meth:`EvalJob.split` in its order."""
        reasons = [part.no_video for part in parts if part.no_video]
        return cls(
            job=job,
            episodes={
                env: [episode for part in parts for episode in part.episodes[env]]
                for env in job.env_metas
            },
            seconds=max((part.seconds for part in parts), default=0.0),
            videos=[video for part in parts for video in part.videos],
            no_video=reasons[0] if reasons else None,
        )


def evaluate(job: EvalJob, num_envs: int, imports: Sequence[str] = ()) -> EvalResult:
    """Plays an evaluation in this process.

    Args:
        job: what to evaluate.
        num_envs: environments that are stepped together.
        imports: modules to import first (that register environments or algorithms).

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ConfigError: a module cannot be imported.
        EnvError: an environment cannot be made. One that cannot be rendered is no error, see
            ``EvalResult.no_video``.
    """
    import torch

    from raymimic.config import import_modules
    from raymimic.utils.file_utils import policy_from_checkpoint

    started = time.perf_counter()
    import_modules(imports)
    policy, _ = policy_from_checkpoint(ckpt_path=job.checkpoint, device=torch.device("cpu"))
    episodes: dict[str, list[Episode]] = {}
    videos: list[Video] = []
    no_video = None
    for env, env_meta in job.env_metas.items():
        film = Film(seeds=job.seeds[: job.film], skip=job.video_skip) if job.film else None
        if film:
            try:
                enable_rendering(env_meta, imports)
            except EnvError as error:
                no_video, film = str(error), None
        episodes[env] = run_episodes(
            policy,
            env_meta,
            job.seeds,
            job.horizon,
            num_envs,
            terminate_on_success=job.terminate_on_success,
            use_goals=job.use_goals,
            film=film,
        )
        if film:
            videos += [Video(env, seed, encode_mp4(film.frames[seed])) for seed in film.frames]
    return EvalResult(job, episodes, time.perf_counter() - started, videos, no_video)
