"""The contract between raymimic and an environment, with robomimic's method names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from raymimic.errors import EnvError

Array = npt.NDArray[Any]
Observation = dict[str, Array]


class EnvType:
    """The numbers by which a dataset's ``env_args`` names the kind of its environment."""

    ROBOSUITE_TYPE = 1
    GYM_TYPE = 2
    IG_MOMART_TYPE = 3


class EnvBase(ABC):
    """An environment with dictionary observations.

    An episode is a function of the seed given to :meth:`reset` and of the actions: nothing of
    earlier episodes may reach it.
    """

    rollout_exceptions: tuple[type[Exception], ...] = ()
    """What a simulation that a bad policy upset may raise; it ends the episode, not the run."""

    @abstractmethod
    def reset(self, seed: int | None = None) -> Observation:
        """Starts an episode.

        Args:
            seed: of everything random in the episode; None draws on from where the generator is.

        Returns:
            The first observation, ``{key: [...]}``.
        """

    @abstractmethod
    def step(self, action: Array) -> tuple[Observation, float, bool, dict[str, Any]]:
        """Plays one action.

        Args:
            action: ``[A]``.

        Returns:
            ``(obs, reward, done, info)``. ``done`` says that the episode is over; ``info`` holds
            ``terminated`` (the task ended: no value lies beyond) and ``truncated`` (the time was
            up: it would have gone on).
        """

    @abstractmethod
    def get_observation(self) -> Observation:
        """The observation that ``reset`` or ``step`` returned last."""

    @abstractmethod
    def get_reward(self) -> float:
        """The reward of the last step."""

    @abstractmethod
    def is_done(self) -> bool:
        """Whether the episode is over, for whatever reason."""

    @abstractmethod
    def is_success(self) -> dict[str, bool]:
        """Whether the task is solved now: ``{"task": …}`` and further criteria by name."""

    @abstractmethod
    def get_state(self) -> dict[str, Array]:
        """The simulator's state, ``{"states": [S]}``, for :meth:`reset_to`."""

    @abstractmethod
    def reset_to(self, state: Mapping[str, Array]) -> Observation:
        """Starts an episode in a state that :meth:`get_state` returned or a dataset holds.

        Args:
            state: ``{"states": [S]}``.

        Returns:
            The observation in that state.
        """

    @abstractmethod
    def render(
        self, mode: str = "rgb_array", height: int | None = None, width: int | None = None
    ) -> npt.NDArray[np.uint8]:
        """Returns a picture of the current state, ``[H, W, 3]``.

        Raises:
            EnvError: nothing can be rendered here, or not in this mode.
        """

    def get_goal(self) -> Observation:
        """The goal of this episode as an observation, for goal-conditioned policies."""
        raise EnvError(f"environment '{self.name}' has no goal observations")

    @abstractmethod
    def serialize(self) -> dict[str, Any]:
        """What a dataset keeps as ``env_args``: ``env_name``, ``type`` and ``env_kwargs``."""

    @abstractmethod
    def close(self) -> None:
        """Frees simulator and renderer."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The environment's name."""

    @property
    @abstractmethod
    def type(self) -> int:
        """One of :class:`EnvType`."""

    @property
    @abstractmethod
    def action_dimension(self) -> int:
        """Number of action components A."""


def check_env(env_meta: Mapping[str, Any], goals: bool = False) -> None:
    """Makes an environment once, so that one that cannot be played is found early.

    Args:
        env_meta: see :func:`env_from_metadata`.
        goals: whether its goals will be asked for.

    Raises:
        EnvError: it cannot be made, or has no goals.
    """
    env = env_from_metadata(env_meta)
    try:
        if goals:
            env.reset(seed=0)
            env.get_goal()
    finally:
        env.close()


def env_from_metadata(
    env_meta: Mapping[str, Any], env_name: str | None = None, render: bool = False
) -> EnvBase:
    """Makes the environment that a dataset or a checkpoint describes.

    Args:
        env_meta: ``env_name``, ``type`` and, optionally, ``env_kwargs``, as in ``env_args``.
        env_name: another environment of the same kind with the same keyword arguments.
        render: whether :meth:`EnvBase.render` will be called.

    Raises:
        EnvError: the description is incomplete or the environment cannot be made.
    """
    name = env_name or env_meta.get("env_name")
    if not name:
        raise EnvError("the environment has no name: 'env_args' of the dataset lacks 'env_name'")
    kind = env_meta.get("type", EnvType.GYM_TYPE)
    if kind != EnvType.GYM_TYPE:
        raise EnvError(
            f"environment '{name}' is of type {kind}, and only gymnasium environments "
            f"(type {EnvType.GYM_TYPE}) can be played: set experiment.rollout.enabled=false"
        )
    from raymimic.envs.env_gym import EnvGym

    return EnvGym(str(name), render_offscreen=render, **(env_meta.get("env_kwargs") or {}))
