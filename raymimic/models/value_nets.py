"""Networks that estimate returns."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from raymimic.models.distributions import DiscreteValueDistribution
from raymimic.models.ensembles import can_be_batched, forward_batched, rows_worth_batching
from raymimic.models.obs_coders import EncoderKwargs, ObsDict
from raymimic.models.obs_nets import MIMO_MLP, obs_and_goal_groups
from raymimic.observations.shapes import ObsShapes


class ValueNetwork(MIMO_MLP):
    """V(s): observations, and a goal if there is one, to a value.

    Args:
        obs_shapes: shapes of the observation keys.
        mlp_layer_dims: sizes of the hidden layers.
        value_bounds: lowest and highest value that can come out (by a tanh); None: unbounded.
        goal_shapes: shapes of the goal's keys; None or empty: no goal.
        encoder_kwargs: see `ObservationEncoder`.
        layer_norm: whether each hidden layer is normalised.
    """

    def __init__(
        self,
        obs_shapes: Mapping[str, Sequence[int]],
        mlp_layer_dims: Sequence[int],
        value_bounds: tuple[float, float] | None = None,
        goal_shapes: Mapping[str, Sequence[int]] | None = None,
        encoder_kwargs: EncoderKwargs | None = None,
        layer_norm: bool = False,
    ) -> None:
        super().__init__(
            input_obs_group_shapes=obs_and_goal_groups(obs_shapes, goal_shapes),
            output_shapes={"value": (1,)},
            layer_dims=mlp_layer_dims,
            encoder_kwargs=encoder_kwargs,
            layer_norm=layer_norm,
        )
        self.value_bounds = value_bounds

    def forward(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:  # type: ignore[override]
        """Maps `{key: [B, *shape]}` to values `[B, 1]`."""
        return self.bounded(super().forward(obs=obs_dict, goal=goal_dict)["value"])

    def bounded(self, value: Tensor) -> Tensor:
        """Squashes the last layer's outputs into `value_bounds`, if there are any."""
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
        value_bounds: see `ValueNetwork`.
        goal_shapes: see `ValueNetwork`.
        encoder_kwargs: see `ValueNetwork`.
        layer_norm: see `ValueNetwork`.
    """

    encodes_once: ClassVar[bool] = True

    def __init__(
        self,
        obs_shapes: Mapping[str, Sequence[int]],
        ac_dim: int,
        mlp_layer_dims: Sequence[int],
        value_bounds: tuple[float, float] | None = None,
        goal_shapes: Mapping[str, Sequence[int]] | None = None,
        encoder_kwargs: EncoderKwargs | None = None,
        layer_norm: bool = False,
    ) -> None:
        shapes = ObsShapes(obs_shapes)
        shapes["action"] = (ac_dim,)
        super().__init__(
            shapes, mlp_layer_dims, value_bounds, goal_shapes, encoder_kwargs, layer_norm
        )

    def forward(  # type: ignore[override]
        self, obs_dict: ObsDict, acts: Tensor, goal_dict: ObsDict | None = None
    ) -> Tensor:
        """Maps `{key: [B, *shape]}` and actions `[B, A]` to values `[B, 1]`.

        Actions may be `[B * n, A]`, n of each state side by side: it is encoded once.
        """
        return super().forward({**obs_dict, "action": acts}, goal_dict)


class ActionValueEnsemble(nn.ModuleList):
    """Several Q(s, a), computed in one batched pass where that is faster.

    Critics of a user's own, and those with layers that cannot be batched (see
    `can_be_batched`), are called one by one.

    Args:
        critics: the members.
    """

    def __init__(self, critics: Iterable[nn.Module]) -> None:
        super().__init__(critics)

    @cached_property
    def _batched_rows(self) -> int:
        """The largest batch for which one pass for all members is faster on CPU."""
        return rows_worth_batching(self._members)

    @property
    def _members(self) -> Sequence[ActionValueNetwork]:
        return cast("Sequence[ActionValueNetwork]", self)

    def _batches(self, acts: Tensor) -> bool:
        """Tells whether one pass for all members is possible and faster; cheap questions first."""
        if not all(type(critic) is ActionValueNetwork for critic in self):
            return False
        # A GPU's time goes into launching products, the fewer the better.
        if not acts.is_cuda and len(acts) > self._batched_rows:
            return False
        bounds = [critic.value_bounds for critic in self._members]
        return bounds.count(bounds[0]) == len(bounds) and can_be_batched(self._members)

    def forward(self, obs_dict: ObsDict, acts: Tensor, goal_dict: ObsDict | None = None) -> Tensor:
        """Maps `{key: [B, *shape]}` and actions `[B, A]` to values `[n, B, 1]`."""
        if self._batches(acts):
            inputs = {**obs_dict, "action": acts}
            values = forward_batched(self._members, obs=inputs, goal=goal_dict)["value"]
            return self._members[0].bounded(values)
        return torch.stack([critic(obs_dict, acts, goal_dict) for critic in self])


class DistributionalActionValueNetwork(MIMO_MLP):
    """The distribution of returns of Q(s, a): probabilities of fixed values, the atoms (C51).

    Bellemare et al., "A Distributional Perspective on Reinforcement Learning",
    https://arxiv.org/abs/1707.06887.

    Attributes:
        atoms: `[num_atoms]`, evenly spaced over `value_bounds`.

    Args:
        obs_shapes: see `ActionValueNetwork`.
        ac_dim: see `ActionValueNetwork`.
        mlp_layer_dims: see `ActionValueNetwork`.
        value_bounds: lowest and highest atom.
        num_atoms: number of atoms, at least 2.
        goal_shapes: see `ActionValueNetwork`.
        encoder_kwargs: see `ActionValueNetwork`.
    """

    encodes_once: ClassVar[bool] = True
    atoms: Tensor

    def __init__(
        self,
        obs_shapes: Mapping[str, Sequence[int]],
        ac_dim: int,
        mlp_layer_dims: Sequence[int],
        value_bounds: tuple[float, float],
        num_atoms: int,
        goal_shapes: Mapping[str, Sequence[int]] | None = None,
        encoder_kwargs: EncoderKwargs | None = None,
    ) -> None:
        shapes = ObsShapes(obs_shapes)
        shapes["action"] = (ac_dim,)
        super().__init__(
            input_obs_group_shapes=obs_and_goal_groups(shapes, goal_shapes),
            output_shapes={"log_probs": (num_atoms,)},
            layer_dims=mlp_layer_dims,
            encoder_kwargs=encoder_kwargs,
        )
        self.register_buffer("atoms", torch.linspace(*value_bounds, num_atoms), persistent=False)

    def forward_train(
        self, obs_dict: ObsDict, acts: Tensor, goal_dict: ObsDict | None = None
    ) -> DiscreteValueDistribution:
        """Returns the distribution of returns of `{key: [B, *shape]}` and actions `[B, A]`."""
        outputs = super().forward(obs={**obs_dict, "action": acts}, goal=goal_dict)
        return DiscreteValueDistribution(values=self.atoms, logits=outputs["log_probs"])

    def forward(  # type: ignore[override]
        self, obs_dict: ObsDict, acts: Tensor, goal_dict: ObsDict | None = None
    ) -> Tensor:
        """Returns the expected return `[B, 1]`."""
        return self.forward_train(obs_dict, acts, goal_dict).mean().unsqueeze(-1)
