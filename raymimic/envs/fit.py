"""Checks that an environment fits a policy, and reads a policy's observations from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from raymimic.envs.env_base import Array, EnvBase, Observation
from raymimic.envs.kinds import env_from_metadata
from raymimic.envs.render_settings import DEPTH, IMAGE
from raymimic.errors import EnvError, did_you_mean
from raymimic.observations.modality import modality_named, type_fault
from raymimic.observations.shapes import language_keys
from raymimic.user_modules import own_reason

if TYPE_CHECKING:
    from raymimic.config import BaseConfig

T = TypeVar("T")

OBSERVATION, GOAL = "observation", "goal"

# The data's actions may exceed an environment's by so much without a warning.
_ACTION_TOLERANCE = 1e-4
_LARGEST = np.finfo(np.float32).max


@dataclass(frozen=True)
class PolicyInterface:
    """A policy's inputs from its environment, and its actions.

    Attributes:
        obs: shape of each observation that it reads, as the environment gives it (images
            `[H, W, C]`).
        goals: shape of each goal that it reads; empty without goals.
        action_dim: number of action components.
        frame_stack: number of observations that an environment may stack itself.
        modalities: of each observation and goal; one that is left out may be of any type.
    """

    obs: Mapping[str, list[int]]
    goals: Mapping[str, list[int]]
    action_dim: int
    frame_stack: int = 1
    modalities: Mapping[str, str] = field(default_factory=dict)

    @property
    def reads(self) -> dict[str, str]:
        """The modality of each observation and goal that it reads."""
        return {**dict.fromkeys([*self.obs, *self.goals], "low_dim"), **self.modalities}

    @property
    def images(self) -> bool:
        """Whether it reads images or depth."""
        return bool({"rgb", "depth"} & set(self.reads.values()))

    @classmethod
    def of(cls, config: BaseConfig, shape_meta: Mapping[str, Any]) -> PolicyInterface:
        """The interface of the policy that a config describes.

        Args:
            config: sections `observation` and `train` are read.
            shape_meta: `all_shapes` and `ac_dim` of its data, as in checkpoints.
        """
        shapes = shape_meta["all_shapes"]

        def raw(modalities: Mapping[str, str]) -> dict[str, list[int]]:
            return {
                key: _raw_shape(shapes[key], modality)
                for key, modality in modalities.items()
                if key in shapes  # else the algorithm complains that it has no shape
            }

        return cls(
            raw(config.obs_from_env),
            raw(config.goals_from_env),
            int(shape_meta["ac_dim"]) - 3 * len(config.converted_actions),
            int(config.train.frame_stack),
            {**config.obs_from_env, **config.goals_from_env},
        )


def _raw_shape(shape: Sequence[int], modality: str) -> list[int]:
    """Shape of an observation as environments have it."""
    return modality_named(modality).raw_shape(shape)


@dataclass(frozen=True)
class TriedEnv:
    """An environment as its trial found it.

    Attributes:
        low: least value of each action component that it takes; `-inf` without a limit.
        high: greatest value of each action component; `inf` without a limit.
        knows_success: whether it tells if the task is solved.
    """

    low: list[float]
    high: list[float]
    knows_success: bool = False


def clipping_warnings(
    low: npt.ArrayLike, high: npt.ArrayLike, environments: Mapping[str, TriedEnv]
) -> list[str]:
    """A sentence for each environment that takes less than the data's actions.

    Args:
        low: least value of each action component of the data `[A]`, as recorded.
        high: greatest value of each.
        environments: the actions that each environment takes, by its name.
    """
    low, high = np.asarray(low), np.asarray(high)
    sentences = []
    for env, bounds in environments.items():
        beyond = np.maximum(np.asarray(bounds.low) - low, high - np.asarray(bounds.high))
        worst = int(np.argmax(beyond))
        if beyond[worst] > _ACTION_TOLERANCE:
            sentences.append(
                f"component {worst} of the data's actions goes from {low[worst]:.4g} to "
                f"{high[worst]:.4g}, and {env} takes {bounds.low[worst]:.4g} to "
                f"{bounds.high[worst]:.4g}: actions are clipped when it is played"
            )
    return sentences


def check_fit(env_meta: Mapping[str, Any], policy: PolicyInterface) -> TriedEnv:
    """Makes an environment and plays one step in it, as an evaluation will.

    Resets it, compares its observations with the policy's data, plays an action from the middle of
    the action space, reads reward and success, and resets it again.

    Args:
        env_meta: see `env_from_metadata`.
        policy: the policy that is to play.

    Raises:
        EnvError: the environment cannot be made, or does not fit the policy; one sentence.
    """
    env = env_from_metadata(env_meta, reads=policy.reads)
    try:
        low, high = env.action_bounds
        if env.action_dimension != policy.action_dim:
            raise EnvError(
                f"environment '{env.name}' takes actions of {env.action_dimension} components, "
                f"and the policy gives {policy.action_dim}"
            )
        if env_meta.get("lang"):
            # The policy has the embedding of the instruction.
            told = language_keys(policy.modalities)
            seen = {key: shape for key, shape in policy.obs.items() if key not in told}
            policy = replace(policy, obs=seen)
        _compare(env, "its reset", _calling(env, "reset", lambda: env.reset(seed=0)), policy)
        action = env.clip(np.zeros(policy.action_dim, np.float32))
        obs, *_ = _calling(env, "step", lambda: env.step(action))
        _compare(env, "its step", obs, policy)
        _calling(env, "is_success", env.is_success)
        knows_success = env.knows_success
        _compare(env, "its reset", _calling(env, "reset", lambda: env.reset(seed=1)), policy)
        return TriedEnv(low.tolist(), high.tolist(), knows_success)
    finally:
        with suppress(Exception):  # the check is done
            env.close()


def _calling(env: EnvBase, method: str, call: Callable[[], T]) -> T:
    """Calls an environment's method, and explains its exceptions."""
    try:
        return call()
    except EnvError:
        raise
    except Exception as error:  # a simulator may raise anything
        raise EnvError(
            f"environment '{env.name}' fails in its {method}: {own_reason(error)}"
        ) from error


def _compare(env: EnvBase, source: str, obs: Observation, policy: PolicyInterface) -> None:
    groups = [(OBSERVATION, policy.obs, obs)]
    if policy.goals:
        groups.append((GOAL, policy.goals, _calling(env, "get_goal", env.get_goal)))
    for kind, shapes, given in groups:
        for key, shape in shapes.items():
            try:
                value = read(given, key, kind)
            except EnvError as error:
                raise EnvError(f"environment '{env.name}', after {source}: {error}") from error
            actual = list(value.shape)
            stacked = [policy.frame_stack, *shape] if policy.frame_stack > 1 else shape
            if actual not in (shape, stacked):
                raise EnvError(
                    f"environment '{env.name}' gives {kind} '{key}' of shape {actual}, and the "
                    f"policy reads {shape}"
                )
            modality = policy.modalities.get(key, "low_dim")
            if fault := type_fault(value.dtype.name, modality):
                raise EnvError(
                    f"environment '{env.name}' gives {kind} '{key}', which is listed as {modality} "
                    f"and holds {fault}"
                )


def _camera(key: str) -> str:
    """The remedy for an image that is missing."""
    for ending in (IMAGE, DEPTH):
        if key.endswith(ending) and (camera := key.removesuffix(ending)):
            depth = ', "depth": true' if ending == DEPTH else ""
            return (
                "; a simulator draws the cameras that 'render' of the data's 'env_args' names "
                f'(experiment.env_meta_update_dict={{"render": {{"cameras": '
                f'["{camera}"]{depth}}}}})'
            )
    return ""


def read(obs: Mapping[str, Any], key: str, kind: str = OBSERVATION) -> Array:
    """Reads one key of an environment's observation.

    Args:
        obs: as the environment gives it.
        key: the key.
        kind: `OBSERVATION` or `GOAL`, for the error message.

    Returns:
        An array of finite numbers; a scalar becomes `[1]`.

    Raises:
        EnvError: it is missing, or no array of finite numbers.
    """
    if key not in obs:
        raise EnvError(
            f"the policy reads {kind} '{key}', which the environment does not give"
            f"{did_you_mean(key, map(str, obs))}{_camera(key)}"
        )
    value = np.asarray(obs[key])
    if value.dtype.kind == "O" and all(isinstance(part, Real) for part in value.flat):
        with suppress(OverflowError):
            value = value.astype(np.float64)
    if value.dtype.kind not in "fiub":
        types = sorted({type(part).__name__ for part in value.flat}) or [str(value.dtype)]
        raise EnvError(
            f"the policy reads {kind} '{key}', which is no array of numbers, but of type "
            f"{', '.join(types)}"
        )
    if value.dtype.kind == "f":
        if not np.isfinite(value).all():
            raise EnvError(f"{kind} '{key}' holds NaN or infinite numbers")
        if value.dtype.itemsize > 4 and np.abs(value).max(initial=0) > _LARGEST:
            raise EnvError(f"{kind} '{key}' holds numbers beyond float32, such as 1e39")
    return value if value.ndim else value[None]
