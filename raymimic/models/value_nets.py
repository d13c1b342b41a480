"""Networks that estimate returns."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from raymimic.models.obs_nets import MIMO_MLP, EncoderKwargs, ObsDict, obs_and_goal_groups
from raymimic.utils.obs_utils import ObsShapes


class ValueNetwork(MIMO_MLP):
    """V(s): observations, and a goal if there is one, to a value.

    Args:
        obs_shapes: shapes of the observation keys.
        mlp_layer_dims: sizes of the hidden layers.
        value_bounds: lowest and highest value that can come out (by a tanh); None: unbounded.
        goal_shapes: shapes of the goal's keys; None or empty: no goal.
        encoder_kwargs: see :class:`~raymimic.models.obs_nets.ObservationEncoder`.
    """

    def __init__(
        self,
        obs_shapes: Mapping[str, Sequence[int]],
        mlp_layer_dims: Sequence[int],
        value_bounds: tuple[float, float] | None = None,
        goal_shapes: Mapping[str, Sequence[int]] | None = None,
        encoder_kwargs: EncoderKwargs | None = None,
    ) -> None:
        super().__init__(
            input_obs_group_shapes=obs_and_goal_groups(obs_shapes, goal_shapes),
            output_shapes={"value": (1,)},
            layer_dims=mlp_layer_dims,
            encoder_kwargs=encoder_kwargs,
        )
        self.value_bounds = value_bounds

    def forward(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:  # type: ignore[override]
        """Maps ``{key: [B, *shape]}`` to values ``[B, 1]``."""
        value = super().forward(obs=obs_dict, goal=goal_dict)["value"]
        if self.value_bounds is None:
            return value
        low, high = self.value_bounds
        return (low + high) / 2 + (high - low) / 2 * torch.tanh(value)


class ActionValueNetwork(ValueNetwork):
    """Q(s, a): a value network that sees the action as one more observation, the last.

    Args:
        obs_shapes: shapes of the observation keys.
        ac_dim: number of action dimensions.
        mlp_layer_dims: sizes of the hidden layers.
        value_bounds: see :class:`ValueNetwork`.
        goal_shapes: see :class:`ValueNetwork`.
        encoder_kwargs: see :class:`ValueNetwork`.
    """

    def __init__(
        self,
        obs_shapes: Mapping[str, Sequence[int]],
        ac_dim: int,
        mlp_layer_dims: Sequence[int],
        value_bounds: tuple[float, float] | None = None,
        goal_shapes: Mapping[str, Sequence[int]] | None = None,
        encoder_kwargs: EncoderKwargs | None = None,
    ) -> None:
        shapes = ObsShapes(obs_shapes)
        shapes["action"] = (ac_dim,)
        super().__init__(shapes, mlp_layer_dims, value_bounds, goal_shapes, encoder_kwargs)

    def forward(  # type: ignore[override]
        self, obs_dict: ObsDict, acts: Tensor, goal_dict: ObsDict | None = None
    ) -> Tensor:
        """Maps ``{key: [B, *shape]}`` and actions ``[B, A]`` to values ``[B, 1]``."""
        return super().forward({**obs_dict, "action": acts}, goal_dict)
