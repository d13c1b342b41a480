"""robomimic's wrappers of environments.

raymimic's policies stack observations by themselves, and take those of `FrameStackWrapper` too.
"""

from __future__ import annotations

import textwrap
from collections import deque
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np

from raymimic.envs.env_base import Array, EnvBase, Observation


class EnvWrapper:
    """Base of wrappers: a method or an attribute that it lacks is the environment's.

    Args:
        env: the environment, or another wrapper.

    Raises:
        TypeError: it is neither.
    """

    def __init__(self, env: EnvBase | EnvWrapper) -> None:
        if not isinstance(env, EnvBase | EnvWrapper):
            raise TypeError(f"a wrapper takes an environment, and not {type(env).__name__}")
        self.env = env

    @classmethod
    def class_name(cls) -> str:
        """The name of the class."""
        return cls.__name__

    @property
    def unwrapped(self) -> EnvBase:
        """The environment below all wrappers."""
        return self.env.unwrapped if isinstance(self.env, EnvWrapper) else self.env

    def _to_string(self) -> str:
        """The arguments of the wrapper, for people."""
        return ""

    def __repr__(self) -> str:
        lines = [*filter(None, [self._to_string()]), f"env={self.env!r}"]
        return f"{self.class_name()}(\n{textwrap.indent(chr(10).join(lines), '    ')}\n)"

    def __getattr__(self, name: str) -> Any:
        if name == "env":  # while a copy is being made
            raise AttributeError(name)
        return getattr(self.env, name)


class FrameStackWrapper(EnvWrapper):
    """Gives the last observations in place of the last one: each key `[num_frames, ...]`.

    Where an episode has just begun, the first observation is repeated. As in robomimic, two more
    keys are stacked: `timesteps` `[1]`, and `actions` `[A]`, the action that led to an observation.

    Args:
        env: the environment.
        num_frames: number of observations, at least 2.

    Raises:
        ValueError: it is less.
    """

    def __init__(self, env: EnvBase | EnvWrapper, num_frames: int) -> None:
        if num_frames < 2:
            raise ValueError(f"FrameStackWrapper stacks at least 2 frames, and not {num_frames}")
        super().__init__(env)
        self.num_frames = num_frames
        self.timestep = 0
        self.obs_history: dict[str, deque[Array]] = {}
        self.obs_history_cache: dict[str, deque[Array]] | None = None

    def cache_obs_history(self) -> None:
        """Remembers the history, for `uncache_obs_history`."""
        self.obs_history_cache = deepcopy(self.obs_history)

    def uncache_obs_history(self) -> None:
        """Goes back to the history that was remembered.

        Raises:
            RuntimeError: none was.
        """
        if self.obs_history_cache is None:
            raise RuntimeError("no history was remembered: call cache_obs_history first")
        self.obs_history, self.obs_history_cache = self.obs_history_cache, None

    def reset(self, seed: int | None = None) -> Observation:
        """Starts an episode; see `EnvBase.reset`."""
        return self._started(self.env.reset(seed=seed))

    def reset_to(self, state: Mapping[str, Any]) -> Observation:
        """Starts an episode in a state; see `EnvBase.reset_to`."""
        return self._started(self.env.reset_to(state))

    def step(self, action: Array) -> tuple[Observation, float, bool, dict[str, Any]]:
        """Plays one action; see `EnvBase.step`."""
        obs, reward, done, info = self.env.step(action)
        self.timestep += 1
        for key, value in self._with_extras(obs, action).items():
            self.obs_history[key].append(value)
        return self._stacks(), reward, done, info

    def _started(self, obs: Observation) -> Observation:
        self.timestep = 0
        first = self._with_extras(obs, np.zeros(self.env.action_dimension))
        self.obs_history = {
            key: deque([value] * self.num_frames, maxlen=self.num_frames)
            for key, value in first.items()
        }
        return self._stacks()

    def _with_extras(self, obs: Observation, action: Array) -> Observation:
        taken = np.asarray(action)[: self.env.action_dimension]
        return {**obs, "timesteps": np.array([self.timestep]), "actions": taken}

    def _stacks(self) -> Observation:
        return {key: np.stack(list(history)) for key, history in self.obs_history.items()}

    def _to_string(self) -> str:
        return f"num_frames={self.num_frames}"
