"""Makes demonstration datasets with the policies that ship with the package.

The file has robomimic's schema. Per demo: `obs/flat`, `next_obs/flat`, `actions` (float32),
`rewards`, `states` (float64) and `dones` (1 only where the task terminated, never at the time
limit), with `num_samples`. Masks: `expert`, `medium`, and `train` and `valid`, nine and one tenth
of each level. Episodes in which the expert falls because of the noise on its actions are played but
not kept. The attributes of the group `data` are `total`, `env_args`, and, for normalised scores,
the mean returns of a random and of the expert policy: `random_return`, `expert_return`.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]

from raymimic.data.writer import RecordedEpisode, writing_dataset
from raymimic.envs.env_base import EnvBase, EnvType
from raymimic.envs.kinds import env_from_metadata
from raymimic.envs.seeds import Purpose, episode_seeds
from raymimic.errors import ConfigError, did_you_mean
from raymimic.recording.source_policy import FloatArray, SourcePolicy
from raymimic.user_modules import safe_child_processes

ENVS = {"walker2d": "Walker2d-v5", "halfcheetah": "HalfCheetah-v5", "hopper": "Hopper-v5"}
DATASETS = {f"{task}-medium-expert": task for task in ENVS}

ACTION_NOISE = {"walker2d": 0.2, "halfcheetah": 0.1, "hopper": 0.1}
"""Standard deviation of the noise on demonstrated actions, as much as the expert bears. Data of a
deterministic policy would show neither other actions nor how to recover from an error."""
VALID_EVERY = 10
FILTER_KEYS = ("expert", "medium", "train", "valid")
RANDOM_EPISODES = 50
EPISODES_PER_TASK = 4

_LEVELS = ("expert", "medium", "random")  # the index of a level is the stage of its seeds


@dataclass(frozen=True)
class MadeDataset:
    """A dataset that was made.

    Attributes:
        path: of the file.
        transitions: their number, by level.
        returns: the return of each demo, by level; also of `random` episodes, which are not in the
            file.
    """

    path: Path
    transitions: dict[str, int]
    returns: dict[str, list[float]]


def make_dataset(
    name: str,
    out: str | Path,
    n_expert: int = 100_000,
    n_medium: int = 100_000,
    num_procs: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> MadeDataset:
    """Plays the shipped policies and writes their episodes.

    The file's content follows from `name`, the sizes and `seed`; processes only share the work.

    Args:
        name: one of `DATASETS`; `_` and `-` are the same.
        out: the HDF5 file; an existing one is replaced once the new one is complete.
        n_expert: least number of the expert's transitions; episodes are kept whole.
        n_medium: likewise of the medium policy.
        num_procs: processes; None is one for each CPU that this process may use.
        seed: of all episodes.
        progress: shows a bar on a terminal, and prints a line now and then elsewhere.

    Raises:
        ConfigError: no such dataset.
        OutputError: the file cannot be written.
    """
    task = DATASETS.get(name.replace("_", "-"))
    if task is None:
        raise ConfigError(f"no dataset '{name}' can be made{did_you_mean(name, DATASETS)}")
    path, wanted = Path(out), {"expert": n_expert, "medium": n_medium}
    transitions = dict.fromkeys(wanted, 0)
    returns: dict[str, list[float]] = {level: [] for level in _LEVELS}
    context = multiprocessing.get_context("spawn")  # threads of torch or Ray do not survive a fork
    workers = num_procs or _num_cpus()
    with (
        writing_dataset(path, _env_meta(task), FILTER_KEYS) as writer,
        safe_child_processes(),
        ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool,
        _Progress(name, sum(wanted.values()), progress) as bar,
    ):
        for level, episode in _recorded(pool, workers, task, seed, wanted):
            returns[level].append(float(episode.arrays()["rewards"].sum()))
            if level == "random":
                continue
            split = "valid" if len(returns[level]) % VALID_EVERY == 0 else "train"
            writer.add(episode, (level, split))
            bar.update(min(len(episode), wanted[level] - transitions[level]))
            transitions[level] += len(episode)
        for level in ("random", "expert"):
            writer.attrs[f"{level}_return"] = float(np.mean(returns[level]))
        pool.shutdown(cancel_futures=True)
    return MadeDataset(path, transitions, returns)


class _Progress(tqdm):  # type: ignore[misc] # tqdm has no types
    """A progress bar; without a terminal, a line for each quarter."""

    def __init__(self, name: str, total: int, show: bool) -> None:
        self._lines = show and not sys.stderr.isatty()
        disable = not show or self._lines
        super().__init__(total=total, disable=disable, desc=name, unit=" steps", unit_scale=True)
        self._name, self._done, self._all = name, 0, max(total, 1)

    def update(self, n: float | None = 1) -> bool | None:
        before, self._done = self._done, self._done + int(n or 0)
        if self._lines and 4 * before // self._all != 4 * self._done // self._all:
            print(
                f"{self._name}: {self._done:,} of {self._all:,} steps", file=sys.stderr, flush=True
            )
        shown: bool | None = super().update(n)
        return shown


def play_demo(
    env: EnvBase, policy: SourcePolicy | None, seed: int, noise: float
) -> RecordedEpisode:
    """Records one episode.

    Args:
        env: its observations are `{"flat": [D]}`, and it has simulator states.
        policy: None plays uniformly random actions.
        seed: of the environment and of the noise.
        noise: standard deviation of the Gaussian noise on actions, which are clipped to [-1, 1].
    """
    rng = np.random.default_rng(seed)
    steps: list[tuple[Any, ...]] = []
    obs, done = env.reset(seed=seed)["flat"], False
    while not done:
        if policy is None:
            action: FloatArray = rng.uniform(-1.0, 1.0, env.action_dimension)
        else:
            action = policy(obs)
            action = action + noise * rng.standard_normal(action.shape)
        action = np.clip(action, -1.0, 1.0).astype(np.float32)  # as it is stored
        state = env.get_state()["states"]
        next_obs, reward, done, info = env.step(action)
        steps.append((obs, next_obs["flat"], action, reward, info["terminated"], state))
        obs = next_obs["flat"]
    columns = [np.asarray(column) for column in zip(*steps, strict=True)]
    return RecordedEpisode(
        obs={"flat": columns[0].astype(np.float32)},
        next_obs={"flat": columns[1].astype(np.float32)},
        actions=columns[2],
        rewards=columns[3].astype(np.float64),
        dones=columns[4].astype(np.int64),
        states=columns[5],
    )


def _env_meta(task: str) -> dict[str, Any]:
    return {"env_name": ENVS[task], "type": EnvType.GYM_TYPE, "env_kwargs": {}}


def _end_with_parent() -> None:
    """Ends this worker when the process that started it is killed; the pool does not."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _num_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _play_block(task: str, level: str, seeds: list[int]) -> list[RecordedEpisode]:
    """Plays some episodes; runs in a worker process."""
    policy = None if level == "random" else SourcePolicy.shipped(task, level)
    env = env_from_metadata(_env_meta(task))
    try:
        return [play_demo(env, policy, seed, ACTION_NOISE[task]) for seed in seeds]
    finally:
        env.close()


def _recorded(
    pool: ProcessPoolExecutor, workers: int, task: str, seed: int, wanted: Mapping[str, int]
) -> Iterator[tuple[str, RecordedEpisode]]:
    """The episodes of a dataset with their level, and `RANDOM_EPISODES` of a random policy."""
    for level in _LEVELS:
        episodes = transitions = 0
        for episode in _play_in_order(pool, workers, task, level, seed):
            if level == "expert" and episode.arrays()["dones"].any():
                continue  # it fell because of the noise: an expert does not show that
            yield level, episode
            episodes, transitions = episodes + 1, transitions + len(episode)
            if level == "random":
                enough = episodes == RANDOM_EPISODES
            else:
                enough = transitions >= wanted[level]
            if enough:
                break


def _play_in_order(
    pool: ProcessPoolExecutor, workers: int, task: str, level: str, seed: int
) -> Iterator[RecordedEpisode]:
    """Endless episodes in the order of their seeds, for any number of processes."""
    stage = _LEVELS.index(level)
    seeds = iter(episode_seeds(Purpose.DEMONSTRATION, seed, stage, 2**16))
    futures: deque[Future[list[RecordedEpisode]]] = deque()
    try:
        while True:
            while len(futures) < 2 * workers:
                block = [next(seeds) for _ in range(EPISODES_PER_TASK)]
                futures.append(pool.submit(_play_block, task, level, block))
            yield from futures.popleft().result()
    finally:
        for future in futures:
            future.cancel()
