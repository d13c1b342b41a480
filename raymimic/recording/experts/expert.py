"""The contract of an expert, and the registry of experts by the beginning of a dataset's name.

To add an expert, write a class that extends `Expert` and list it in `_EXPERTS`, or, in a module of
your own that `--import` names, put `@register_expert("my-simulator")` before it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, ClassVar, TypeVar

import numpy as np

from raymimic.envs.env_base import Array, EnvBase, Observation
from raymimic.errors import (
    ConfigError,
    EnvError,
    RaymimicError,
    did_you_mean,
    pip_install,
    reason,
)
from raymimic.user_modules import same_definition

ExpertClass = TypeVar("ExpertClass", bound=type["Expert"])

# A class or function that makes an expert of task and noise, or `module:name` of one, to import
# once a dataset of that name is made.
_EXPERTS: dict[str, str | Callable[[str, float | None], Expert]] = {
    "metaworld": "raymimic.recording.experts.metaworld:MetaworldExpert",
    "ogbench": "raymimic.recording.experts.ogbench:ogbench_expert",
    "robosuite": "raymimic.recording.experts.robosuite:RobosuiteExpert",
}


class Expert(ABC):
    """Plays one task of a simulator.

    An instance plays one episode after the other; `start` begins one, and nothing of an earlier
    episode may affect it. Numpy's and Python's global generators are seeded again before `start`.

    Args:
        task: the name of the dataset without the expert's own.
        noise: how much the actions deviate from those of the expert; None is `default_noise`.

    Attributes:
        default_noise: in the unit that the class documents. Data of an expert without noise show
            no way back from an error.
        horizon: steps after which an episode ends.
        hold: steps that follow the first step at which the task is solved; None: the data are play
            without a task, and episodes go on to the horizon.
        low_dim: observations to train on, without cameras; None: all.
        proprioception: observations to train on beside those of cameras; None: all others.
    """

    default_noise: ClassVar[float] = 0.0
    horizon: int = 500
    hold: int | None = 10
    low_dim: tuple[str, ...] | None = None
    proprioception: tuple[str, ...] | None = None

    def __init__(self, task: str, noise: float | None = None) -> None:
        self.task = task
        self.noise = self.default_noise if noise is None else noise

    @property
    @abstractmethod
    def env_meta(self) -> dict[str, Any]:
        """The environment to play in: `env_name`, `type`, `env_kwargs`."""

    def env_args(self, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """The environment that the file names, in which policies are evaluated.

        Args:
            recorded: the description of the environment that was played.
        """
        return dict(recorded)

    def start(self, env: EnvBase, seed: int, rng: np.random.Generator) -> Observation:
        """Begins an episode.

        Args:
            env: of `env_meta`.
            seed: of everything random in the episode.
            rng: the expert's own random numbers, which follow from the seed.

        Returns:
            the first observation.
        """
        return env.reset(seed=seed)

    @abstractmethod
    def act(self, env: EnvBase, obs: Observation, rng: np.random.Generator) -> Array:
        """Returns the action to play, noise included, `[A]`; `clip` cuts it off.

        Args:
            env: of `env_meta`.
            obs: its present observation.
            rng: see `start`.
        """

    def clip(self, env: EnvBase, action: Array) -> Array:
        """The action as it is played and stored: here, cut off at -1 and 1."""
        return np.clip(action, -1.0, 1.0)

    def columns(self, env: EnvBase) -> dict[str, Array]:
        """Further datasets of a demo: parts of the present state that the simulator's lacks."""
        return {}

    def spoiled(self, env: EnvBase) -> bool:
        """Whether the episode has become useless: it ends and is left out."""
        return False

    def noisy(self, action: Array, rng: np.random.Generator) -> Array:
        """The action, cut off at -1 and 1, with Gaussian noise of standard deviation `noise`."""
        action = np.clip(action, -1.0, 1.0)
        return action + self.noise * rng.standard_normal(action.shape)


def register_expert(name: str) -> Callable[[ExpertClass], ExpertClass]:
    """Registers the decorated class as the expert of datasets whose names begin with a word.

    Args:
        name: the beginning of the names: `raymimic dataset make <name>-<task>`.

    Raises:
        ConfigError: the class does not extend `Expert`, or another class has that name.
    """

    def register(cls: ExpertClass) -> ExpertClass:
        here = f"{cls.__module__}:{cls.__qualname__}"
        if not (isinstance(cls, type) and issubclass(cls, Expert)):
            raise ConfigError(f"expert '{name}': {here} does not extend Expert")
        other = _EXPERTS.get(name, cls)
        if isinstance(other, str) or not same_definition(other, cls):
            raise ConfigError(f"expert '{name}' of {here} is taken: choose another name")
        _EXPERTS[name] = cls
        return cls

    return register


def expert_names() -> list[str]:
    """The words with which names of datasets begin."""
    return sorted(_EXPERTS)


def has_expert(dataset: str) -> bool:
    """Whether an expert plays the datasets whose names begin as this one."""
    return _name_of(dataset) is not None


def expert_of(dataset: str, noise: float | None = None, horizon: int | None = None) -> Expert:
    """Makes the expert that plays a dataset's demonstrations.

    Args:
        dataset: such as `metaworld-push-v3`.
        noise: see `Expert`.
        horizon: see `Expert`; None is the expert's own.

    Raises:
        ConfigError: there is no such expert or task.
        EnvError: its simulator is not installed.
    """
    name = _name_of(dataset)
    if name is None:
        first = dataset.partition("-")[0]
        raise ConfigError(
            f"no dataset '{dataset}' can be made: names begin with an expert's"
            f"{did_you_mean(first, _EXPERTS)}"
        )
    entry = _EXPERTS[name]
    task = dataset[len(name) + 1 :]
    if isinstance(entry, str):
        module, _, attribute = entry.partition(":")
        try:
            expert: Expert = getattr(import_module(module), attribute)(task, noise)
        except RaymimicError:
            raise
        except ModuleNotFoundError as error:
            whole = (error.name or "").partition(".")[0] == name
            which = "which" if whole else f"a part of which ('{error.name}')"
            raise EnvError(
                f"'{dataset}' needs {name}, {which} is not installed: {pip_install(name)}"
            ) from error
        except Exception as error:  # MuJoCo without a renderer that MUJOCO_GL names, for one
            raise EnvError(
                f"'{dataset}' needs {name}, whose import fails: {reason(error)}; if MUJOCO_GL is "
                "set, try without it"
            ) from error
    else:
        expert = entry(task, noise)
    if horizon is not None:
        expert.horizon = horizon
    return expert


def _name_of(dataset: str) -> str | None:
    """The registered word that a dataset's name begins with."""
    names = [name for name in _EXPERTS if f"{dataset}-".startswith(f"{name}-")]
    return max(names, key=len, default=None)


def unknown_task(simulator: str, task: str, known: Mapping[str, Any]) -> ConfigError:
    """The error for a task that an expert does not play."""
    fault = f"plays no task '{task}'" if task else "needs a task at the end of the name"
    return ConfigError(f"the expert of {simulator} {fault}{did_you_mean(task, known)}")
