"""Makes demonstration datasets from the policies that ship with the package.

The file has robomimic's schema. Per demo: ``obs/flat``, ``next_obs/flat``, ``actions`` (float32),
``rewards``, ``states`` (float64) and ``dones`` (1 only where the task terminated, never at the
time limit), with ``num_samples``. Masks: ``expert``, ``medium``, and ``train`` and ``valid``, nine
and one tenth of each level. Episodes in which the noise on its actions makes the expert fall are
played but not kept. The group ``data`` says ``total``, ``env_args``, and, for normalised
scores, the mean returns of a random and of the expert policy: ``random_return``, ``expert_return``.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from tqdm import tqdm  # type: ignore[import-untyped]

from raymimic.data.source_policy import FloatArray, SourcePolicy
from raymimic.envs.env_base import EnvBase, env_from_metadata
from raymimic.envs.seeds import Purpose, episode_seeds
from raymimic.errors import ConfigError, OutputError, did_you_mean

ENVS = {"walker2d": "Walker2d-v5", "halfcheetah": "HalfCheetah-v5", "hopper": "Hopper-v5"}
DATASETS = {f"{task}-medium-expert": task for task in ENVS}

ACTION_NOISE = {"walker2d": 0.2, "halfcheetah": 0.1, "hopper": 0.1}
"""Standard deviation of the noise on demonstrated actions, as much as the expert bears. Data of a
deterministic policy would say nothing of other actions, nor how to recover from an error."""
VALID_EVERY = 10
RANDOM_EPISODES = 50
EPISODES_PER_TASK = 4

_LEVELS = ("expert", "medium", "random")  # their order numbers the stages of the seeds


@dataclass(frozen=True)
class Demo:
    """One recorded episode of T steps, with the dataset's names."""

    obs: npt.NDArray[np.float32]
    next_obs: npt.NDArray[np.float32]
    actions: npt.NDArray[np.float32]
    rewards: npt.NDArray[np.float64]
    dones: npt.NDArray[np.int64]
    states: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True)
class MadeDataset:
    """What was written.

    Args:
        path: of the file.
        transitions: number of them by level.
        returns: of each demo, by level (``random`` too, which the file does not hold).
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
    """Plays the shipped policies and writes what they did.

    The file's contents follow from ``name``, the sizes and ``seed``; processes only share the work.

    Args:
        name: one of ``DATASETS``; ``_`` and ``-`` are the same.
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
    path = Path(out)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    wanted = {"expert": n_expert, "medium": n_medium, "random": 0}
    returns: dict[str, list[float]] = {level: [] for level in wanted}
    masks: dict[str, list[str]] = {"expert": [], "medium": [], "train": [], "valid": []}
    transitions = {"expert": 0, "medium": 0}

    context = multiprocessing.get_context("spawn")  # threads of torch or Ray do not survive a fork
    workers = num_procs or _num_cpus()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool,
            h5py.File(part, "w") as file,
            _Progress(name, n_expert + n_medium, progress) as bar,
        ):
            data = file.create_group("data")
            for level in transitions:
                for demo in _play_in_order(pool, workers, task, level, seed):
                    if level == "expert" and demo.dones.any():
                        continue  # the noise made it fall: not what an expert shows
                    demo_name = f"demo_{len(data)}"
                    split = (
                        "valid" if len(masks[level]) % VALID_EVERY == VALID_EVERY - 1 else "train"
                    )
                    _write_demo(data.create_group(demo_name), demo)
                    masks[level].append(demo_name)
                    masks[split].append(demo_name)
                    returns[level].append(float(demo.rewards.sum()))
                    bar.update(min(len(demo), wanted[level] - transitions[level]))
                    transitions[level] += len(demo)
                    if transitions[level] >= wanted[level]:
                        break
            for demo in _play_in_order(pool, workers, task, "random", seed):
                returns["random"].append(float(demo.rewards.sum()))
                if len(returns["random"]) == RANDOM_EPISODES:
                    break
            data.attrs["total"] = sum(transitions.values())
            data.attrs["env_args"] = json.dumps(_env_meta(task))
            data.attrs["random_return"] = np.mean(returns["random"])
            data.attrs["expert_return"] = np.mean(returns["expert"])
            for mask, names in masks.items():
                file[f"mask/{mask}"] = np.array(names, dtype="S")
            pool.shutdown(cancel_futures=True)
        part.replace(path)
    except OSError as error:
        # HDF5's own message spans lines
        reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
        raise OutputError(
            f"cannot write dataset '{path}': {reason}; make room there or choose another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # there may be no such place
            part.unlink()
    return MadeDataset(path, transitions, returns)


class _Progress(tqdm):  # type: ignore[misc] # tqdm has no types
    """A progress bar; where there is no terminal, a line for each quarter."""

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


def play_demo(env: EnvBase, policy: SourcePolicy | None, seed: int, noise: float) -> Demo:
    """Records one episode.

    Args:
        env: with observations ``{"flat": [D]}`` and simulator states.
        policy: None plays uniformly random actions.
        seed: of the environment and of the noise.
        noise: standard deviation of the Gaussian noise on actions, which are cut to [-1, 1].
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
        action = np.clip(action, -1.0, 1.0).astype(np.float32)  # play exactly what is stored
        state = env.get_state()["states"]
        next_obs, reward, done, info = env.step(action)
        steps.append((obs, next_obs["flat"], action, reward, info["terminated"], state))
        obs = next_obs["flat"]
    columns = [np.asarray(column) for column in zip(*steps, strict=True)]
    return Demo(
        obs=columns[0].astype(np.float32),
        next_obs=columns[1].astype(np.float32),
        actions=columns[2],
        rewards=columns[3].astype(np.float64),
        dones=columns[4].astype(np.int64),
        states=columns[5],
    )


def _env_meta(task: str) -> dict[str, Any]:
    return {"env_name": ENVS[task], "type": 2, "env_kwargs": {}}


def _end_with_parent() -> None:
    """Ends this worker when the process that started it is killed; the pool does not see to it."""
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


def _play_block(task: str, level: str, seeds: list[int]) -> list[Demo]:
    """Plays some episodes; runs in a worker process."""
    policy = None if level == "random" else SourcePolicy.shipped(task, level)
    env = env_from_metadata(_env_meta(task))
    try:
        return [play_demo(env, policy, seed, ACTION_NOISE[task]) for seed in seeds]
    finally:
        env.close()


def _play_in_order(
    pool: ProcessPoolExecutor, workers: int, task: str, level: str, seed: int
) -> Iterator[Demo]:
    """Endless demos in the order of their seeds, however many processes play them."""
    stage = _LEVELS.index(level)
    seeds = iter(episode_seeds(Purpose.DEMONSTRATION, seed, stage, 2**16))
    futures: deque[Future[list[Demo]]] = deque()
    try:
        while True:
            while len(futures) < 2 * workers:
                block = [next(seeds) for _ in range(EPISODES_PER_TASK)]
                futures.append(pool.submit(_play_block, task, level, block))
            yield from futures.popleft().result()
    finally:
        for future in futures:
            future.cancel()


def _write_demo(group: h5py.Group, demo: Demo) -> None:
    group.attrs["num_samples"] = len(demo)
    group["obs/flat"] = demo.obs
    group["next_obs/flat"] = demo.next_obs
    group["actions"] = demo.actions
    group["rewards"] = demo.rewards
    group["dones"] = demo.dones
    group["states"] = demo.states
