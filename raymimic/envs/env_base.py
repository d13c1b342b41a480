"""The contract between raymimic and an environment, with robomimic's method names."""

from __future__ import annotations

import builtins
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from raymimic.envs.global_numbers import GlobalNumbers
from raymimic.errors import EnvError

T = TypeVar("T")
Array = npt.NDArray[Any]
Observation = dict[str, Array]

FLAT_KEY = "flat"
"""The key of an observation that is one array."""
SUCCESS_KEYS = ("is_success", "success")
"""The keys under which gymnasium's environments report success in `info`."""


class EnvType:
    """Robomimic's numbers for kinds of environments, the `type` in `env_args`; see `kinds.py`."""

    ROBOSUITE_TYPE = 1
    GYM_TYPE = 2
    IG_MOMART_TYPE = 3


class EnvBase(ABC):
    """An environment with dictionary observations.

    A subclass is made by `cls(env_name, **env_kwargs)`, and by those of the following arguments
    that its constructor names (`env_from_metadata` says what they hold): `render`,
    `render_offscreen`, `use_image_obs`, `use_depth_obs`, as in robomimic, `render_settings` and
    `reads`. Images are `<camera>_image` `[H, W, 3]` uint8, top row first; depth is
    `<camera>_depth` `[H, W, 1]` float32, in metres.

    An episode is a function of the seed given to `reset` and of the actions: earlier episodes must
    not affect it. A `reset` without an argument `seed`, as robomimic's environments have it, draws
    from the generators of NumPy and Python: these are seeded first, and NumPy's is the
    environment's own in `reset` and `step`, so that environments that are stepped in turn do not
    affect each other.

    raymimic itself does not call `is_done`, nor `get_goal` without goals, nor `get_reward` but to
    extract observations from states; they are part of robomimic's contract.
    """

    _seedless: ClassVar[bool] = False
    _raymimic_numbers: GlobalNumbers  # of one that is seedless

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = vars(cls)
        if "reset" in own and not _takes_seed(own["reset"]):
            cls.reset = _seeded(own["reset"])  # type: ignore[method-assign]
            cls._seedless = True
        if cls._seedless and "step" in own:
            cls.step = _drawing(own["step"])  # type: ignore[method-assign]

    @abstractmethod
    def reset(self, seed: int | None = None) -> Observation:
        """Starts an episode.

        Args:
            seed: of everything random in the episode; None continues the generator's stream.

        Returns:
            The first observation, `{key: [...]}`.
        """

    @abstractmethod
    def step(self, action: Array) -> tuple[Observation, float, bool, dict[str, Any]]:
        """Plays one action.

        Args:
            action: `[A]`.

        Returns:
            `(obs, reward, done, info)`. `done` is true when the episode is over; `info` holds
            `terminated` (the task ended: later states have no value) and `truncated` (the time
            was up: the task would have continued).
        """

    @abstractmethod
    def get_observation(self) -> Observation:
        """The last observation that `reset` or `step` returned."""

    @abstractmethod
    def get_reward(self) -> float:
        """The reward of the last step."""

    @abstractmethod
    def is_done(self) -> bool:
        """Whether the episode is over, for any reason."""

    @abstractmethod
    def is_success(self) -> dict[str, bool]:
        """Whether the task is solved now: `{"task": …}` and further criteria by name."""

    @property
    def knows_success(self) -> bool:
        """Whether `is_success` reports success; without it there is no success rate."""
        return True

    @property
    def judges_states(self) -> bool:
        """Whether `get_reward` and `is_success` are valid for a state that `reset_to` has set.

        If not, they are valid for the last step only.
        """
        return True

    @abstractmethod
    def get_state(self) -> dict[str, Any]:
        """The simulator's state, for `reset_to`.

        Returns:
            `{"states": [S]}`; robosuite adds `model`, the scene as XML, and `ep_meta`, JSON.
        """

    @abstractmethod
    def reset_to(self, state: Mapping[str, Any]) -> Observation:
        """Starts an episode in a state that `get_state` returned or a dataset holds.

        Args:
            state: as `get_state` returns it.

        Returns:
            The observation in that state.
        """

    @abstractmethod
    def render(
        self,
        mode: str = "rgb_array",
        height: int | None = None,
        width: int | None = None,
        camera_name: str | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Returns a picture of the current state, `[H, W, 3]`.

        raymimic itself asks for no camera: a class may leave that argument out.

        Raises:
            EnvError: this machine or this mode cannot render.
        """

    def get_goal(self) -> Observation:
        """The goal of this episode as an observation, for goal-conditioned policies."""
        raise EnvError(f"environment '{self.name}' has no goal observations")

    def set_goal(self, **kwargs: Any) -> None:
        """Chooses the goal of this episode."""
        raise EnvError(f"the goal of environment '{self.name}' cannot be set")

    @abstractmethod
    def serialize(self) -> dict[str, Any]:
        """The `env_args` of a dataset: `env_name`, `type`, `env_kwargs` and, if set, `render`."""

    def close(self) -> None:  # noqa: B027 # robomimic's environments have none
        """Frees simulator and renderer."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The environment's name."""

    @property
    @abstractmethod
    def type(self) -> int | str:
        """The kind under which the class is registered, see `raymimic.envs.kinds`."""

    @property
    def version(self) -> str | None:
        """The version of the simulator, if it has one."""
        return None

    @property
    def rollout_exceptions(self) -> tuple[builtins.type[BaseException], ...]:
        """Exceptions that end an episode and no more."""
        return ()

    @property
    def base_env(self) -> Any:
        """The simulator's own environment; this one where there is no other."""
        return self

    @property
    @abstractmethod
    def action_dimension(self) -> int:
        """Number of action components A."""

    @property
    def action_bounds(self) -> tuple[Array, Array]:
        """Least and greatest value of each action component, `[A]`; infinite without a limit."""
        limit = np.full(self.action_dimension, np.inf)
        return -limit, limit

    def clip(self, action: Array) -> Array:
        """Moves an action `[A]` to the nearest one within `action_bounds`."""
        return np.clip(action, *self.action_bounds)


def _takes_seed(reset: Callable[..., Any]) -> bool:
    parameters = inspect.signature(reset).parameters
    return "seed" in parameters or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )


def _seeded(reset: Callable[..., Observation]) -> Callable[..., Observation]:
    """A `reset` that takes a seed, of one that does not."""

    @wraps(reset)
    def seeded(self: EnvBase, *args: Any, seed: int | None = None, **kwargs: Any) -> Observation:
        with _numbers(self).drawn(seed):
            return reset(self, *args, **kwargs)

    return seeded


def _drawing(step: Callable[..., T]) -> Callable[..., T]:
    """A `step` that draws the environment's own numbers."""

    @wraps(step)
    def drawing(self: EnvBase, *args: Any, **kwargs: Any) -> T:
        with _numbers(self).drawn():
            return step(self, *args, **kwargs)

    return drawing


def _numbers(env: EnvBase) -> GlobalNumbers:
    """The environment's numbers, made at the first use: its constructor is the user's."""
    if "_raymimic_numbers" not in vars(env):
        env._raymimic_numbers = GlobalNumbers()
    return env._raymimic_numbers
