"""Makes demonstration datasets with the policies that ship with the package.

The file has robomimic's schema. Per demo: `obs/flat`, `next_obs/flat`, `actions` (float32),
`rewards`, `states` (float64) and `dones` (1 only where the task terminated, never at the time
limit), with `num_samples`. Masks: `expert`, `medium`, and `train` and `valid`, nine and one tenth
of each level. Episodes in which the expert falls because of the noise on its actions are played but
not kept. The attributes of the group `data` are `total`, `env_args`, and, for normalised scores,
the mean returns of a random and of the expert policy: `random_return`, `expert_return`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from raymimic.data.writer import RecordedEpisode
from raymimic.envs.env_base import EnvBase, EnvType
from raymimic.envs.kinds import env_from_metadata
from raymimic.envs.seeds import EPISODES, Purpose, episode_seeds
from raymimic.errors import ConfigError, EnvError, did_you_mean, nearest
from raymimic.recording.experts.expert import expert_names
from raymimic.recording.open_env import OpenEnv
from raymimic.recording.parts import Facts, Parts, keeping_parts
from raymimic.recording.players import Crash, Players
from raymimic.recording.playing import playing
from raymimic.recording.progress import ProgressBar
from raymimic.recording.source_policy import FloatArray, SourcePolicy
from raymimic.storage import check_local

ENVS = {"walker2d": "Walker2d-v5", "halfcheetah": "HalfCheetah-v5", "hopper": "Hopper-v5"}
DATASETS = {f"{task}-medium-expert": task for task in ENVS}

ACTION_NOISE = {"walker2d": 0.2, "halfcheetah": 0.1, "hopper": 0.1}
"""Standard deviation of the noise on demonstrated actions, as much as the expert bears. Data of a
deterministic policy would show neither other actions nor how to recover from an error."""
VALID_EVERY = 10
RANDOM_EPISODES = 50

_LEVELS = ("expert", "medium", "random")  # the index of a level is the stage of its seeds


@dataclass(frozen=True)
class MadeDataset:
    """A dataset that was made.

    Attributes:
        path: of the file.
        transitions: their number, by level.
        returns: the return of each demo, by level; also of `random` episodes, which are not in the
            file.
        resumed: episodes that an earlier, interrupted run had played.
        has_valid: whether there are so many demos that the filter key `valid` names some.
    """

    path: Path
    transitions: dict[str, int]
    returns: dict[str, list[float]]
    resumed: int
    has_valid: bool


def make_dataset(
    name: str,
    out: str | Path,
    n_expert: int = 100_000,
    n_medium: int = 100_000,
    num_actors: int | None = None,
    seed: int = 0,
    replace: bool = True,
    progress: bool = True,
) -> MadeDataset:
    """Plays the shipped policies and writes their episodes.

    The file's content follows from `name`, the sizes and `seed`; actors only share the work. A
    call that was interrupted goes on with the episodes in the folder `<out>.parts`.

    Args:
        name: one of `DATASETS`; `_` and `-` are the same.
        out: the HDF5 file.
        n_expert: least number of the expert's transitions; episodes are kept whole.
        n_medium: least number of the medium policy's transitions.
        num_actors: Ray actors; 0: one process beside this one, without Ray; None: one actor for
            each CPU of the cluster.
        seed: of all episodes.
        replace: whether an existing file is replaced, once the new one is complete.
        progress: shows a bar on a terminal, and prints a line now and then elsewhere.

    Raises:
        ConfigError: no such dataset.
        OutputError: the file cannot be written, or is there already, or another process writes it.
    """
    task = dataset_task(name)
    path, wanted = Path(out), {"expert": n_expert, "medium": n_medium}
    check_local(path)
    transitions = dict.fromkeys(wanted, 0)
    returns: dict[str, list[float]] = {level: [] for level in _LEVELS}
    demos: list[tuple[int, tuple[str, str]]] = []
    plan = {"dataset": task, "seed": seed, **wanted}
    with keeping_parts(path, plan, replace=replace) as parts:
        with (
            playing(_Player(task), num_actors) as players,
            ProgressBar(name, sum(wanted.values()), "steps", progress) as bar,
        ):
            for level, index, shown in _recorded(parts, players, seed, wanted):
                returns[level].append(shown.total)
                if level == "random":
                    continue
                split = "valid" if len(returns[level]) % VALID_EVERY == 0 else "train"
                demos.append((index, (level, split)))
                bar.update(min(shown.length, wanted[level] - transitions[level]))
                transitions[level] += shown.length
        with parts.writing(_env_meta(task)) as writer:
            for index, filter_keys in demos:
                parts.copy(index, writer, None, filter_keys)
            for level in ("random", "expert"):
                writer.attrs[f"{level}_return"] = float(np.mean(returns[level]))
    has_valid = any(split == "valid" for _, (_, split) in demos)
    return MadeDataset(path, transitions, returns, parts.num_kept, has_valid)


def dataset_task(name: str) -> str:
    """The task of one of `DATASETS`; `_` and `-` are the same.

    Raises:
        ConfigError: no such dataset can be made, by an expert neither.
    """
    task = DATASETS.get(name.replace("_", "-"))
    if task is None:
        first, _, rest = name.partition("-")
        experts, near = expert_names(), nearest(first, expert_names())
        theirs = [f"{near}-{rest}"] if near and rest else [f"{expert}-…" for expert in experts]
        known = [*DATASETS, *theirs]
        raise ConfigError(f"no dataset '{name}' can be made{did_you_mean(name, known)}")
    return task


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


class _Player:
    """Plays a task's policies: a `raymimic.recording.players.Player` of pairs of level and seed."""

    def __init__(self, task: str) -> None:
        self._task = task
        self._open = OpenEnv(partial(env_from_metadata, _env_meta(task)))
        self._policies: dict[str, SourcePolicy | None] = {"random": None}

    def prepare(self) -> None:
        self._open()

    def play(self, job: tuple[str, int]) -> RecordedEpisode:
        level, seed = job
        if level not in self._policies:
            self._policies[level] = SourcePolicy.shipped(self._task, level)
        return play_demo(self._open(), self._policies[level], seed, ACTION_NOISE[self._task])

    def close(self) -> None:
        self._open.close()


@dataclass(frozen=True)
class _Shown(Facts):
    """The facts about an episode: its steps, the sum of its rewards, whether an expert fell."""

    length: int = 0
    total: float = 0.0
    fell: bool = False


def _taken(level: str, outcome: RecordedEpisode | Crash) -> tuple[_Shown, RecordedEpisode | None]:
    if isinstance(outcome, Crash):
        return _Shown(crash=outcome.reason), None
    arrays = outcome.arrays()
    # Because of the noise: an expert does not show that.
    fell = level == "expert" and bool(arrays["dones"].any())
    shown = _Shown(length=len(outcome), total=float(arrays["rewards"].sum()), fell=fell)
    return shown, None if fell or level == "random" else outcome


def _recorded(
    parts: Parts, players: Players, seed: int, wanted: Mapping[str, int]
) -> Iterator[tuple[str, int, _Shown]]:
    """The episodes of a dataset with level and part, and `RANDOM_EPISODES` of a random policy."""
    for stage, level in enumerate(_LEVELS):
        seeds = episode_seeds(Purpose.DEMONSTRATION, seed, stage, EPISODES)
        episodes = transitions = 0
        jobs = [(level, s) for s in seeds]
        with closing(parts.play(players, jobs, _Shown, partial(_taken, level))) as played:
            for index, shown in played:
                if shown.crash is not None:
                    raise EnvError(f"an episode of the {level} policy crashed: {shown.crash}")
                if shown.fell:
                    continue
                yield level, index, shown
                episodes, transitions = episodes + 1, transitions + shown.length
                if level == "random":
                    enough = episodes == RANDOM_EPISODES
                else:
                    enough = transitions >= wanted[level]
                if enough:
                    break
