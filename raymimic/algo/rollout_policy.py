"""From raw observations of an environment to actions that it takes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymimic.algo.algo import Algo, HierarchicalAlgo, PolicyAlgo
from raymimic.errors import ConfigError, EnvError, did_you_mean
from raymimic.utils import obs_utils
from raymimic.utils.obs_utils import ObsShapes

Stats = Mapping[str, Mapping[str, Any]]


class RolloutPolicy:
    """A trained algorithm with what was done to its data: the thing to call in an environment.

    It acts for one environment or for a batch of them. On CPU the last bits of an action depend
    on how many observations one forward pass holds, so ``pad_to`` fixes that number: a batch is
    then cut into pieces of this size, the last one filled up with copies, and each action is the
    same whatever it was batched with.

    Args:
        policy: the algorithm.
        obs_normalization_stats: ``offset`` and ``scale`` ``[1, *shape]`` of each observation key;
            None: observations were not normalised.
        action_normalization_stats: likewise for each action key; None: actions were not.
        pad_to: number of observations in each forward pass; None: as many as there are.

    Raises:
        ConfigError: for an algorithm that cannot act, and for actions that would have to be
            converted to another rotation format.
    """

    def __init__(
        self,
        policy: Algo,
        obs_normalization_stats: Stats | None = None,
        action_normalization_stats: Stats | None = None,
        pad_to: int | None = None,
    ) -> None:
        if not isinstance(policy, PolicyAlgo | HierarchicalAlgo):
            raise ConfigError(f"{type(policy).__name__} is no policy: it has no get_action")
        self.policy = policy
        self.obs_normalization_stats = obs_normalization_stats
        self.action_normalization_stats = action_normalization_stats
        self.pad_to = pad_to
        self._obs_stats = None
        if obs_normalization_stats is not None:
            self._obs_stats = obs_utils.stats_to_tensors(
                obs_normalization_stats, policy.device, policy.dtype
            )
        self._action_offset: NDArray[Any] | float = 0.0
        self._action_scale: NDArray[Any] | float = 1.0
        if action_normalization_stats is not None:
            train = policy.global_config.train
            for key in train.action_keys:
                if train.action_config[key].get("format") == "rot_6d":
                    raise ConfigError(
                        f"train.action_config['{key}'].format='rot_6d' is not available: "
                        "store this action in the format that the environment takes"
                    )
            stats = [action_normalization_stats[key] for key in train.action_keys]
            self._action_offset = np.concatenate([np.ravel(s["offset"]) for s in stats])
            self._action_scale = np.concatenate([np.ravel(s["scale"]) for s in stats])

    def start_episode(self, mask: NDArray[np.bool_] | None = None) -> None:
        """Prepares for a new episode.

        Args:
            mask: ``[B]``, those of a batch of environments that start anew; None: all.
        """
        self.policy.set_eval()
        if mask is None or mask.all():
            self.policy.reset()
        else:
            self.policy.reset(torch.as_tensor(mask, device=self.policy.device))

    @torch.no_grad()
    def __call__(
        self,
        ob: Mapping[str, Any],
        goal: Mapping[str, Any] | None = None,
        batched_ob: bool = False,
    ) -> NDArray[Any]:
        """Chooses actions.

        Args:
            ob: raw observation arrays ``{key: [*shape]}``, ``[B, *shape]`` if batched; keys that
                the policy does not see are ignored.
            goal: likewise.
            batched_ob: whether there is a batch dimension.

        Returns:
            The action as the environment takes it, ``[A]`` or ``[B, A]``, float32 (or float64).

        Raises:
            EnvError: if an observation that the policy needs is missing.
        """
        obs = self._prepare(ob, self.policy.obs_shapes, batched_ob)
        goals = None if goal is None else self._prepare(goal, self.policy.goal_shapes, batched_ob)
        size = len(next(iter(obs.values())))
        width = self.pad_to or size
        pieces = []
        for start in range(0, size, width):
            # Indices beyond the batch are its last observation once more.
            index = torch.arange(start, start + width, device=self.policy.device)
            index = index.clamp(max=size - 1)
            piece = {k: x[index] for k, x in obs.items()}
            goal_piece = None if goals is None else {k: x[index] for k, x in goals.items()}
            pieces.append(self.policy.get_action(piece, goal_piece))
        action = torch.cat(pieces)[:size].cpu().numpy()
        # Statistics may be float64; the environment gets what the policy computes in.
        action = (action * self._action_scale + self._action_offset).astype(action.dtype)
        return action if batched_ob else action[0]

    def _prepare(
        self, ob: Mapping[str, Any], shapes: ObsShapes, batched: bool
    ) -> dict[str, Tensor]:
        """Brings raw observations into the form that networks were trained on."""
        prepared = {}
        for key in shapes:
            if key not in ob:
                raise EnvError(
                    f"the policy needs observation '{key}', which the environment does not give"
                    f"{did_you_mean(key, ob)}"
                )
            x = torch.as_tensor(np.asarray(ob[key])).to(self.policy.device).to(self.policy.dtype)
            prepared[key] = x if batched else x[None]
        prepared = obs_utils.process_obs_dict(prepared, shapes)
        if self._obs_stats is not None:
            prepared = obs_utils.normalize_dict(prepared, self._obs_stats)
        return prepared

    def __repr__(self) -> str:
        return repr(self.policy)
