"""Networks that choose actions. Actions lie in [-1, 1]."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, overload

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from raymimic.errors import ConfigError
from raymimic.models.base_nets import RNNState
from raymimic.models.distributions import ActionHead, GaussianHead, GMMHead
from raymimic.models.obs_coders import EncoderKwargs, ObsDict
from raymimic.models.obs_nets import MIMO_MLP, RNN_MIMO_MLP, obs_and_goal_groups
from raymimic.observations.shapes import ObsShapes
from raymimic.tensors import repeat_rows


def gaussian_args_from_config(gaussian_config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `config.algo.gaussian` as keyword arguments of `GaussianActorNetwork`."""
    args = {k: x for k, x in gaussian_config.items() if k not in ("enabled", "min_std")}
    return {**args, "std_limits": (gaussian_config["min_std"], 7.5)}


def gmm_args_from_config(gmm_config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `config.algo.gmm` as keyword arguments of the policies that are mixtures."""
    return {k: x for k, x in gmm_config.items() if k != "enabled"}


class ActorNetwork(MIMO_MLP):
    """A deterministic policy: observations, and a goal if there is one, to an action.

    Args:
        obs_shapes: shapes of the observation keys.
        ac_dim: number of action dimensions.
        mlp_layer_dims: sizes of the hidden layers.
        goal_shapes: shapes of the goal's keys; None or empty: no goal.
        encoder_kwargs: see `ObservationEncoder`.
    """

    bounded_actions: ClassVar[bool] = True  # to [-1, 1]

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
        """Maps `{key: [B, *shape]}` to actions `[B, A]` in [-1, 1]."""
        return torch.tanh(super().forward(obs=obs_dict, goal=goal_dict)["action"])


class PerturbationActorNetwork(ActorNetwork):
    """A policy that moves given actions a little (BCQ's ξ): it sees the action as one more key.

    Attributes:
        perturbation_scale: see below; may be set at any time.

    Args:
        obs_shapes: see `ActorNetwork`.
        ac_dim: see `ActorNetwork`.
        mlp_layer_dims: see `ActorNetwork`.
        perturbation_scale: how far each dimension of an action may be moved.
        goal_shapes: see `ActorNetwork`.
        encoder_kwargs: see `ActorNetwork`.
    """

    encodes_once: ClassVar[bool] = True

    def __init__(
        self,
        obs_shapes: Mapping[str, Sequence[int]],
        ac_dim: int,
        mlp_layer_dims: Sequence[int],
        perturbation_scale: float = 0.05,
        goal_shapes: Mapping[str, Sequence[int]] | None = None,
        encoder_kwargs: EncoderKwargs | None = None,
    ) -> None:
        shapes = ObsShapes(obs_shapes)
        shapes["action"] = (ac_dim,)
        super().__init__(shapes, ac_dim, mlp_layer_dims, goal_shapes, encoder_kwargs)
        self.perturbation_scale = perturbation_scale

    def forward(  # type: ignore[override]
        self, obs_dict: ObsDict, acts: Tensor, goal_dict: ObsDict | None = None
    ) -> Tensor:
        """Maps `{key: [B, *shape]}` and actions `[B, A]` to actions `[B, A]` in [-1, 1].

        Actions may be `[B * n, A]`, n of each state side by side: it is encoded once.
        """
        perturbation = super().forward({**obs_dict, "action": acts}, goal_dict)
        return (acts + self.perturbation_scale * perturbation).clamp(-1.0, 1.0)


class StochasticActorNetwork(MIMO_MLP):
    """Base of the policies that are distributions over actions.

    Attributes:
        low_noise_eval: act nearly without noise in evaluation mode. It never enters a likelihood:
            that is always the learned distribution's.

    Args:
        head: makes the distribution of the network's outputs.
        obs_shapes: see `ActorNetwork`.
        mlp_layer_dims: see `ActorNetwork`.
        low_noise_eval: see above.
        goal_shapes: see `ActorNetwork`.
        encoder_kwargs: see `ActorNetwork`.
    """

    bounded_actions: ClassVar[bool] = True  # to [-1, 1]

    def __init__(
        self,
        head: ActionHead,
        obs_shapes: Mapping[str, Sequence[int]],
        mlp_layer_dims: Sequence[int],
        low_noise_eval: bool,
        goal_shapes: Mapping[str, Sequence[int]] | None,
        encoder_kwargs: EncoderKwargs | None,
    ) -> None:
        super().__init__(
            input_obs_group_shapes=obs_and_goal_groups(obs_shapes, goal_shapes),
            output_shapes=head.output_shapes,
            layer_dims=mlp_layer_dims,
            encoder_kwargs=encoder_kwargs,
        )
        self.head = head
        self.low_noise_eval = low_noise_eval

    def forward_train(
        self, obs_dict: ObsDict, goal_dict: ObsDict | None = None, low_noise: bool = False
    ) -> Distribution:
        """Returns the distribution over actions `[B, A]`, with batch shape `[B]`.

        Args:
            obs_dict: `{key: [B, *shape]}`.
            goal_dict: `{key: [B, *shape]}` of the goal; None: no goal.
            low_noise: the distribution that acts in evaluation, nearly without noise. (Where
                robomimic chooses it by the network's mode, validation losses are those of a
                distribution that was never trained.)
        """
        return self.head(super().forward(obs=obs_dict, goal=goal_dict), low_noise)

    def forward(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:  # type: ignore[override]
        """Samples actions `[B, A]` for `{key: [B, *shape]}`."""
        return self.sample(obs_dict, goal_dict)

    def sample(
        self, obs_dict: ObsDict, goal_dict: ObsDict | None = None, num_samples: int = 1
    ) -> Tensor:
        """Samples actions `[B * num_samples, A]`; those of one state are neighbours."""
        outputs = super().forward(obs=obs_dict, goal=goal_dict)
        if num_samples > 1:
            outputs = repeat_rows(outputs, num_samples)
        return self.head(outputs, low_noise=self.low_noise_eval and not self.training).sample()


class GaussianActorNetwork(StochasticActorNetwork):
    """A policy whose actions are Gaussian, with independent dimensions.

    With `low_noise_eval` it acts by the mean.

    Args:
        obs_shapes: see `ActorNetwork`.
        ac_dim: see `ActorNetwork`.
        mlp_layer_dims: see `ActorNetwork`.
        init_last_fc_weight: the last layers start uniform within plus and minus this; None: as
            torch initialises them.
        low_noise_eval: see `StochasticActorNetwork`.
        goal_shapes: see `ActorNetwork`.
        encoder_kwargs: see `ActorNetwork`.
        **head_args: further arguments of `GaussianHead`.
    """

    def __init__(
        self,
        obs_shapes: Mapping[str, Sequence[int]],
        ac_dim: int,
        mlp_layer_dims: Sequence[int],
        init_last_fc_weight: float | None = None,
        low_noise_eval: bool = True,
        goal_shapes: Mapping[str, Sequence[int]] | None = None,
        encoder_kwargs: EncoderKwargs | None = None,
        **head_args: Any,
    ) -> None:
        head = GaussianHead(ac_dim, **head_args)
        super().__init__(
            head, obs_shapes, mlp_layer_dims, low_noise_eval, goal_shapes, encoder_kwargs
        )
        if init_last_fc_weight is not None:
            for p in self.nets["decoder"].parameters():
                nn.init.uniform_(p, -init_last_fc_weight, init_last_fc_weight)

    def forward(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:  # type: ignore[override]
        """Samples actions `[B, A]` for `{key: [B, *shape]}`, or returns their centre."""
        if self.low_noise_eval and not self.training:
            return self.forward_train(obs_dict, goal_dict, low_noise=True).mode
        return super().forward(obs_dict, goal_dict)


class GMMActorNetwork(StochasticActorNetwork):
    """A policy whose actions follow a mixture of Gaussians.

    With `low_noise_eval` it acts by (nearly) the mean of a mode that it draws.

    Args:
        obs_shapes: see `ActorNetwork`.
        ac_dim: see `ActorNetwork`.
        mlp_layer_dims: see `ActorNetwork`.
        low_noise_eval: see `StochasticActorNetwork`.
        goal_shapes: see `ActorNetwork`.
        encoder_kwargs: see `ActorNetwork`.
        **head_args: further arguments of `GMMHead`.
    """

    def __init__(
        self,
        obs_shapes: Mapping[str, Sequence[int]],
        ac_dim: int,
        mlp_layer_dims: Sequence[int],
        low_noise_eval: bool = True,
        goal_shapes: Mapping[str, Sequence[int]] | None = None,
        encoder_kwargs: EncoderKwargs | None = None,
        **head_args: Any,
    ) -> None:
        head = GMMHead(ac_dim, **head_args)
        super().__init__(
            head, obs_shapes, mlp_layer_dims, low_noise_eval, goal_shapes, encoder_kwargs
        )


def stochastic_actor_from_config(
    net_config: Mapping[str, Any], **kwargs: Any
) -> GaussianActorNetwork | GMMActorNetwork:
    """Makes the policy that a section such as `algo.actor.net` of CQL and IQL describes.

    Args:
        net_config: `type`, and arguments of the network under `common` and under its type.
        **kwargs: further arguments of the network.

    Raises:
        ConfigError: for a type that has no section.
    """
    types: dict[str, type[GaussianActorNetwork | GMMActorNetwork]] = {
        "gaussian": GaussianActorNetwork,
        "gmm": GMMActorNetwork,
    }
    known = [name for name in types if name in net_config]
    name = net_config["type"]
    if name not in known:
        raise ConfigError(f"'algo.actor.net.type' is '{name}': it must be {' or '.join(known)}")
    return types[name](**net_config["common"], **net_config[name], **kwargs)


class RNNActorNetwork(RNN_MIMO_MLP):
    """A deterministic policy with memory: a sequence of observations to one of actions.

    Args:
        obs_shapes: see `ActorNetwork`.
        ac_dim: see `ActorNetwork`.
        mlp_layer_dims: sizes of the hidden layers after the RNN; there may be none.
        goal_shapes: see `ActorNetwork`.
        **rnn_args: further arguments of `RNN_MIMO_MLP`.
    """

    bounded_actions: ClassVar[bool] = True  # to [-1, 1]

    def __init__(
        self,
        obs_shapes: Mapping[str, Sequence[int]],
        ac_dim: int,
        mlp_layer_dims: Sequence[int],
        goal_shapes: Mapping[str, Sequence[int]] | None = None,
        **rnn_args: Any,
    ) -> None:
        self.ac_dim = ac_dim
        super().__init__(
            input_obs_group_shapes=obs_and_goal_groups(obs_shapes, goal_shapes),
            output_shapes=self._output_shapes(),
            mlp_layer_dims=mlp_layer_dims,
            **rnn_args,
        )

    def _output_shapes(self) -> Mapping[str, Sequence[int]]:
        """Names and shapes of the last layer's predictions."""
        return {"action": (self.ac_dim,)}

    def _act(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Makes actions `[B, T, A]` of the last layer's outputs."""
        return torch.tanh(outputs["action"])

    @overload  # type: ignore[override]
    def forward(
        self,
        obs_dict: ObsDict,
        goal_dict: ObsDict | None = ...,
        rnn_init_state: RNNState | None = ...,
        return_state: Literal[False] = ...,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        obs_dict: ObsDict,
        goal_dict: ObsDict | None = ...,
        rnn_init_state: RNNState | None = ...,
        *,
        return_state: Literal[True],
    ) -> tuple[Tensor, RNNState]: ...

    def forward(
        self,
        obs_dict: ObsDict,
        goal_dict: ObsDict | None = None,
        rnn_init_state: RNNState | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, RNNState]:
        """Chooses an action at each step of a sequence.

        Args:
            obs_dict: `{key: [B, T, *shape]}`.
            goal_dict: `{key: [B, *shape]}`, one for the whole sequence.
            rnn_init_state: state before the first step; None: zeros.
            return_state: return the state after the last step too.

        Returns:
            Actions `[B, T, A]`, and the state if asked.
        """
        outputs, state = super().forward(
            rnn_init_state, return_state=True, obs=obs_dict, goal=goal_dict
        )
        actions = self._act(outputs)
        return (actions, state) if return_state else actions

    def forward_step(
        self,
        obs_dict: ObsDict,
        goal_dict: ObsDict | None = None,
        rnn_state: RNNState | None = None,
    ) -> tuple[Tensor, RNNState]:
        """Chooses actions `[B, A]` for one step `{key: [B, *shape]}`.

        Returns:
            The actions and the state after this step.
        """
        sequence = {k: x[:, None] for k, x in obs_dict.items()}
        actions, state = self(sequence, goal_dict, rnn_state, return_state=True)
        return actions[:, 0], state


class RNNGMMActorNetwork(RNNActorNetwork):
    """A policy with memory whose actions follow a mixture of Gaussians at each step.

    Args:
        obs_shapes: see `RNNActorNetwork`.
        ac_dim: see `RNNActorNetwork`.
        mlp_layer_dims: see `RNNActorNetwork`.
        num_modes: see `GMMHead`.
        min_std: see `GMMHead`.
        std_activation: see `GMMHead`.
        low_noise_eval: see `StochasticActorNetwork`.
        use_tanh: see `GMMHead`.
        **args: further arguments of `RNNActorNetwork`.
    """

    def __init__(
        self,
        obs_shapes: Mapping[str, Sequence[int]],
        ac_dim: int,
        mlp_layer_dims: Sequence[int],
        num_modes: int = 5,
        min_std: float = 0.01,
        std_activation: str = "softplus",
        low_noise_eval: bool = True,
        use_tanh: bool = False,
        **args: Any,
    ) -> None:
        self.head = GMMHead(ac_dim, num_modes, min_std, std_activation, use_tanh)
        self.low_noise_eval = low_noise_eval
        super().__init__(obs_shapes, ac_dim, mlp_layer_dims, **args)

    def _output_shapes(self) -> Mapping[str, Sequence[int]]:
        return self.head.output_shapes

    def _act(self, outputs: Mapping[str, Tensor]) -> Tensor:
        return self.head(outputs, low_noise=self.low_noise_eval and not self.training).sample()

    def forward_train(
        self,
        obs_dict: ObsDict,
        goal_dict: ObsDict | None = None,
        rnn_init_state: RNNState | None = None,
        low_noise: bool = False,
    ) -> Distribution:
        """Returns the distributions over actions `[B, T, A]`, with batch shape `[B, T]`.

        Args:
            obs_dict: see `forward`.
            goal_dict: see `forward`.
            rnn_init_state: see `forward`.
            low_noise: see `StochasticActorNetwork.forward_train`.
        """
        outputs = RNN_MIMO_MLP.forward(self, rnn_init_state, obs=obs_dict, goal=goal_dict)
        return self.head(outputs, low_noise)
