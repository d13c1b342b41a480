"""Extracts observations and images from states: robomimic's `dataset_states_to_obs`.

Each demo is played back state by state, and its last action is played for the observation after it.
As in robomimic, `rewards` and `dones` are those of the state after each step. If an environment has
rewards for steps only (`EnvBase.judges_states`), they are copied from the source.

Deviations from robomimic's file: floating-point observations are float32, images are compressed
frame by frame, all other arrays and attributes of a demo are kept, and filter keys name written
demos only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from raymimic.config import import_modules
from raymimic.data.curation.copying import check_new
from raymimic.data.metadata import content_digest
from raymimic.data.writer import RecordedEpisode
from raymimic.envs.env_base import Array, EnvBase, EnvType
from raymimic.envs.kinds import env_from_metadata
from raymimic.envs.render_settings import RenderSettings
from raymimic.errors import DatasetError, EnvError
from raymimic.recording.demos import MOST_IN_A_ROW, numeric_keys, stacked
from raymimic.recording.open_env import OpenEnv
from raymimic.recording.parts import Facts, keeping_parts
from raymimic.recording.players import Crash
from raymimic.recording.playing import playing
from raymimic.recording.progress import ProgressBar
from raymimic.recording.source import Source, SourceDemo, SourcePlayer, begin

_SUCCESS, _END, _BOTH = DONE_MODES = (0, 1, 2)

# Arguments of robosuite's environments that name cameras.
_CAMERA_ARGUMENTS = ("camera_names", "camera_heights", "camera_widths", "camera_depths")


@dataclass(frozen=True)
class Extraction:
    """The observations to extract, and what else is written.

    Attributes:
        render: the cameras, see `render` in `env_args`; None: none.
        done_mode: 0: a done where the state after the step solves the task; 1: at the end of each
            demo; 2: both.
        next_obs: whether to store the observations after each step.
        shaped: dense rewards, of robosuite.
        copy_rewards: keeps the source's rewards.
        copy_dones: keeps the source's dones.
        compress: stores images compressed, frame by frame (gzip).
    """

    render: Mapping[str, Any] | None = None
    done_mode: int = _SUCCESS
    next_obs: bool = True
    shaped: bool = False
    copy_rewards: bool = False
    copy_dones: bool = False
    compress: bool = False

    def env_meta(self, source: Mapping[str, Any]) -> dict[str, Any]:
        """The environment to play in.

        Args:
            source: `env_args` of the source. Cameras and rewards are those of this extraction;
                robosuite's arguments name the cameras too, for robomimic.

        Raises:
            EnvError: the render settings are wrong.
        """
        meta = {key: value for key, value in source.items() if key != "render"}
        if self.render is not None:
            meta["render"] = RenderSettings.read(self.render).serialize()
        if meta.get("type") == EnvType.ROBOSUITE_TYPE:
            kwargs = dict(meta.get("env_kwargs") or {})
            kwargs = {key: value for key, value in kwargs.items() if key not in _CAMERA_ARGUMENTS}
            kwargs |= {"reward_shaping": self.shaped, "use_camera_obs": self.render is not None}
            if self.render is not None:
                kwargs |= RenderSettings.read(self.render).arguments
            meta["env_kwargs"] = kwargs
        elif self.shaped:
            raise EnvError(
                f"'{meta.get('env_name')}' has no shaped rewards, which are robosuite's: leave "
                "--shaped out"
            )
        return meta


@dataclass
class ExtractedDataset:
    """A dataset whose observations were extracted.

    Attributes:
        path: of the file.
        num_demos: demos in it.
        num_transitions: their steps.
        kept: demos that an earlier, interrupted run had finished.
        dropped: the reason for each demo that is left out.
        notes: further facts, a sentence each.
    """

    path: Path
    num_demos: int = 0
    num_transitions: int = 0
    kept: int = 0
    dropped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Tried:
    """The answer of the process that tries the environment.

    Attributes:
        env_args: of the file.
        notes: see `ExtractedDataset`.
    """

    env_args: dict[str, Any]
    notes: list[str]


def extract_observations(
    source: str | Path,
    out: str | Path,
    extraction: Extraction,
    n: int | None = None,
    num_actors: int | None = None,
    allow_links: Sequence[str] = (),
    imports: Sequence[str] = (),
    progress: bool = True,
) -> ExtractedDataset:
    """Plays the states of a dataset back, and writes their observations.

    The file's content follows from the source and the extraction; actors only share the work.
    Finished demos are kept in the folder `<out>.parts` until the file is complete: a call that was
    interrupted goes on with them.

    Args:
        source: the dataset, a path or URI.
        out: the HDF5 file to write, which may not be there yet.
        extraction: cameras, rewards, dones.
        n: no more than so many demos; None: all.
        num_actors: Ray actors; 0: one process beside this one, without Ray; None: one actor for
            each CPU of the cluster.
        allow_links: further folders that the source's links may lead into.
        imports: modules to import first, which register environments.
        progress: shows a bar on a terminal, and prints a line now and then elsewhere.

    Raises:
        DatasetError: the source cannot be read, or holds no states.
        EnvError: the environment cannot be made or rendered, or no demo can be played back.
        OutputError: the file is there already, or cannot be written.
    """
    import_modules(imports)
    check_new(out)
    given = Source.locate(source, allow_links)
    names = given.demos(n)
    given.check_states(names)
    env_meta = extraction.env_meta(given.env_meta())
    player = Extractor(given, env_meta, extraction, (names[0], names[-1]))
    plan = {"source": content_digest(given.path), "demos": names, **asdict(extraction)}
    made = ExtractedDataset(Path(out))
    with keeping_parts(out, plan, extraction.compress, replace=False) as parts:
        made.kept = parts.num_kept
        with (
            playing(player, num_actors, imports) as players,
            ProgressBar(Path(out).name, len(names), "demos", progress) as bar,
        ):
            tried: Tried = players.prepare()
            in_a_row = 0
            with closing(parts.play(players, names, Facts, _taken)) as played:
                for index, facts in played:
                    if facts.crash is not None:
                        made.dropped[names[index]] = facts.crash
                    in_a_row = in_a_row + 1 if facts.crash is not None else 0
                    if in_a_row == MOST_IN_A_ROW:
                        break
                    bar.update(1)
        if in_a_row == MOST_IN_A_ROW or len(made.dropped) == len(names):
            name, why = list(made.dropped.items())[-1]
            raise EnvError(f"{in_a_row} demos in a row cannot be played back ('{name}': {why})")
        masks = given.masks()
        with parts.writing(tried.env_args) as writer:
            for index, name in enumerate(names):
                if name not in made.dropped:
                    keys = [key for key, members in masks.items() if name in members]
                    parts.copy(index, writer, name, keys)
            writer.attrs |= given.attrs() | {"num_dropped": len(made.dropped)}
            made.num_demos, made.num_transitions = writer.num_demos, writer.num_transitions
    made.notes = tried.notes
    return made


def _taken(outcome: RecordedEpisode | Crash) -> tuple[Facts, RecordedEpisode | None]:
    if isinstance(outcome, Crash):
        return Facts(outcome.reason), None
    return Facts(), outcome


class Extractor(SourcePlayer[RecordedEpisode]):
    """Plays demos back.

    Args:
        source: the dataset.
        env_meta: the environment.
        extraction: rewards, dones.
        trial: demos of which one has to have a state that can be played.
    """

    def __init__(
        self,
        source: Source,
        env_meta: Mapping[str, Any],
        extraction: Extraction,
        trial: Sequence[str],
    ) -> None:
        super().__init__(source, OpenEnv(partial(env_from_metadata, env_meta)), trial)
        self._env_meta, self._extraction = dict(env_meta), extraction

    def prepare(self) -> Tried:
        """Makes the environment, and plays the first state of a demo."""
        env, demo = self.try_out()
        # The source's description may have entries that the environment does not know.
        env_args = {**self._env_meta, **env.serialize()}
        return Tried(env_args, self._notes(env, demo))

    def played(self, env: EnvBase, demo: SourceDemo) -> RecordedEpisode:
        """Puts the environment into each state of a demo, and steps from the last one."""
        observed = [begin(env, demo)]
        rewards, solved = [], []
        for row in range(1, len(demo.states) + 1):
            if row < len(demo.states):
                obs = env.reset_to({"states": demo.states[row]})
            else:
                obs = env.step(env.clip(demo.actions[-1]))[0]
            observed.append(obs)
            if env.judges_states:
                rewards.append(float(env.get_reward()))
                solved.append(bool(env.is_success()["task"]))
        columns = stacked(observed, numeric_keys(observed[0]))
        others = dict(demo.arrays)
        given = {key: others.pop(key, None) for key in ("rewards", "dones")}
        judged = env.judges_states
        keep_rewards = self._extraction.copy_rewards or not judged
        successes = np.asarray(solved) if judged else given["dones"]
        return RecordedEpisode(
            obs={key: column[:-1] for key, column in columns.items()},
            actions=demo.actions,
            next_obs={key: column[1:] for key, column in columns.items()}
            if self._extraction.next_obs
            else {},
            rewards=given["rewards"] if keep_rewards else np.asarray(rewards),
            dones=given["dones"]
            if self._extraction.copy_dones
            else _dones(self._extraction.done_mode, successes, len(demo.states)),
            states=demo.states,
            others=others,
            attrs=demo.attrs,
        )

    def _notes(self, env: EnvBase, demo: SourceDemo) -> list[str]:
        """Facts about the file that its reader should know.

        Raises:
            DatasetError: rewards or dones are to be copied from a source without them.
        """
        copied = {"rewards": self._extraction.copy_rewards, "dones": self._extraction.copy_dones}
        for key, asked in copied.items():
            if asked and key not in demo.arrays:
                raise DatasetError(
                    f"dataset '{self._source.path}': demo '{demo.name}' has no '{key}' to copy: "
                    f"leave --copy_{key} out"
                )
        notes = []
        if not env.judges_states:
            there = [key for key in copied if key in demo.arrays]
            notes.append(
                f"'{env.name}' gives rewards and success of steps, not of states: "
                + (f"{' and '.join(there)} are the source's" if there else "the file has neither")
            )
        if demo.left_out:
            notes.append(
                f"left out of each demo: {', '.join(demo.left_out)} (no numbers, or not one row "
                "for each step)"
            )
        return notes


def _dones(mode: int, solved: Array | None, length: int) -> Array | None:
    """Dones `[T]` of a mode; None if it takes successes, which are not known.

    Args:
        mode: one of `DONE_MODES`.
        solved: whether the state after each step solves the task, `[T]`.
        length: T.
    """
    end: Array = np.eye(1, length, length - 1, dtype=np.int64)[0]
    if mode == _END or (solved is None and mode == _BOTH):
        return end
    if solved is None:
        return None
    dones: Array = (np.asarray(solved) != 0).astype(np.int64)
    return np.maximum(dones, end) if mode == _BOTH else dones
