"""A dataset whose demos are played back: their states, actions and scenes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import h5py
import numpy as np

from raymimic import storage
from raymimic.data.hdf5 import DemoReader, open_dataset
from raymimic.data.metadata import demo_names, filter_keys, read_env_meta
from raymimic.envs.env_base import Array, EnvBase, Observation
from raymimic.errors import DatasetError, EnvError, RaymimicError, did_you_mean, reason
from raymimic.recording.demos import STATE_ATTRS, seeded_generators
from raymimic.recording.open_env import OpenEnv
from raymimic.recording.players import Crash
from raymimic.storage import absolute
from raymimic.user_modules import own_reason

T = TypeVar("T")

_OBSERVED = ("obs", "next_obs")


@dataclass(frozen=True)
class SourceDemo:
    """A demo to play back.

    Attributes:
        name: of the demo.
        states: of the simulator before each step, `[T, S]`.
        actions: `[T, A]`.
        arrays: all other arrays of numbers with T rows that are no observations, by name.
        attrs: all attributes.
        left_out: names of arrays that have another number of rows, or hold no numbers.
    """

    name: str
    states: Array
    actions: Array
    arrays: Mapping[str, Array] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def first(self) -> dict[str, Any]:
        """The first state, for `EnvBase.reset_to`, with its scene."""
        scene = {key: self.attrs[attr] for key, attr in STATE_ATTRS.items() if attr in self.attrs}
        return {**scene, "states": self.states[0]}

    @property
    def seed(self) -> int:
        """The seed of its episode; 0 if it is not known."""
        seed = self.attrs.get("seed")
        return seed if isinstance(seed, int) and seed >= 0 else 0


@dataclass(frozen=True)
class Source:
    """A dataset whose demos are played back.

    Attributes:
        path: absolute path or URI; each process that plays opens it.
        allow_links: further folders that its links may lead into.
    """

    path: str
    allow_links: tuple[str, ...] = ()

    @classmethod
    def locate(cls, path: str | Path, allow_links: Sequence[str] = ()) -> Source:
        """A dataset by its path or URI, and folders that its links may lead into."""
        folders = tuple(str(storage.expanded(folder).absolute()) for folder in allow_links)
        return cls(absolute(str(path)), folders)

    def demos(self, n: int | None = None, filter_key: str | None = None) -> list[str]:
        """Names of the demos to play, in order of demo number.

        Args:
            n: no more than so many; None: all.
            filter_key: those of this named subset; None: all.

        Raises:
            DatasetError: the file cannot be read, or has no such filter key.
        """
        with open_dataset(self.path, self.allow_links) as reader:
            names = demo_names(reader)
            if filter_key is not None:
                masks = self.masks()
                if filter_key not in masks:
                    raise DatasetError(
                        f"{reader} has no filter key '{filter_key}'"
                        f"{did_you_mean(filter_key, masks)}"
                    )
                names = [name for name in names if name in masks[filter_key]]
                if not names:
                    raise DatasetError(f"{reader}: filter key '{filter_key}' names no demo")
        return names[:n]

    def masks(self) -> dict[str, set[str]]:
        """Names of demos by filter key; those that cannot be read are left out."""
        with open_dataset(self.path, self.allow_links) as reader:
            return {key: set(names) for key, names in filter_keys(reader, []).items()}

    def attrs(self) -> dict[str, Any]:
        """The attributes of the dataset, without the environment and the number of transitions."""
        with open_dataset(self.path, self.allow_links) as reader:
            found = reader.attributes(reader.data)
        return _storable({k: v for k, v in found.items() if k not in ("env_args", "total")})

    def env_meta(self) -> dict[str, Any]:
        """The environment that the demos were recorded in.

        Raises:
            DatasetError: the file does not say it.
        """
        env_meta = read_env_meta(self.path, self.allow_links)
        if not env_meta:
            raise DatasetError(
                f"dataset '{self.path}' does not say its environment: write env_name, type and "
                "env_kwargs as JSON into data.attrs['env_args']"
            )
        return env_meta

    def check_states(self, names: list[str]) -> None:
        """Makes sure that some demo holds states.

        Raises:
            DatasetError: none does.
        """
        with open_dataset(self.path, self.allow_links) as reader:
            for name in names:
                demo = reader.demo(name)
                if demo is not None and demo.has("states"):
                    return
            raise DatasetError(
                f"{reader} holds no simulator states ('states' in each demo), without which "
                "nothing can be played back: record them, or play the images (--use-obs)"
            )

    def read(self, name: str) -> SourceDemo:
        """Reads a demo.

        Raises:
            DatasetError: it has no states or actions, or they do not fit each other.
        """
        with open_dataset(self.path, self.allow_links) as reader:
            demo = reader.known_demo(name)
            if isinstance(demo.find("states"), h5py.Group):
                raise DatasetError(
                    f"{demo}: 'states' is a group, and states are played back from one array [T, S]"
                )
            states, actions = (_read(demo, key) for key in ("states", "actions"))
            if states.ndim != 2 or len(states) != len(actions) or not len(states):
                raise DatasetError(
                    f"{demo}: 'states' of shape {list(states.shape)} and 'actions' of shape "
                    f"{list(actions.shape)} do not fit: each step has one row of both"
                )
            for key, values in (("states", states), ("actions", actions)):
                if not np.isfinite(values).all():
                    raise DatasetError(f"{demo}: '{key}' holds NaN or infinite numbers")
            arrays: dict[str, Array] = {}
            left_out = []
            for key in demo.datasets():
                if key.partition("/")[0] in _OBSERVED or key in ("states", "actions"):
                    continue
                try:
                    values = _read(demo, key)
                except DatasetError:
                    left_out.append(key)
                    continue
                if len(values) == len(states):
                    arrays[key] = values
                else:
                    left_out.append(key)
            attrs = _storable(reader.attributes(demo.group))
        return SourceDemo(name, states, actions, arrays, attrs, tuple(left_out))


def _read(demo: DemoReader, key: str) -> Array:
    """All numbers of a dataset of a demo, in its own type."""
    return demo.reader.values(demo.numbers(key).item, f"{demo}: '{key}'")


def _storable(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that can be written as they were read: texts and numbers, and lists of one."""
    plain = (str, int, float)
    return {
        key: value
        for key, value in attrs.items()
        if isinstance(value, plain)
        or (isinstance(value, list) and any(all(isinstance(v, t) for v in value) for t in plain))
    }


def begin(env: EnvBase, demo: SourceDemo) -> Observation:
    """Brings an environment into a demo's first state, whatever was played before."""
    seeded_generators(demo.seed)
    env.reset(seed=demo.seed)
    return env.reset_to(demo.first)


def first_that_works(names: Sequence[str], play: Callable[[str], T]) -> T:
    """Plays the first of some demos that can be played, as a trial of all.

    Returns:
        the answer of `play`.

    Raises:
        RaymimicError: none can be played; it is about the first one.
    """
    faults: list[RaymimicError] = []
    for name in names:
        try:
            return play(name)
        except RaymimicError as error:
            faults.append(error)
        except Exception as error:  # a simulator may raise anything
            faults.append(EnvError(f"demo '{name}' cannot be played back: {own_reason(error)}"))
    raise faults[0]


class SourcePlayer(ABC, Generic[T]):
    """Plays a dataset's demos in their environment; a `raymimic.recording.players.Player`.

    Its jobs are names of demos.

    Args:
        source: the dataset.
        env: the environment.
        trial: demos of which one has to have a state that can be played.
    """

    def __init__(self, source: Source, env: OpenEnv, trial: Sequence[str]) -> None:
        self._source, self._open = source, env
        self._trial = tuple(dict.fromkeys(trial))

    def try_out(self) -> tuple[EnvBase, SourceDemo]:
        """Makes the environment, and plays the first state of a demo.

        Raises:
            RaymimicError: none can be played.
        """
        return self._open(), first_that_works(self._trial, self._begun)

    def play(self, job: str) -> T | Crash:
        """Plays a demo; one that cannot be read has crashed."""
        try:
            demo = self._source.read(job)
        except DatasetError as error:
            return Crash(reason(error))
        return self.played(self._open(), demo)

    def close(self) -> None:
        """Closes the environment; it is made again for the next demo."""
        self._open.close()

    @abstractmethod
    def played(self, env: EnvBase, demo: SourceDemo) -> T:
        """Plays a demo from its first state on."""

    def _begun(self, name: str) -> SourceDemo:
        demo = self._source.read(name)
        begin(self._open(), demo)
        return demo
