"""Policies as distributions, in numbers; policies with memory, step by step and at once."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raymimic.errors import ConfigError
from raymimic.models.base_nets import RNN_Base
from raymimic.models.distributions import (
    DiscreteValueDistribution,
    GaussianHead,
    GMMHead,
    TanhWrappedDistribution,
)
from raymimic.models.policy_nets import (
    GaussianActorNetwork,
    GMMActorNetwork,
    PerturbationActorNetwork,
    RNNActorNetwork,
    RNNGMMActorNetwork,
)

torch.set_num_threads(1)
SHAPES = {"object": (3,), "eef": (2,)}
GOALS = {"object": (3,)}
RNN = {"rnn_hidden_dim": 6, "rnn_num_layers": 2}


def observations(*leading: int, shapes: dict[str, tuple[int]] = SHAPES) -> dict[str, Tensor]:
    return {k: torch.randn(*leading, *shape) for k, shape in shapes.items()}


def log_normal(a: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(a; mean, std²), summed over the action's dimensions."""
    error = (a - mean) / std
    return (-0.5 * error**2 - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


# ---------------------------------------------------------------------------------- Gaussians


def test_gaussian_likelihood():
    outputs = {"mean": torch.tensor([[0.5, -20.0]]), "scale": torch.tensor([[0.3, -0.7]])}
    head = GaussianHead(2, init_std=0.3, std_limits=(0.01, 7.5))
    action = torch.tensor([[0.1, -0.9]])
    mean = torch.tensor([[math.tanh(0.5), math.tanh(-9.0)]])  # clamped to its limits
    std = (
        0.3 / math.log(2) * torch.tensor([[math.log1p(math.exp(0.3)), math.log1p(math.exp(-0.7))]])
    )
    dist = head(outputs)
    assert (dist.batch_shape, dist.event_shape) == ((1,), (2,))
    torch.testing.assert_close(dist.log_prob(action), log_normal(action, mean, std))


@pytest.mark.parametrize(
    ("settings", "output", "std"),
    [
        ({"init_std": 0.1}, 0.0, 0.1),
        ({"init_std": 0.1}, -50.0, 0.007),
        ({"init_std": 0.1}, 500.0, 7.5),
        ({"std_activation": "exp"}, -1.0, math.exp(-1.0)),
        ({"std_activation": "exp", "std_limits": (0.5, 2.0)}, -1.0, 0.5),
        ({"std_activation": None}, 0.25, 0.25),
        ({"fixed_std": True, "init_std": 0.2}, 3.0, 0.2),
        ({"fixed_std": True, "init_std": 0.2, "std_limits": (0.5, 2.0)}, 3.0, 0.5),
    ],
)
def test_gaussian_standard_deviations(settings: dict[str, Any], output: float, std: float):
    outputs = {"mean": torch.zeros(1, 2), "scale": torch.full((1, 2), output)}
    head = GaussianHead(2, **settings)
    torch.testing.assert_close(head(outputs).stddev, torch.full((1, 2), std))
    torch.testing.assert_close(head(outputs, low_noise=True).stddev, torch.full((1, 2), 1e-4))


def test_gaussian_without_gradient_of_a_fixed_std():
    outputs = {"mean": torch.zeros(1, 2), "scale": torch.zeros(1, 2, requires_grad=True)}
    assert not GaussianHead(2, fixed_std=True)(outputs).stddev.requires_grad


def test_gaussian_acts_by_its_mean_in_evaluation_but_its_likelihood_stays():
    torch.manual_seed(0)
    net = GaussianActorNetwork(SHAPES, 2, (8,))
    obs, actions = observations(4), torch.rand(4, 2)
    learned = net.forward_train(obs).log_prob(actions)
    assert not torch.equal(net(obs), net(obs))
    net.eval()
    torch.testing.assert_close(net.forward_train(obs).log_prob(actions), learned)
    assert torch.equal(net(obs), net.forward_train(obs).mean)
    net.low_noise_eval = False
    assert not torch.equal(net(obs), net(obs))


def test_tanh_gaussian_acts_by_the_tanh_of_its_mean():
    torch.manual_seed(0)
    net = GaussianActorNetwork(SHAPES, 2, (8,), use_tanh=True).eval()
    obs = observations(4)
    dist = net.forward_train(obs)
    assert isinstance(dist, TanhWrappedDistribution)
    torch.testing.assert_close(net(obs), torch.tanh(dist.base_dist.mean))


def test_initial_weights_of_the_last_layers():
    net = GaussianActorNetwork(SHAPES, 2, (64,), init_last_fc_weight=1e-3)
    last = torch.cat([p.flatten() for p in net.nets["decoder"].parameters()])
    assert 0.9e-3 < last.abs().max() <= 1e-3


def test_unknown_activation():
    with pytest.raises(ConfigError, match="std_activation 'softplu' is unknown; did you mean"):
        GaussianActorNetwork(SHAPES, 2, (8,), std_activation="softplu")
    with pytest.raises(ConfigError, match="std_activation 'relu' is unknown"):
        GMMActorNetwork(SHAPES, 2, (8,), std_activation="relu")


# ----------------------------------------------------------------------------------- mixtures


@pytest.mark.parametrize(
    ("activation", "std_of"),
    [("softplus", lambda x: torch.log1p(torch.exp(x))), ("exp", torch.exp)],
)
def test_mixture_likelihood(activation: str, std_of: Callable[[Tensor], Tensor]):
    torch.manual_seed(0)
    outputs = {k: torch.randn(5, 4, 3, 2) for k in ("mean", "scale")}
    outputs["logits"] = torch.randn(5, 4, 3)
    action = torch.rand(5, 4, 2) * 2 - 1
    dist = GMMHead(2, num_modes=3, min_std=0.05, std_activation=activation)(outputs)

    std = std_of(outputs["scale"]) + 0.05
    of_mode = log_normal(action[..., None, :], torch.tanh(outputs["mean"]), std)
    weights = outputs["logits"].exp() / outputs["logits"].exp().sum(-1, keepdim=True)
    expected = (weights * of_mode.exp()).sum(-1).log()
    assert dist.batch_shape == (5, 4)
    torch.testing.assert_close(dist.log_prob(action), expected)


def test_mixture_acts_by_a_mode_in_evaluation_but_its_likelihood_stays():
    torch.manual_seed(0)
    net = GMMActorNetwork(SHAPES, 2, (8,), num_modes=3)
    obs, actions = observations(64), torch.rand(64, 2)
    learned = net.forward_train(obs)
    modes = learned.component_distribution.mean
    net.eval()
    torch.testing.assert_close(net.forward_train(obs).log_prob(actions), learned.log_prob(actions))
    distance = (net(obs)[:, None] - modes).abs().amax(-1)  # to each mode
    assert distance.amin(-1).max() < 1e-3
    assert len(distance.argmin(-1).unique()) == 3


# --------------------------------------------------------------------------------------- tanh


def gaussian(mean: float, std: float, *size: int) -> torch.distributions.Distribution:
    normal = torch.distributions.Normal(torch.full(size, mean), torch.full(size, std))
    return torch.distributions.Independent(normal, 1)


def test_tanh_density_integrates_to_one():
    dist = TanhWrappedDistribution(gaussian(0.3, 0.7, 1))
    a = torch.linspace(-1, 1, 20001, dtype=torch.float64)[1:-1, None]
    mass = dist.log_prob(a).exp().sum() * 1e-4
    assert mass == pytest.approx(1.0, abs=1e-3)


def test_tanh_density_is_finite_at_the_bounds_and_follows_from_the_value_before():
    dist = TanhWrappedDistribution(gaussian(0.3, 0.7, 2))
    for bound in (-1.0, 1.0):
        value = torch.full((1, 2), bound, requires_grad=True)
        log_prob = dist.log_prob(value)
        assert log_prob.isfinite().all()
        assert torch.autograd.grad(log_prob.sum(), value)[0].isfinite().all()
    value, z = dist.rsample((7,), return_pretanh_value=True)
    torch.testing.assert_close(value, torch.tanh(z))
    torch.testing.assert_close(dist.log_prob(value, z), dist.log_prob(value), rtol=1e-3, atol=1e-3)
    by_hand = log_normal(z, torch.tensor(0.3), torch.tensor(0.7))
    by_hand = by_hand - (1 - torch.tanh(z) ** 2 + 1e-6).log().sum(-1)
    torch.testing.assert_close(dist.log_prob(value, z), by_hand)


def test_values_of_a_distribution_over_atoms():
    dist = DiscreteValueDistribution(
        torch.tensor([-1.0, 0.0, 2.0]), probs=torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]])
    )
    assert dist.mean().tolist() == [0.0, 2.0]
    assert dist.variance().tolist() == [0.5 * 1 + 0.25 * 4, 0.0]
    samples = dist.sample((100,))
    assert samples.shape == (100, 2)
    assert set(samples[:, 0].tolist()) == {-1.0, 0.0, 2.0}
    assert set(samples[:, 1].tolist()) == {2.0}


# ------------------------------------------------------------------------------- perturbation


def test_perturbation_moves_actions_as_far_as_it_may():
    torch.manual_seed(0)
    net = PerturbationActorNetwork(SHAPES, 2, (8,), perturbation_scale=0.05)
    obs, acts = observations(16), torch.rand(16, 2) * 2 - 1
    moved = net(obs, acts)
    assert 0 < (moved - acts).abs().max() <= 0.05 + 1e-6
    raw = net.nets["decoder"](net.nets["mlp"](torch.cat([obs["object"], obs["eef"], acts], -1)))[
        "action"
    ]
    torch.testing.assert_close(moved, (acts + 0.05 * torch.tanh(raw)).clamp(-1, 1))
    net.perturbation_scale = 0.0
    assert torch.equal(net(obs, acts), acts)
    net.perturbation_scale = 100.0
    assert net(obs, acts).abs().max() <= 1.0


# ------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("rnn_type", ["LSTM", "GRU"])
@pytest.mark.parametrize("goal_shapes", [None, GOALS])
@pytest.mark.parametrize("layers", [(8, 8), ()])
def test_recurrent_policy_step_by_step_equals_the_whole_sequence(rnn_type, goal_shapes, layers):
    torch.manual_seed(0)
    net = RNNActorNetwork(SHAPES, 2, layers, **RNN, rnn_type=rnn_type, goal_shapes=goal_shapes)
    obs = observations(5, 4)
    goal = observations(5, shapes=GOALS) if goal_shapes else None
    whole, last = net(obs, goal, return_state=True)
    assert whole.shape == (5, 4, 2)

    state = None
    for t in range(4):
        action, state = net.forward_step({k: x[:, t] for k, x in obs.items()}, goal, state)
        torch.testing.assert_close(action, whole[:, t])
    torch.testing.assert_close(state, last)
    if goal is not None:
        assert not torch.allclose(net(obs, {k: x + 1 for k, x in goal.items()}), whole)


def test_zeros_are_the_state_before_the_first_step():
    torch.manual_seed(0)
    net = RNNActorNetwork(SHAPES, 2, (8,), **RNN).double()
    obs = {k: x.double() for k, x in observations(5, 4).items()}
    h, c = net.get_rnn_init_state(5, "cpu")
    assert h.shape == c.shape == (2, 5, 6)
    assert h.dtype == torch.float64
    assert torch.equal(net(obs, rnn_init_state=(h, c)), net(obs))


def test_recurrent_mixture():
    torch.manual_seed(0)
    net = RNNGMMActorNetwork(SHAPES, 2, (8,), **RNN, num_modes=3)
    obs, actions = observations(5, 4), torch.rand(5, 4, 2)
    dist = net.forward_train(obs)
    assert dist.batch_shape == (5, 4)
    learned = dist.log_prob(actions)
    net.eval()
    torch.testing.assert_close(net.forward_train(obs).log_prob(actions), learned)
    sample, state = net.forward_step({k: x[:, 0] for k, x in obs.items()})
    modes = dist.component_distribution.mean[:, 0]
    assert (sample[:, None] - modes).abs().amax(-1).amin(-1).max() < 1e-3
    assert len(state) == 2


def test_parameters_are_shared_under_robomimics_two_names():
    net = RNNActorNetwork(SHAPES, 2, (8,), **RNN)
    state = net.state_dict()
    for name in ("weight", "bias"):
        for one, two in (
            (f"nets.mlp._model.0.{name}", f"nets.rnn.per_step_net.0._model.0.{name}"),
            (f"nets.decoder.nets.action.{name}", f"nets.rnn.per_step_net.1.nets.action.{name}"),
        ):
            assert state[one].data_ptr() == state[two].data_ptr()
    without_mlp = RNNActorNetwork(SHAPES, 2, (), **RNN).state_dict()
    assert "nets.rnn.per_step_net.nets.action.weight" in without_mlp


def test_recurrent_layers_that_are_refused():
    def make(**kwargs: Any) -> RNN_Base:
        return RNN_Base(3, 6, 2, per_step_net=nn.Identity(), **kwargs)

    with pytest.raises(ConfigError, match=r"bidirectional: .* observations of the future"):
        make(rnn_kwargs={"bidirectional": True})
    with pytest.raises(ConfigError, match=r"rnn.kwargs.dropuot: .* did you mean 'dropout'"):
        make(rnn_kwargs={"bidirectional": False, "dropuot": 0.1})
    with pytest.raises(ConfigError, match="rnn_type 'RNN' is unknown"):
        make(rnn_type="RNN")
    assert make(rnn_kwargs={"bidirectional": False, "dropout": 0.1}).nets.dropout == 0.1
