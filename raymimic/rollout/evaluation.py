"""One evaluation of one checkpoint, in this process or as a part of a larger one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch

from raymimic.checkpoints.policy import policy_from_checkpoint
from raymimic.config import import_modules
from raymimic.envs.fit import TriedEnv
from raymimic.errors import EnvError, reason
from raymimic.rollout.episodes import Episode, Film, Frame, Rules, run_episodes
from raymimic.rollout.video import Picture, captioned, enable_rendering, encode_mp4

if TYPE_CHECKING:
    from raymimic.rollout.tryout import Tryout


@dataclass(frozen=True)
class EvalJob:
    """Episodes to play with one checkpoint; the same seeds in each environment.

    Attributes:
        checkpoint: path or URI that every actor's node can read, unchanged until the result is
            there.
        env_metas: metadata of environments, by the name that results are logged under.
        seeds: one episode each, consecutive at best (see `run_episodes`).
        horizon: steps after which an episode ends.
        terminate_on_success: ends an episode as soon as its task is solved.
        use_goals: gives the policy the environment's goal.
        film: how many of the first episodes in each environment are filmed.
        video_skip: steps per frame.
        blank: observations that the policy sees as zeros.
    """

    checkpoint: str
    env_metas: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    horizon: int
    terminate_on_success: bool = True
    use_goals: bool = False
    film: int = 0
    video_skip: int = 5
    blank: Sequence[str] = ()

    def split(self, parts: int) -> list[Self]:
        """Cuts the seeds into at most `parts` consecutive, nearly equal, non-empty jobs."""
        n = len(self.seeds)
        bounds = [n * i // parts for i in range(parts + 1)]
        return [
            replace(self, seeds=self.seeds[low:high], film=max(0, min(self.film, high) - low))
            for low, high in pairwise(bounds)
            if low < high
        ]


@dataclass(frozen=True)
class Video:
    """The film of one episode.

    Attributes:
        env: name of the environment.
        seed: of the episode.
        mp4: contents of the file.
    """

    env: str
    seed: int
    mp4: bytes


@dataclass(frozen=True)
class EvalResult:
    """The episodes of an evaluation.

    Attributes:
        job: the evaluation.
        episodes: by environment, in the order of the seeds.
        seconds: wall-clock time of the slowest part.
        videos: films of the first episodes.
        no_video: why a film is missing, in one line.
    """

    job: EvalJob
    episodes: dict[str, list[Episode]]
    seconds: float
    videos: list[Video] = field(default_factory=list)
    no_video: str | None = None

    @classmethod
    def failed(cls, job: EvalJob, error: str) -> Self:
        """The result of a job whose episodes have all failed."""
        failed = [Episode.failed(seed, error) for seed in job.seeds]
        return cls(job, {env: list(failed) for env in job.env_metas}, 0.0)

    @classmethod
    def merge(cls, job: EvalJob, parts: Sequence[EvalResult]) -> Self:
        """Joins the results of parts of a job (`EvalJob.split`), in their order."""
        reasons = [part.no_video for part in parts if part.no_video]
        return cls(
            job=job,
            episodes={
                env: [episode for part in parts for episode in part.episodes.get(env, ())]
                for env in job.env_metas
            },
            seconds=max((part.seconds for part in parts), default=0.0),
            videos=[video for part in parts for video in part.videos],
            no_video=reasons[0] if reasons else None,
        )


class Evaluator(Protocol):
    """Plays evaluations: a pool of Ray actors, or a process beside the training."""

    def begin_tryout(self, tryout: Tryout) -> None:
        """Begins to try environments in a process that will play episodes."""

    def tried(self) -> dict[str, TriedEnv] | None:
        """Returns the actions that each environment takes; None while they are being tried.

        Raises:
            RaymimicError: one cannot be made, does not fit, or ended or held up its process.
        """

    @property
    def placed(self) -> bool:
        """Whether a process has been placed."""

    def submit(self, job: EvalJob, interrupted: bool = False) -> None:
        """Begins an evaluation.

        Args:
            job: episodes to play.
            interrupted: whether it was under way when an earlier process ended.
        """

    def poll(self, timeout: float = 0.0) -> list[EvalResult]:
        """Returns the evaluations that have finished, each once.

        Args:
            timeout: how long to wait for one [s].
        """

    @property
    def pending(self) -> list[EvalJob]:
        """Evaluations without a result yet, oldest first."""

    def close(self) -> None:
        """Ends the processes; pending evaluations are dropped."""


def evaluate(job: EvalJob, num_envs: int, imports: Sequence[str] = ()) -> EvalResult:
    """Plays an evaluation in this process.

    An environment that fails raises nothing (see `Episode.error`), nor does one that cannot be
    rendered (see `EvalResult.no_video`).

    Args:
        job: episodes to play.
        num_envs: environments that are stepped together.
        imports: modules to import first, which register environments or algorithms.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ConfigError: a module cannot be imported.
    """
    started = time.perf_counter()
    import_modules(imports)
    policy, _ = policy_from_checkpoint(
        ckpt_path=job.checkpoint, device=torch.device("cpu"), imports=imports
    )
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
            Rules(job.horizon, job.terminate_on_success, job.use_goals, job.blank),
            num_envs,
            film,
        )
        if film:
            no_video = no_video or film.error
            try:
                videos += [
                    Video(env, seed, encode_mp4([_captioned(frame) for frame in frames]))
                    for seed, frames in film.frames.items()
                ]
            except Exception as error:  # frames of several sizes, say, from an odd renderer
                no_video = f"the frames of '{env}' make no video: {reason(error)}"
    return EvalResult(job, episodes, time.perf_counter() - started, videos, no_video)


def _captioned(frame: Frame) -> Picture:
    """The picture, with return and step so far in its corner."""
    return captioned(frame.picture, f"return {frame.episode_return:.1f}", f"step {frame.step}")
