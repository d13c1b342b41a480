"""The seeded episode loop.

An episode's outcome depends on policy, environment, horizon and its own seed alone, and on no
episode that is played beside it:

- The policy's random numbers come, row by row, from the episodes' seeds.
- Every forward pass has the same number of rows (`width`). A batch of 8 and a batch of 1 differ in
  the last bits, which a chaotic simulation turns into points of return.
- An episode always sits in row `seed % width`. For some layer sizes the last bits depend on the
  row too, though never on the other rows' content.
- The rows lie in memory that torch allocated, aligned for its kernels, and one thread computes.
"""

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch

from raymimic.envs.env_base import Array, EnvBase, Observation
from raymimic.envs.fit import GOAL, OBSERVATION, read
from raymimic.envs.vector import VectorEnv
from raymimic.errors import EnvError
from raymimic.tracking.episode_rows import EpisodeRow
from raymimic.user_modules import own_reason

logger = logging.getLogger(__name__)

# Types of observations that torch knows; others become float64.
_TORCH_KNOWS = {
    *("bool", "uint8", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64"),
}

WIDTH = 16
"""Rows of a forward pass. On a CPU twice as fast for 8 environments as 64 rows would be."""


class BatchedPolicy(Protocol):
    """A policy that acts in all rows at once, such as `RolloutPolicy`."""

    @property
    def obs_keys(self) -> Sequence[str]:
        """The observations that it reads; it is given no others."""

    @property
    def goal_keys(self) -> Sequence[str]:
        """The goals that it reads."""

    @property
    def modalities(self) -> Mapping[str, str]:
        """The modality of each of them; no other images are drawn."""

    @property
    def acts_in_batches(self) -> bool:
        """Whether the rows of a batch may be of several environments."""

    def start_episode(
        self,
        mask: npt.NDArray[np.bool_] | None = None,
        seeds: Sequence[int] | None = None,
        lang: str | None = None,
    ) -> None:
        """Clears the state of the masked rows (`[width]`) and seeds their random numbers.

        An instruction is that of all rows from then on.
        """

    def __call__(
        self, ob: Observation, goal: Observation | None = None, batched_ob: bool = False
    ) -> Array:
        """Returns actions `[width, A]` for raw observations `{key: [width, ...]}`."""


@dataclass(frozen=True)
class Episode:
    """The outcome of one episode.

    Attributes:
        seed: source of all its randomness.
        episode_return: undiscounted sum of rewards.
        length: number of steps.
        success: whether the task was solved at any step.
        terminated: False when horizon or time limit ended it.
        seconds: wall-clock time from reset to end, in which other episodes are played too.
        successes: whether each further criterion of the environment was met, by name.
        error: why the episode failed, in one line, if it did: the environment raised an
            exception, or gave observations that the policy cannot read. The return is that of
            the steps before.
        knows_success: whether the environment has ever said if the task is solved.
    """

    seed: int
    episode_return: float
    length: int
    success: bool
    terminated: bool
    seconds: float
    successes: dict[str, bool] = field(default_factory=dict)
    error: str | None = None
    knows_success: bool = True

    @classmethod
    def failed(cls, seed: int, error: str) -> Self:
        """An episode that failed before its first step."""
        return cls(seed, 0.0, 0, False, False, 0.0, error=error)

    @property
    def row(self) -> EpisodeRow:
        """The episode as a run's records hold it."""
        ended = self.error is None
        return EpisodeRow(
            seed=self.seed,
            episode_return=self.episode_return if ended else None,
            length=self.length if ended else None,
            success=self.success if ended and self.knows_success else None,
            error=self.error,
        )


class Frame(NamedTuple):
    """A picture of an episode.

    Attributes:
        picture: `[H, W, 3]`.
        step: number of steps before it.
        episode_return: sum of their rewards.
    """

    picture: npt.NDArray[np.uint8]
    step: int
    episode_return: float


@dataclass
class Film:
    """Frames of some episodes.

    Attributes:
        seeds: the episodes to film.
        skip: steps per frame.
        frames: by seed, in order of time.
        error: why a picture could not be taken, in one line; no more are taken then.
    """

    seeds: Sequence[int]
    skip: int = 5
    frames: dict[int, list[Frame]] = field(default_factory=dict)
    error: str | None = None

    def take(self, seed: int, step: int, episode_return: float, env: EnvBase) -> None:
        """Adds a frame if this episode is filmed and this step, from 1, is one to keep."""
        if seed in self.seeds and (step - 1) % self.skip == 0 and self.error is None:
            try:
                picture = env.render(mode="rgb_array")
                self.frames.setdefault(seed, []).append(Frame(picture, step, episode_return))
            except Exception as error:  # an episode without a film is better than none
                self.error = own_reason(error)


@dataclass
class _Running:
    """An episode under way: its environment, and its outcome so far."""

    seed: int
    env: int
    rewards: float = 0.0
    length: int = 0
    successes: dict[str, bool] = field(default_factory=dict)
    knows_success: bool = False
    started: float = field(default_factory=time.perf_counter)

    def finished(self, terminated: bool, error: str | None = None) -> Episode:
        # Half an episode has solved nothing.
        solved = {} if error else self.successes
        return Episode(
            seed=self.seed,
            episode_return=self.rewards,
            length=self.length,
            success=solved.get("task", False),
            terminated=terminated,
            seconds=time.perf_counter() - self.started,
            successes={k: v for k, v in solved.items() if k != "task"},
            error=error,
            knows_success=self.knows_success,
        )


class _ObservationRows:
    """The observations of one forward pass, `{key: [width, ...]}`, in aligned memory.

    Args:
        keys: observations or goals that the policy reads.
        kind: `OBSERVATION` or `GOAL`, see `raymimic.envs.fit.read`.
        width: rows.
        blank: keys whose values are replaced by zeros.
    """

    def __init__(
        self, keys: Sequence[str], kind: str, width: int, blank: Collection[str] = ()
    ) -> None:
        self.keys, self.kind, self.width, self.blank = keys, kind, width, blank
        self.arrays: Observation = {}

    def set(self, row: int, obs: Observation) -> None:
        """Puts an environment's observation into a row.

        Raises:
            EnvError: the policy cannot read it.
        """
        for key in self.keys:
            value = read(obs, key, self.kind)
            array = self.arrays.get(key)
            if array is None:
                array = self.arrays[key] = self._zeros(value.shape, value.dtype)
            elif array.shape[1:] != value.shape:
                raise EnvError(
                    f"{self.kind} '{key}' was of shape {list(array.shape[1:])} and now is of shape "
                    f"{list(value.shape)}"
                )
            elif array.dtype != value.dtype:
                # The type changed: integers at first, floats later.
                both = np.result_type(array, value)
                if both != array.dtype:
                    old, array = array, self._zeros(value.shape, both)
                    array[...] = old
                    self.arrays[key] = array
            array[row] = 0 if key in self.blank else value

    def _zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        kind = dtype if dtype.name in _TORCH_KNOWS else np.dtype(np.float64)
        torchs = torch.from_numpy(np.empty(0, kind)).dtype
        return torch.zeros(self.width, *shape, dtype=torchs).numpy()


def _width(policy: BatchedPolicy) -> int:
    """Rows of a policy's forward pass."""
    return WIDTH if policy.acts_in_batches else 1


def _check_finite(action: Array) -> None:
    if not np.isfinite(action).all():
        raise EnvError("the policy's action holds NaN or infinite numbers")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Scope with one thread: more change the last bits, and speed up no small batch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Rules:
    """The rules of episodes.

    Attributes:
        horizon: steps after which an episode ends.
        terminate_on_success: ends an episode as soon as its task is solved.
        use_goals: gives the policy the environment's goal.
        blank: observations that the policy sees as zeros.
    """

    horizon: int
    terminate_on_success: bool = True
    use_goals: bool = False
    blank: Sequence[str] = ()


def run_episodes(
    policy: BatchedPolicy,
    env_meta: Mapping[str, Any],
    seeds: Sequence[int],
    rules: Rules,
    num_envs: int,
    film: Film | None = None,
) -> list[Episode]:
    """Plays one episode per seed.

    Args:
        policy: one forward pass serves all environments.
        env_meta: environment to make, see `raymimic.envs.kinds.env_from_metadata`; its `lang` is
            the policy's instruction.
        seeds: distinct; best consecutive, since two episodes whose seeds are equal modulo
            `WIDTH` are never played at the same time.
        rules: the end of an episode, and the policy's goals.
        num_envs: environments that are stepped together, at most `WIDTH`, and one where the
            policy does not act in batches.
        film: collects frames.

    Returns:
        one episode per seed, in the order of `seeds`. An environment that cannot be made, or
        raises an exception, fails its own episodes (`Episode.error`), and no others.

    Raises:
        EnvError: the policy does not know the instruction.
    """
    if lang := env_meta.get("lang"):
        policy.start_episode(lang=lang)
    num_envs = max(1, min(num_envs, _width(policy), len(seeds)))
    render, reads = film is not None, policy.modalities
    with VectorEnv(env_meta, num_envs, render, reads) as envs, _one_thread():
        return _Play(policy, envs, rules, film).run(seeds)


class _Play:
    """Episodes under way; the arguments are those of `run_episodes`."""

    def __init__(
        self, policy: BatchedPolicy, envs: VectorEnv, rules: Rules, film: Film | None
    ) -> None:
        self.policy, self.envs, self.rules, self.film = policy, envs, rules, film
        self.width = _width(policy)
        self.rows = _ObservationRows(policy.obs_keys, OBSERVATION, self.width, rules.blank)
        self.goals = (
            _ObservationRows(policy.goal_keys, GOAL, self.width) if rules.use_goals else None
        )
        self.idle = list(range(len(envs)))
        self.running: dict[int, _Running] = {}  # by row
        self.finished: dict[int, Episode] = {}

    def run(self, seeds: Sequence[int]) -> list[Episode]:
        waiting = list(seeds)
        row_seeds = [0] * self.width
        self.policy.start_episode(seeds=row_seeds)
        while waiting or self.running:
            started = np.zeros(self.width, bool)
            for seed in self._start(waiting):
                started[seed % self.width], row_seeds[seed % self.width] = True, seed
            if not self.running:
                continue
            if started.any():
                # Restarts idle rows too: otherwise they would ask for plans at times of their own,
                # and a plan for one row costs as much as a plan for all.
                idle_rows = [row not in self.running for row in range(self.width)]
                self.policy.start_episode(started | idle_rows, row_seeds)
            goals = self.goals.arrays if self.goals else None
            actions = self.policy(self.rows.arrays, goal=goals, batched_ob=True)
            for row, episode in list(self.running.items()):
                try:
                    over, terminated = self._step(row, episode, actions[row])
                except Exception as error:  # a simulator may raise anything
                    self._fail(self.running.pop(row), error)
                    continue
                if over:
                    self._finish(self.running.pop(row).finished(terminated), episode.env)
        return [self.finished[seed] for seed in seeds]

    def _start(self, waiting: list[int]) -> list[int]:
        """Starts as many waiting episodes as fit, and returns their seeds."""
        begun = []
        for seed in list(waiting):
            row = seed % self.width
            if not self.idle:
                break
            if row in self.running:
                continue
            index = self.idle.pop()
            try:
                env = self.envs[index]
            except EnvError as error:  # such as too little memory: the others go on without it
                logger.warning("%s", error)
                if not self.idle and not self.running:
                    for left in waiting:
                        self.finished[left] = Episode.failed(left, own_reason(error))
                    waiting.clear()
                    break
                continue
            waiting.remove(seed)
            episode = _Running(seed, index)
            try:
                self.rows.set(row, env.reset(seed=seed))
                if self.goals is not None:
                    self.goals.set(row, env.get_goal())
            except Exception as error:  # a simulator may raise anything
                self._fail(episode, error)
            else:
                self.running[row] = episode
                begun.append(seed)
        return begun

    def _step(self, row: int, episode: _Running, action: Array) -> tuple[bool, bool]:
        """Plays one action; returns whether the episode is over, and whether it terminated."""
        env = self.envs[episode.env]
        _check_finite(action)
        obs, reward, done, info = env.step(env.clip(action))
        episode.rewards += reward
        for name, solved in env.is_success().items():
            episode.successes[name] = episode.successes.get(name, False) or bool(solved)
        episode.knows_success |= env.knows_success
        episode.length += 1
        if self.film is not None:
            self.film.take(episode.seed, episode.length, episode.rewards, env)
        solved = self.rules.terminate_on_success and episode.successes.get("task", False)
        over = done or solved or episode.length >= self.rules.horizon
        if not over:  # no action follows a last observation
            self.rows.set(row, obs)
        return over, bool(info.get("terminated", False))

    def _fail(self, episode: _Running, error: Exception) -> None:
        logger.info("the episode with seed %d failed: %s", episode.seed, own_reason(error))
        self.envs.discard(episode.env)  # its state is unknown
        self._finish(episode.finished(False, own_reason(error)), episode.env)

    def _finish(self, episode: Episode, env: int) -> None:
        self.finished[episode.seed] = episode
        self.idle.append(env)


class OneRow:
    """A batched policy in one environment. Its actions are those of `run_episodes`, bit by bit.

    Args:
        policy: the policy.
        use_goals: gives it the environment's goal.
        lang: its instruction, if it sees one.

    Raises:
        EnvError: the policy does not know the instruction.
    """

    def __init__(self, policy: BatchedPolicy, use_goals: bool = False, lang: str | None = None):
        self._policy = policy
        self._use_goals = use_goals
        self._row = 0
        self._width = _width(policy)
        if lang:
            policy.start_episode(lang=lang)

    def start(self, seed: int) -> None:
        """Begins the episode of a seed."""
        self._row = seed % self._width
        self._rows = _ObservationRows(self._policy.obs_keys, OBSERVATION, self._width)
        goals = _ObservationRows(self._policy.goal_keys, GOAL, self._width)
        self._goals = goals if self._use_goals else None
        row_seeds = [0] * self._width
        row_seeds[self._row] = seed
        self._policy.start_episode(seeds=row_seeds)

    def act(self, env: EnvBase, obs: Observation) -> Array:
        """The action `[A]`, as the environment takes it.

        Args:
            env: of the episode.
            obs: its present observation.

        Raises:
            EnvError: the policy cannot read the observation, or its action is not finite.
        """
        self._rows.set(self._row, obs)
        if self._goals is not None and not self._goals.arrays:
            self._goals.set(self._row, env.get_goal())  # that of the episode's beginning
        goal = self._goals.arrays if self._goals is not None else None
        with _one_thread():
            action: Array = self._policy(self._rows.arrays, goal=goal, batched_ob=True)[self._row]
        _check_finite(action)
        return env.clip(action)
