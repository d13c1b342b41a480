"""Records demonstrations of experts, as a dataset in robomimic's schema.

Per demo: `obs/<key>`, `actions` (float32, in [-1, 1], as they were executed, noise included),
`states` of the simulator before each step (float64), and, where the expert has a task, `rewards`
and `dones`: 1 where the task terminated, and at the last step of a demo that solves it, as in
robomimic's files, but never at a time limit. Floating-point observations are float32, images uint8
`[T, H, W, 3]`. Attributes of a demo: `num_samples`, `seed`, `success`, and robosuite's
`model_file` and `ep_meta`. Masks: `train` and `valid`, nine and one tenth of the demos.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from raymimic.config import import_modules
from raymimic.data.writer import RecordedEpisode
from raymimic.envs.env_base import Array, EnvBase, Observation
from raymimic.envs.kinds import env_from_metadata
from raymimic.envs.render_settings import DEPTH, IMAGE
from raymimic.envs.seeds import EPISODES, Purpose, episode_seeds
from raymimic.errors import ConfigError, EnvError
from raymimic.recording.experts.expert import Expert, expert_of
from raymimic.recording.open_env import OpenEnv
from raymimic.recording.parts import Facts, keeping_parts
from raymimic.recording.players import Crash
from raymimic.recording.playing import playing
from raymimic.recording.progress import ProgressBar
from raymimic.storage import check_local

VALID_EVERY = 10
MOST_IN_A_ROW = 20
"""Recording ends with an error when so many episodes in a row are of no use."""
_MOST_DEMOS = EPISODES // 2
STATE_ATTRS = {"model": "model_file", "ep_meta": "ep_meta"}
"""The parts of a state that are the same in a whole demo, and their attributes in a file."""


@dataclass(frozen=True)
class Recipe:
    """The way in which an expert's demonstrations are recorded.

    Attributes:
        name: of the dataset, such as `metaworld-push-v3`.
        render: the cameras, see `render` in `env_args`; None: none.
        noise: of the expert, see its class; None is its default.
        horizon: steps after which an episode ends; None is the expert's.
        next_obs: whether to store the observations after each step; None: only without cameras.
    """

    name: str
    render: Mapping[str, Any] | None = None
    noise: float | None = None
    horizon: int | None = None
    next_obs: bool | None = None

    stage: ClassVar[int] = 0  # of the seeds: other recipes have other episodes

    @property
    def stores_next_obs(self) -> bool:
        """Whether `next_obs` is stored."""
        return self.render is None if self.next_obs is None else self.next_obs

    def expert(self) -> Expert:
        """Makes the expert.

        Raises:
            ConfigError: there is no such expert or task.
            EnvError: its simulator is not installed.
        """
        return expert_of(self.name, self.noise, self.horizon)

    def player(self) -> ExpertPlayer:
        """Makes the player of its episodes, a copy of which each process has."""
        return ExpertPlayer(self)

    def open(self, expert: Expert) -> EnvBase:
        """Makes the environment."""
        env_meta = expert.env_meta
        if self.render is not None:
            env_meta = {**env_meta, "render": dict(self.render)}
        return env_from_metadata(env_meta)

    def attrs(self) -> dict[str, Any]:
        """The attributes of the file that name the recipe."""
        return {"expert": self.name, "noise": self.expert().noise}

    def plan(self) -> dict[str, Any]:
        """All that its episodes follow from, as JSON values, but for their seeds."""
        return {
            "dataset": self.name,
            "render": self.render,
            "noise": self.noise,
            "horizon": self.horizon,
            "next_obs": self.stores_next_obs,
        }

    def filter_keys(self, solved: bool | None) -> tuple[str, ...]:
        """Further filter keys of a demo, beside `train` and `valid`.

        Args:
            solved: see `PlayedEpisode`.
        """
        return ()


@dataclass(frozen=True)
class PlayedEpisode:
    """One played episode.

    Attributes:
        episode: its data.
        solved: whether the task was solved at any step; None: there is no task, or the environment
            never said.
        spoiled: whether it is of no use, see `Expert.spoiled`.
    """

    episode: RecordedEpisode
    solved: bool | None
    spoiled: bool = False


@dataclass(frozen=True)
class Take(Facts):
    """The facts about an episode.

    Attributes:
        solved: see `PlayedEpisode`.
        spoiled: see `PlayedEpisode`.
        kept: whether it is a demo of the dataset.
        length: its steps.
        total: the sum of its rewards.
        keys: of its observations.
    """

    solved: bool | None = None
    spoiled: bool = False
    kept: bool = False
    length: int = 0
    total: float = 0.0
    keys: Sequence[str] = ()

    @classmethod
    def of(cls, outcome: PlayedEpisode | Crash, keep_failures: bool) -> Take:
        """The facts about an episode that was played."""
        if isinstance(outcome, Crash):
            return cls(crash=outcome.reason)
        episode = outcome.episode
        return cls(
            solved=outcome.solved,
            spoiled=outcome.spoiled,
            kept=not outcome.spoiled and (keep_failures or outcome.solved is not False),
            length=len(episode),
            total=0.0 if episode.rewards is None else float(episode.rewards.sum()),
            keys=list(episode.obs),
        )

    @property
    def fault(self) -> str:
        """The reason for leaving it out; empty of a demo."""
        if self.crash is not None:
            return f"crashed: {self.crash}"
        if self.spoiled:
            return "spoiled"
        return "" if self.kept else "not solved"


@dataclass
class RecordedDataset:
    """A dataset that was recorded.

    Attributes:
        path: of the file.
        num_demos: demos in it.
        num_transitions: their steps.
        solved: episodes in which the task was solved.
        unsolved: episodes in which it was not, kept or not.
        spoiled: episodes that were of no use and are left out.
        crashes: the reason of each episode that the environment did not survive.
        low_dim: the observations to train on, without those of cameras.
        images: the observations of cameras, by modality.
        returns: the sum of the rewards of each demo.
        lengths: the steps of each demo.
        resumed: episodes that an earlier, interrupted run had played.
    """

    path: Path
    num_demos: int = 0
    num_transitions: int = 0
    solved: int = 0
    unsolved: int = 0
    spoiled: int = 0
    crashes: list[str] = field(default_factory=list)
    low_dim: tuple[str, ...] = ()
    images: dict[str, list[str]] = field(default_factory=dict)
    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    resumed: int = 0

    def count(self, take: Take) -> None:
        """Counts an episode."""
        if take.crash is not None:
            self.crashes.append(take.crash)
        elif take.spoiled:
            self.spoiled += 1
        else:
            self.solved += take.solved is True
            self.unsolved += take.solved is False
        if take.kept:
            self.returns.append(take.total)
            self.lengths.append(take.length)

    @property
    def judged(self) -> int:
        """Episodes in which the task was solved or not."""
        return self.solved + self.unsolved

    def attrs(self) -> dict[str, Any]:
        """The outcome as attributes of the file: a rate with its 95 % interval (Wilson)."""
        from raymimic.rollout.stats import wilson_interval  # imports torch, which no actor needs

        found: dict[str, Any] = {"num_crashed": len(self.crashes), "num_spoiled": self.spoiled}
        if self.judged:
            low, high = wilson_interval(self.solved, self.judged)
            found |= {
                "num_unsolved": self.unsolved,
                "success_rate": self.solved / self.judged,
                "success_rate_low": low,
                "success_rate_high": high,
            }
        return found


def record_demos(
    recipe: Recipe,
    out: str | Path,
    demos: int,
    num_actors: int | None = None,
    seed: int = 0,
    keep_failures: bool = False,
    compress: bool = False,
    imports: Sequence[str] = (),
    replace: bool = True,
    progress: bool = True,
) -> RecordedDataset:
    """Plays an expert and writes its demonstrations.

    The file's content follows from the recipe, the number of demos and the seed; actors only share
    the work. Each episode has a seed of its own, and they are kept in the order of the seeds. A
    call that was interrupted goes on with the episodes in the folder `<out>.parts`.

    Args:
        recipe: expert, cameras, noise.
        out: the HDF5 file.
        demos: their number.
        num_actors: Ray actors; 0: one process beside this one, without Ray; None: one actor for
            each CPU of the cluster.
        seed: of all episodes.
        keep_failures: keeps episodes in which the task was not solved.
        compress: stores images compressed, frame by frame (gzip).
        imports: modules to import first, such as those of experts of your own.
        replace: whether an existing file is replaced, once the new one is complete.
        progress: shows a bar on a terminal, and prints a line now and then elsewhere.

    Raises:
        ConfigError: there is no such expert or task, or a number is out of range.
        EnvError: the environment cannot be made or rendered, or too many episodes in a row were of
            no use.
        OutputError: the file cannot be written, or is there already, or another process writes it.
    """
    import_modules(imports)
    if not 0 < demos <= _MOST_DEMOS or seed < 0:
        raise ConfigError(
            f"{demos} demos of seed {seed}: a file has 1 to {_MOST_DEMOS:,} demos, and seeds go "
            "from 0 on"
        )
    expert, attrs = recipe.expert(), recipe.attrs()
    check_local(out)
    made = RecordedDataset(Path(out))
    plan = {**recipe.plan(), "seed": seed, "keep_failures": keep_failures, "compress": compress}
    with keeping_parts(out, plan, compress, replace) as parts:
        made.resumed = parts.num_kept
        with (
            playing(recipe.player(), num_actors, imports) as players,
            ProgressBar(recipe.name, demos, "demos", progress) as bar,
        ):
            env_args = players.prepare()
            seeds = episode_seeds(Purpose.DEMONSTRATION, seed, recipe.stage, EPISODES)
            takes: dict[int, Take] = {}
            faults: list[str] = []
            taken = partial(_taken, keep_failures)
            with closing(parts.play(players, seeds, Take, taken)) as played:
                for index, take in played:
                    made.count(take)
                    faults = [*faults, take.fault] if take.fault else []
                    if len(faults) == MOST_IN_A_ROW:
                        raise EnvError(_hopeless(recipe.name, faults))
                    if take.kept:
                        takes[index] = take
                        bar.update(1)
                    if len(takes) == demos:
                        break
            if len(takes) < demos:
                raise EnvError(f"'{recipe.name}': {EPISODES:,} episodes gave too few demos")
        with parts.writing(env_args) as writer:
            for number, (index, take) in enumerate(takes.items(), 1):
                valid = number % VALID_EVERY == 0 or 1 < number == demos < VALID_EVERY
                split = "valid" if valid else "train"
                parts.copy(index, writer, None, (split, *recipe.filter_keys(take.solved)))
            made.num_demos, made.num_transitions = writer.num_demos, writer.num_transitions
            # HDF5 has no whole numbers beyond 64 bits.
            stored = seed if seed < 2**63 else str(seed)
            writer.attrs |= {**attrs, "seed": stored, **made.attrs()}
    made.low_dim, made.images = _to_train_on(expert, take.keys)
    return made


def _taken(
    keep_failures: bool, outcome: PlayedEpisode | Crash
) -> tuple[Take, RecordedEpisode | None]:
    take = Take.of(outcome, keep_failures)
    return take, outcome.episode if isinstance(outcome, PlayedEpisode) and take.kept else None


def _hopeless(name: str, faults: Sequence[str]) -> str:
    crashes = [fault for fault in faults if fault.startswith("crashed")]
    if crashes:
        number = "all" if len(crashes) == len(faults) else str(len(crashes))
        return (
            f"'{name}': none of {len(faults)} episodes in a row could be kept, and {number} of "
            f"them {crashes[-1]}"
        )
    return (
        f"'{name}': the expert solved none of {len(faults)} episodes in a row; try less --noise or "
        "a longer --horizon, or record all episodes (--keep-failures)"
    )


def _to_train_on(
    expert: Expert, keys: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """The observations that a policy reads: those of cameras, by modality, and others."""
    images = {
        modality: [key for key in keys if key.endswith(ending)]
        for modality, ending in (("rgb", IMAGE), ("depth", DEPTH))
    }
    images = {modality: found for modality, found in images.items() if found}
    named = expert.proprioception if images else expert.low_dim
    others = [key for key in keys if not any(key in found for found in images.values())]
    return tuple(others) if named is None else named, images


class ExpertPlayer:
    """Plays the expert of a recipe; a `raymimic.recording.players.Player` whose jobs are seeds."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._expert: Expert
        self._open = OpenEnv(self._made)

    def prepare(self) -> dict[str, Any]:
        """Makes the environment and begins an episode.

        Returns:
            the `env_args` of the file.
        """
        env = self._open()
        self._expert.start(env, 0, seeded_generators(0))
        return self._expert.env_args(env.serialize())

    def play(self, job: int) -> PlayedEpisode:
        """Plays the episode of a seed."""
        env = self._open()
        demo = play_episode(env, self._expert, job, self._recipe.stores_next_obs)
        attrs = {**demo.episode.attrs, "seed": job}
        return replace(demo, episode=replace(demo.episode, attrs=attrs))

    def close(self) -> None:
        """Closes the environment; it is made again for the next episode."""
        self._open.close()

    def _made(self) -> EnvBase:
        self._expert = self._recipe.expert()  # as new as its environment
        return self._recipe.open(self._expert)


def play_episode(env: EnvBase, expert: Expert, seed: int, next_obs: bool = True) -> PlayedEpisode:
    """Plays one episode.

    Args:
        env: of the expert.
        expert: acts.
        seed: of everything random in the episode.
        next_obs: whether to keep the observations after each step.
    """
    rng = seeded_generators(seed)
    obs = expert.start(env, seed, rng)
    keys = numeric_keys(obs)
    extras, has_states = _described(env)
    has_task = expert.hold is not None
    observed, rows, solved, knows, spoiled, left = [obs], _StepValues(), False, False, False, None
    for _ in range(expert.horizon):
        action = expert.clip(env, expert.act(env, obs, rng)).astype(np.float32)
        before = {"states": env.get_state()["states"]} if has_states else {}
        before |= expert.columns(env)
        obs, reward, done, info = env.step(env.clip(action))
        observed.append(obs)
        terminated = bool(info.get("terminated", False))
        rows.add({**before, "actions": action, "rewards": reward, "dones": terminated})
        knows |= env.knows_success
        spoiled = expert.spoiled(env)
        if has_task and not solved and env.is_success()["task"]:
            solved, left = True, expert.hold
        elif left is not None:
            left -= 1
        if done or spoiled or left == 0:
            break
    columns = rows.columns()
    dones = columns.pop("dones").astype(np.int64)
    rewards = columns.pop("rewards").astype(np.float64)
    dones[-1] |= solved
    attrs = dict(extras)
    outcome = solved if has_task and (knows or solved) else None
    if outcome is not None:
        attrs["success"] = solved
    episode = RecordedEpisode(
        obs=stacked(observed[:-1], keys),
        next_obs=stacked(observed[1:], keys) if next_obs else {},
        actions=columns.pop("actions"),
        rewards=rewards if has_task else None,
        dones=dones if has_task else None,
        states=columns.pop("states", None),
        others=columns,
        attrs=attrs,
    )
    return PlayedEpisode(episode, outcome, spoiled)


class _StepValues:
    """The values of each step, by name."""

    def __init__(self) -> None:
        self._rows: dict[str, list[Any]] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        for key, value in row.items():
            self._rows.setdefault(key, []).append(value)

    def columns(self) -> dict[str, Array]:
        return {key: np.asarray(values) for key, values in self._rows.items()}


def seeded_generators(seed: int) -> np.random.Generator:
    """Seeds the global generators, which simulators and oracles use, and returns one of its own."""
    np.random.seed(np.random.SeedSequence(seed).generate_state(8))
    random.seed(seed)
    return np.random.default_rng(seed)


def _described(env: EnvBase) -> tuple[dict[str, Any], bool]:
    """The attributes that a demo's states need, and whether the simulator has states at all."""
    try:
        state = env.get_state()
    except EnvError:
        return {}, False
    return {STATE_ATTRS[key]: value for key, value in state.items() if key in STATE_ATTRS}, True


def numeric_keys(obs: Observation) -> list[str]:
    """The keys of an observation whose values are numbers, which a dataset can hold."""
    return [key for key, value in obs.items() if np.asarray(value).dtype.kind in "fiub"]


def stacked(observed: Sequence[Observation], keys: Sequence[str]) -> dict[str, Array]:
    """Observations `[T, ...]` by key; floating-point numbers as float32."""
    columns = {key: np.stack([obs[key] for obs in observed]) for key in keys}
    return {
        key: column.astype(np.float32) if column.dtype.kind == "f" else column
        for key, column in columns.items()
    }
