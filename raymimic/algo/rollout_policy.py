"""From raw observations of an environment to actions that it takes."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymimic.algo.algo import Algo, PolicyAlgo
from raymimic.algo.composite import HierarchicalAlgo
from raymimic.algo.noise import EpisodeNoise
from raymimic.data.rotations import as_played
from raymimic.errors import ConfigError, EnvError, did_you_mean
from raymimic.observations import normalization
from raymimic.observations.modality import RGB, Modality, modality_named
from raymimic.observations.shapes import ObsShapes, language_keys

Stats = Mapping[str, Mapping[str, Any]]
# Prepared colours may leave 0 to 1 by so much, in any floating-point type down to float16.
_COLOUR_ROUNDING = 1e-3

Actor = PolicyAlgo | HierarchicalAlgo


def can_act(algo: type[Algo]) -> bool:
    """Whether an algorithm is a policy; those that only plan or value are not."""
    return issubclass(algo, Actor)


class RolloutPolicy:
    """A trained algorithm with its data's normalisation: call it in an environment.

    It acts for one environment or for a batch of environments. The rows of a batch are independent:
    each has its own memory of the algorithm (a hidden state, a queue of actions, a subgoal) and,
    once `start_episode` got seeds, its own random numbers.

    Observations are raw, as datasets hold them: images are bytes `[H, W, C]`. Images may also be
    floats `[C, H, W]` in 0 to 1, as in robomimic up to 0.4; these are not processed again. The
    policy acts in evaluation mode: with running statistics, and without random crops.

    For an algorithm that sees the last `train.frame_stack` observations, single observations are
    collected in each row; at the beginning of an episode the first one is repeated. Stacks that the
    environment has made (robomimic's `FrameStackWrapper`) are used unchanged.

    A policy that sees an instruction gets it by `start_episode`, or its embedding as an
    observation. A policy that was trained on a single instruction uses that one by default.

    Args:
        policy: the algorithm.
        obs_normalization_stats: `offset` and `scale` `[1, *shape]` of each observation key;
            None: observations were not normalised.
        action_normalization_stats: `offset` and `scale` of each action key; None: actions were not
            normalised.
        language: the embedding `[E]` of each instruction that it was trained on.

    Raises:
        ConfigError: for an algorithm that cannot act, and for rotations to be converted
            (`BaseConfig.converted_actions`) without `action_normalization_stats`.
    """

    def __init__(
        self,
        policy: Algo,
        obs_normalization_stats: Stats | None = None,
        action_normalization_stats: Stats | None = None,
        language: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        if not isinstance(policy, Actor):
            raise ConfigError(f"{type(policy).__name__} is no policy: it has no get_action")
        self.policy = policy
        self.obs_normalization_stats = obs_normalization_stats
        self.action_normalization_stats = action_normalization_stats
        self.language = dict(language or {})
        keys = language_keys({k: policy.obs_shapes.modality(k) for k in policy.obs_shapes})
        self._language_key = keys[0] if len(keys) == 1 else None
        self._told: str | None = None
        self._stack: dict[str, Tensor] = {}  # the last observations, [B, T, *shape]
        self._begins: Tensor | None = None  # [B], rows whose episode begins; None: all
        policy.set_eval()
        self._obs_stats = None
        if obs_normalization_stats is not None:
            self._obs_stats = normalization.stats_to_tensors(
                obs_normalization_stats, policy.device, policy.dtype
            )
        self._action_offset: NDArray[Any] | float = 0.0
        self._action_scale: NDArray[Any] | float = 1.0
        self._action_widths: dict[str, int] = {}
        self._conversions = policy.global_config.converted_actions
        if action_normalization_stats is not None:
            keys = policy.global_config.train.action_keys
            stats = [action_normalization_stats[key] for key in keys]
            offsets = [np.ravel(s["offset"]) for s in stats]
            self._action_offset = np.concatenate(offsets)
            self._action_scale = np.concatenate([np.ravel(s["scale"]) for s in stats])
            self._action_widths = {key: len(x) for key, x in zip(keys, offsets, strict=True)}
        for key in self._conversions:
            if self._action_widths.get(key) != 6:
                raise ConfigError(
                    f"train.action_config['{key}'].format is 'rot_6d', and the policy has no "
                    "statistics of six components of it (action_normalization_stats)"
                )

    @property
    def obs_keys(self) -> list[str]:
        """The observations that the policy reads; without its instruction, once told by name."""
        told = None if self._told is None else self._language_key
        return [key for key in self.policy.obs_shapes if key != told]

    @property
    def goal_keys(self) -> list[str]:
        """The goals that it reads."""
        return list(self.policy.goal_shapes)

    @property
    def modalities(self) -> dict[str, str]:
        """The modality of each observation and goal that it reads."""
        read = (self.policy.obs_shapes, self.policy.goal_shapes)
        return {key: shapes.modality(key) for shapes in read for key in shapes}

    @property
    def acts_in_batches(self) -> bool:
        """Whether it may act in several environments at once, see `Algo.acts_in_batches`."""
        return self.policy.acts_in_batches

    def start_episode(
        self,
        mask: NDArray[np.bool_] | None = None,
        seeds: Sequence[int] | None = None,
        lang: str | None = None,
    ) -> None:
        """Prepares for a new episode.

        Args:
            mask: `[B]`, the environments of a batch that start a new episode; None: all.
            seeds: `[B]`, from which an episode's random numbers follow, see
                `EpisodeNoise` (those of rows outside the mask are
                not looked at); None: torch's own random numbers.
            lang: the instruction of all rows from now on; None: as before.

        Raises:
            EnvError: the policy was not trained on that instruction, or sees none, or it cannot
                start new episodes in some rows only.
        """
        if lang is not None:
            self._tell(lang)
        self.policy.set_eval()
        if mask is None or mask.all():
            mask = None
            self.policy.reset()
            self._begins = None
        elif not self.acts_in_batches:
            raise EnvError(
                f"{type(self.policy).__name__}.reset has no argument 'mask', which marks the "
                "episodes that start: add it, or act in one environment at a time"
            )
        else:
            rows = torch.as_tensor(mask, device=self.policy.device)
            self.policy.reset(rows)
            if self._begins is not None:
                self._begins = self._begins | rows
        if seeds is None:
            self.policy.episode_noise = None
            return
        noise = self.policy.episode_noise
        if noise is None or noise.rows != len(seeds):
            noise = self.policy.episode_noise = EpisodeNoise(len(seeds))
        noise.seed(seeds, mask)

    def _tell(self, lang: str) -> None:
        """Chooses the instruction whose embedding the networks see.

        Raises:
            EnvError: its embedding is not known.
        """
        if self._language_key is None:
            raise EnvError(f"the policy sees no instruction, but gets '{lang}': leave it out")
        if lang not in self.language:
            raise EnvError(
                f"the policy has no embedding of '{lang}'{did_you_mean(lang, self.language)}; give "
                f"the embedding of another instruction as observation '{self._language_key}'"
                + ("" if self.language else " (its checkpoint holds none)")
            )
        self._told = lang

    def _embedding(self, ob: Mapping[str, Any], key: str) -> Tensor | None:
        """The embedding `[E]` of the instruction, if the observation lacks it."""
        told = self._told
        if told is None and len(self.language) == 1:
            (told,) = self.language
        if key != self._language_key or key in ob or told is None:
            return None
        return torch.tensor(self.language[told], dtype=self.policy.dtype, device=self.policy.device)

    @torch.no_grad()
    def __call__(
        self,
        ob: Mapping[str, Any],
        goal: Mapping[str, Any] | None = None,
        batched_ob: bool = False,
    ) -> NDArray[Any]:
        """Chooses actions.

        Args:
            ob: observation arrays `{key: [*shape]}`, `[B, *shape]` if batched, or stacks
                of them (`[B, T, *shape]`), raw, or images that are prepared; keys that the policy
                does not see are ignored. Key `robot/eef` may lie in a nested dict, as
                `{"robot": {"eef": …}}`.
            goal: the goal's observations, in the same form, one for each row.
            batched_ob: whether there is a batch dimension.

        Returns:
            The action as the environment takes it, `[A]` or `[B, A]`, float32 (or float64).

        Raises:
            EnvError: if an observation or the goal that the policy needs is missing, or is no
                array of numbers of its shape.
        """
        if goal is None and self.policy.goal_shapes:
            raise EnvError(
                f"the policy needs a goal ({', '.join(self.policy.goal_shapes)}): pass "
                "goal=env.get_goal()"
            )
        obs = self._prepare(ob, self.policy.obs_shapes, batched_ob)
        goals = None
        if goal is not None:
            goals = self._prepare(goal, self.policy.goal_shapes, batched_ob, "goal")
        obs = self._stacked(obs)
        with self.policy.episode_noise or nullcontext():
            action = self.policy.get_action(obs, goals).cpu().numpy()
        # Statistics may be float64; the environment gets the policy's own type.
        action = (action * self._action_scale + self._action_offset).astype(action.dtype)
        action = as_played(action, self._action_widths, self._conversions)
        return action if batched_ob else action[0]

    def _prepare(
        self, ob: Mapping[str, Any], shapes: ObsShapes, batched: bool, kind: str = "observation"
    ) -> dict[str, Tensor]:
        """Brings observations into the form that networks were trained on."""
        if not isinstance(ob, Mapping):
            raise EnvError(
                f"the policy takes a dict with each {kind} under its key ({', '.join(shapes)}), "
                f"not {type(ob).__name__}"
            )
        prepared = {}
        embedding = None
        for key in shapes:
            if kind == "observation" and (x := self._embedding(ob, key)) is not None:
                embedding = x
                continue
            modality = modality_named(shapes.modality(key), self.policy.global_config.cuts_depth)
            shape = list(shapes[key])
            x = self._tensor(_lookup(ob, key, kind), key, kind)
            raw = _is_raw(x, modality, shape)
            self._check_shape(x, key, modality, shape, raw, batched, kind)
            _check_values(x, modality, raw, f"{kind} '{key}'")
            x = x.to(self.policy.dtype)
            x = modality.process(x) if raw else x
            prepared[key] = x if batched else x[None]
        if batched and len({len(x) for x in prepared.values()}) > 1:
            sizes = ", ".join(f"'{key}' {len(x)}" for key, x in prepared.items())
            raise EnvError(f"the {kind}s of a batch differ in their rows: {sizes}")
        if embedding is not None and self._language_key is not None:
            # One row for each of the other observations, each step of a stack included.
            leading = [x.shape[: x.dim() - len(shapes[key])] for key, x in prepared.items()]
            rows = max(leading, key=len, default=torch.Size([1]))
            prepared[self._language_key] = embedding.expand(*rows, -1)
        if self._obs_stats is not None:
            prepared = normalization.normalize_dict(prepared, self._obs_stats)
        return prepared

    def _tensor(self, value: Any, key: str, kind: str) -> Tensor:
        """Brings one observation onto the device.

        Raises:
            EnvError: it is no array of numbers.
        """
        try:
            # Torch takes no views that run backwards, such as images that were turned around.
            x = value if isinstance(value, Tensor) else torch.as_tensor(np.ascontiguousarray(value))
        except (TypeError, ValueError) as error:
            raise EnvError(
                f"{kind} '{key}' is no array of numbers, but {type(value).__name__}"
                + (f" with keys {', '.join(map(str, value))}" if isinstance(value, dict) else "")
            ) from error
        x = x.to(self.policy.device)  # images travel as bytes
        return x if x.dim() else x[None]

    def _check_shape(
        self,
        x: Tensor,
        key: str,
        modality: Modality,
        prepared_shape: list[int],
        raw: bool,
        batched: bool,
        kind: str,
    ) -> None:
        """Makes sure that an observation has the shape that the policy was trained on."""
        given, raw_shape = list(x.shape), modality.raw_shape(prepared_shape)
        shape = raw_shape if raw else prepared_shape
        ends_right = _ends_with(given, shape)
        leading = len(given) - len(shape)
        least = 1 if batched else 0  # a stack has one more
        if raw and ends_right and isinstance(modality, RGB) and x.is_floating_point():
            raise EnvError(
                f"{kind} '{key}' is an image of floating-point numbers with the channels last, "
                f"{given}: pass bytes of that shape, or the channels first and values in 0 to 1"
            )
        if ends_right and least <= leading <= least + 1:
            length = self.policy.global_config.train.frame_stack
            if leading == least or given[least] == length > 1:
                return
        wanted = ", ".join(map(str, ["B", *shape] if batched else shape))
        hint = ""
        if ends_right and leading == 0:
            hint = ": leave batched_ob out for a single one"
        elif ends_right and not batched and leading == 1:
            hint = ": pass batched_ob=True for a batch"
        elif raw_shape != prepared_shape and not ends_right:
            hint = f", or floating-point numbers {prepared_shape} that are prepared already"
        raise EnvError(f"{kind} '{key}' has shape {given}, and the policy reads [{wanted}]{hint}")

    def _stacked(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Makes stacks `[B, T, *shape]` of observations `[B, *shape]`, if stacks are wanted."""
        length = self.policy.global_config.train.frame_stack
        shapes = self.policy.obs_shapes
        if length == 1 or any(x.dim() != 1 + len(shapes[k]) for k, x in obs.items()):
            return obs
        begins = self._begins
        for key, x in obs.items():
            first = x[:, None].expand(-1, length, *x.shape[1:])
            if begins is None:
                self._stack[key] = first
            else:
                later = torch.cat([self._stack[key][:, 1:], x[:, None]], dim=1)
                fresh = begins.view(-1, *(1,) * x.dim())
                self._stack[key] = torch.where(fresh, first, later)
        size = len(next(iter(obs.values())))
        self._begins = torch.zeros(size, dtype=torch.bool, device=self.policy.device)
        return dict(self._stack)

    def __repr__(self) -> str:
        return repr(self.policy)


def _lookup(ob: Mapping[str, Any], key: str, kind: str) -> Any:
    """Finds an observation by its key, also where it is a path into nested dicts.

    Raises:
        EnvError: it is not there.
    """
    if key in ob:
        return ob[key]
    found: Any = ob
    for part in key.split("/"):
        found = found.get(part) if isinstance(found, Mapping) else None
    if found is not None:
        return found
    inside = [name for name, value in ob.items() if isinstance(value, Mapping) and key in value]
    hint = f": pass the content of '{inside[0]}'" if inside else did_you_mean(key, map(str, ob))
    raise EnvError(f"the policy needs {kind} '{key}', which the environment does not give{hint}")


def _is_raw(x: Tensor, modality: Modality, shape: list[int]) -> bool:
    """Whether an observation is as datasets hold it, rather than as networks see it.

    Told by its shape; where both are of one shape, images are raw as bytes.

    Args:
        x: `[..., *shape]`.
        modality: its modality.
        shape: as networks see it.
    """
    raw = modality.raw_shape(shape)
    if not x.is_floating_point() or not _ends_with(x.shape, shape):
        return True
    return not (raw != shape or modality.keeps_bytes(raw, np.uint8))


def _check_values(x: Tensor, modality: Modality, raw: bool, name: str) -> None:
    """Makes sure that an observation has the type of its modality, and colours their range.

    Args:
        x: the observation.
        modality: its modality.
        raw: see `_is_raw`.
        name: of the observation, for messages.

    Raises:
        EnvError: it has not.
    """
    fault = modality.type_fault(str(x.dtype).removeprefix("torch.")) if raw else None
    if fault is not None:
        raise EnvError(f"{name} holds {fault}")
    if type(modality) is RGB and x.dtype != torch.uint8 and x.numel():
        low, high = (bound.item() for bound in torch.aminmax(x))
        greatest = 255 if raw else 1
        if not -_COLOUR_ROUNDING <= low <= high <= greatest + _COLOUR_ROUNDING:
            raise EnvError(
                f"{name} holds colours of {low:.4g} to {high:.4g}: pass bytes with the channels "
                "last, 0 to 255, or floating-point numbers with the channels first, 0 to 1"
            )


def _ends_with(given: Sequence[int], shape: Sequence[int]) -> bool:
    return list(given[max(0, len(given) - len(shape)) :]) == list(shape)
