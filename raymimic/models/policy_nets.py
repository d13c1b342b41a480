"""Networks that choose actions. Actions lie in [-1, 1]."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from raymimic.models.obs_nets import MIMO_MLP, EncoderKwargs, ObsDict, obs_and_goal_groups


class ActorNetwork(MIMO_MLP):
    """A deterministic policy: observations, and a goal if there is one, to an action.

    Args:
        obs_shapes: shapes of the observation keys.
        ac_dim: number of action dimensions.
        mlp_layer_dims: sizes of the hidden layers.
        goal_shapes: shapes of the goal's keys; None or empty: no goal.
        encoder_kwargs: see :class:`~raymimic.models.obs_nets.ObservationEncoder`.
    """

    def __init__(
        self,
        obs_shapes: Mapping[str, Sequence[int]],
        ac_dim: int,
        mlp_layer_dims: Sequence[int],
        goal_shapes: Mapping[str, Sequence[int]] | None = None,
        encoder_kwargs: EncoderKwargs | None = None,
    ) -> None:
        super().__init__(
            input_obs_group_shapes=obs_and_goal_groups(obs_shapes, goal_shapes),
            output_shapes={"action": (ac_dim,)},
            layer_dims=mlp_layer_dims,
            encoder_kwargs=encoder_kwargs,
        )

    def forward(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:  # type: ignore[override]
        """Maps ``{key: [B, *shape]}`` to actions ``[B, A]`` in [-1, 1]."""
        return torch.tanh(super().forward(obs=obs_dict, goal=goal_dict)["action"])
