"""Plays episodes: pure and seeded.

An episode's outcome is a function of policy, environment, horizon and its own seed, whatever is
played beside it. Three things see to that. The policy's random numbers come, row by row, from the
episodes' seeds. Every forward pass has the same number of rows
(``width``), since a batch of 8 and a batch of 1 differ in the last bits, and a chaotic simulation
makes points of return of them. And an episode always sits in row ``seed % width``: for some layer
sizes the last bits depend on the row as well, though never on what the other rows hold. The rows
are in memory that torch allocated, aligned as its kernels like it, and one thread computes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from raymimic.envs.env_base import Array, EnvBase, Observation
from raymimic.envs.seeds import evaluation_seeds, final_seeds
from raymimic.envs.vector import VectorEnv

__all__ = [
    "WIDTH",
    "Episode",
    "Film",
    "evaluation_seeds",
    "final_seeds",
    "run_episodes",
]

logger = logging.getLogger(__name__)

WIDTH = 16
"""Rows of a forward pass. On a CPU twice as fast for 8 environments as 64 rows would be."""


class BatchedPolicy(Protocol):
    """What an episode needs of a policy: ``RolloutPolicy`` has it."""

    def start_episode(
        self, mask: npt.NDArray[np.bool_] | None = None, seeds: Sequence[int] | None = None
    ) -> None:
        """Clears the state of the rows in the mask ``[width]`` and seeds their random numbers."""

    def __call__(
        self, ob: Observation, goal: Observation | None = None, batched_ob: bool = False
    ) -> Array:
        """Returns actions ``[width, A]`` for raw observations ``{key: [width, ...]}``."""


@dataclass(frozen=True)
class Episode:
    """What came of one episode.

    Args:
        seed: everything random in it follows from this.
        episode_return: undiscounted sum of rewards.
        length: number of steps.
        success: whether the task was solved at any step.
        successes: each further criterion that the environment reports, likewise.
        terminated: False when horizon or time limit ended it.
        seconds: wall-clock time from reset to end, others being played meanwhile.
    """

    seed: int
    episode_return: float
    length: int
    success: bool
    terminated: bool
    seconds: float
    successes: dict[str, bool] = field(default_factory=dict)


@dataclass
class Film:
    """Frames of the episodes with these seeds.

    Args:
        seeds: which episodes to film.
        skip: one frame is taken every so many steps.
        frames: ``[H, W, 3]`` pictures by seed, in order of time.
    """

    seeds: Sequence[int]
    skip: int = 5
    frames: dict[int, list[npt.NDArray[np.uint8]]] = field(default_factory=dict)

    def take(self, seed: int, step: int, env: EnvBase) -> None:
        """Adds a frame if this episode is filmed and this step is one to keep."""
        if seed in self.seeds and step % self.skip == 0:
            self.frames.setdefault(seed, []).append(env.render(mode="rgb_array"))


@dataclass
class _Running:
    """An episode under way: the environment that plays it and what has come of it so far."""

    seed: int
    env: int
    rewards: float = 0.0
    length: int = 0
    successes: dict[str, bool] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def finished(self, terminated: bool) -> Episode:
        return Episode(
            seed=self.seed,
            episode_return=self.rewards,
            length=self.length,
            success=self.successes.get("task", False),
            terminated=terminated,
            seconds=time.perf_counter() - self.started,
            successes={k: v for k, v in self.successes.items() if k != "task"},
        )


class _Rows:
    """The observations of one forward pass, ``{key: [width, ...]}``, in aligned memory."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.arrays: Observation = {}

    def set(self, row: int, obs: Observation) -> None:
        if not self.arrays:
            self.arrays = {
                key: torch.from_numpy(np.asarray(value))
                .new_zeros(self.width, *np.shape(value))
                .numpy()
                for key, value in obs.items()
            }
        for key, value in obs.items():
            self.arrays[key][row] = value


@contextmanager
def _one_thread() -> Iterator[None]:
    """The last bits depend on the number of threads too, and small batches gain nothing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run_episodes(
    policy: BatchedPolicy,
    env_meta: Mapping[str, Any],
    seeds: Sequence[int],
    horizon: int,
    num_envs: int,
    *,
    width: int = WIDTH,
    terminate_on_success: bool = True,
    use_goals: bool = False,
    film: Film | None = None,
) -> list[Episode]:
    """Plays one episode per seed.

    Args:
        policy: one forward pass serves all environments.
        env_meta: environment to make, see :func:`~raymimic.envs.env_base.env_from_metadata`.
        seeds: distinct; best consecutive, since two episodes whose seeds are equal modulo
            ``width`` are never played at the same time.
        horizon: an episode ends after so many steps at the latest.
        num_envs: environments that are stepped together; more than ``width`` are not used.
        width: rows of a forward pass. Outcomes may differ in the last bits for another width.
        terminate_on_success: ends an episode as soon as its task is solved.
        use_goals: gives the policy the environment's goal.
        film: collects frames.

    Returns:
        One episode per seed, in the order of ``seeds``.

    Raises:
        EnvError: the environment cannot be made or rendered, or has no goal.
    """
    num_envs = max(1, min(num_envs, width, len(seeds)))
    with VectorEnv(env_meta, num_envs, render=film is not None) as envs, _one_thread():
        return _play(policy, envs, seeds, horizon, width, terminate_on_success, use_goals, film)


def _play(
    policy: BatchedPolicy,
    envs: VectorEnv,
    seeds: Sequence[int],
    horizon: int,
    width: int,
    terminate_on_success: bool,
    use_goals: bool,
    film: Film | None,
) -> list[Episode]:
    rows, goals = _Rows(width), _Rows(width)
    waiting = list(seeds)
    running: dict[int, _Running] = {}  # by row
    row_seeds = [0] * width
    idle = list(range(len(envs)))
    finished: dict[int, Episode] = {}

    policy.start_episode(seeds=row_seeds)
    while waiting or running:
        started = np.zeros(width, bool)
        for seed in list(waiting):
            if not idle:
                break
            row = seed % width
            if row in running:
                continue
            waiting.remove(seed)
            episode = running[row] = _Running(seed, idle.pop())
            rows.set(row, envs[episode.env].reset(seed=seed))
            if use_goals:
                goals.set(row, envs[episode.env].get_goal())
            started[row], row_seeds[row] = True, seed
        if started.any():
            # Idle rows too: else they would go on asking for plans in a rhythm of their own, and a
            # plan for one row costs as much as for all.
            idle_rows = [row not in running for row in range(width)]
            policy.start_episode(started | idle_rows, row_seeds)

        actions = policy(rows.arrays, goal=goals.arrays if use_goals else None, batched_ob=True)

        for row, episode in list(running.items()):
            env = envs[episode.env]
            try:
                obs, reward, done, info = env.step(actions[row])
            except env.rollout_exceptions as error:
                logger.warning("episode with seed %d broke off: %s", episode.seed, error)
                done, info = True, {}
            else:
                rows.set(row, obs)
                episode.rewards += reward
                for name, solved in env.is_success().items():
                    episode.successes[name] = episode.successes.get(name, False) or bool(solved)
                if film is not None:
                    film.take(episode.seed, episode.length, env)
                episode.length += 1
            solved = terminate_on_success and episode.successes.get("task", False)
            if done or solved or episode.length >= horizon:
                finished[episode.seed] = episode.finished(bool(info.get("terminated", False)))
                idle.append(running.pop(row).env)
    return [finished[seed] for seed in seeds]
