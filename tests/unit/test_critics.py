"""Ensembles of critics: one by one or all at once, and how they learn."""

import copy
from typing import Any

import pytest
import torch
from layer_changes import CHANGES, Bend
from torch import nn

from raymimic.algo import algo_factory
from raymimic.algo.critics import CriticAlgo
from raymimic.config import config_factory
from raymimic.models import ensembles
from raymimic.models.ensembles import can_be_batched, forward_batched, rows_worth_batching
from raymimic.models.obs_nets import MIMO_MLP
from raymimic.models.value_nets import ActionValueEnsemble, ActionValueNetwork
from raymimic.observations.shapes import ObsShapes

torch.set_num_threads(1)


def make_critics(n: int, dims: tuple[int, ...] = (8, 6), **options: Any) -> nn.ModuleList:
    torch.manual_seed(n)
    args = {"obs_shapes": {"b": (3,), "a": (2, 2)}, "ac_dim": 2, "mlp_layer_dims": dims} | options
    return nn.ModuleList(ActionValueNetwork(**args) for _ in range(n)).double()


def make_inputs(batch: int = 5) -> tuple[dict[str, torch.Tensor], torch.Tensor, Any]:
    g = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=g, dtype=torch.float64)

    return {"a": rand(2, 2), "b": rand(3)}, rand(2), {"goal": rand(4)}


@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize("options", [{}, {"value_bounds": (-1.0, 3.0)}, {"goal_shapes": {}}])
@pytest.mark.parametrize("dims", [(7,), (8, 6, 5)])
def test_batched_pass_has_the_values_and_gradients_of_the_loop(n, options, dims, monkeypatch):
    if "goal_shapes" in options:
        options = {"goal_shapes": {"goal": (4,)}}
    critics = make_critics(n, dims, **options)
    obs, actions, goal = make_inputs()
    actions.requires_grad_(True)
    weights = torch.arange(1.0, 5 * n + 1, dtype=torch.float64).view(n, 5, 1)

    calls = []

    def spy(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return forward_batched(*args, **kwargs)

    monkeypatch.setattr("raymimic.models.value_nets.forward_batched", spy)
    results = []
    for limit in (0, 2**20):
        monkeypatch.setattr(ensembles, "_BATCHED_UP_TO", limit)
        critics.zero_grad()
        actions.grad = None
        values = ActionValueEnsemble(critics)(obs, actions, goal)
        assert values.shape == (n, 5, 1)
        (weights * values).sum().backward()
        results.append([values.detach(), actions.grad, *(p.grad for p in critics.parameters())])
    assert len(calls) == 1  # the second time only
    for loop, batched in zip(*results, strict=True):
        torch.testing.assert_close(batched, loop)


def test_batched_pass_keeps_the_shapes_of_outputs():
    torch.manual_seed(0)
    nets = [
        MIMO_MLP({"obs": ObsShapes({"x": (3,)})}, {"y": (2, 4), "z": (1,)}, (5,)) for _ in range(3)
    ]
    x = torch.randn(6, 3)
    outputs = forward_batched(nets, obs={"x": x})
    for i, net in enumerate(nets):
        for key, y in net(obs={"x": x}).items():
            torch.testing.assert_close(outputs[key][i], y)
    assert outputs["y"].shape == (3, 6, 2, 4)


def test_batching_is_for_small_products_of_networks_whose_encoders_learn_nothing():
    critics = make_critics(2, (64, 64))
    assert can_be_batched(critics)
    assert rows_worth_batching(critics) == 256
    assert not can_be_batched(make_critics(1, (64, 64)))
    critics[1].nets["encoder"].nets["obs"].obs_nets["b"] = nn.Linear(3, 3)
    assert not can_be_batched(critics)


def test_large_layers_can_be_batched_but_not_on_a_cpu():
    critics = make_critics(2, (1024, 1025))
    assert can_be_batched(critics)
    assert rows_worth_batching(critics) == 0


@pytest.mark.parametrize(("rows", "batched"), [(256, True), (257, False)])
def test_larger_batches_go_through_critics_one_by_one(rows, batched, monkeypatch):
    ensemble = ActionValueEnsemble(make_critics(2, (64, 64)))
    monkeypatch.setattr("raymimic.models.value_nets.forward_batched", lambda *_, **__: 1 / 0)
    obs, actions, _ = make_inputs(rows)
    if batched:
        with pytest.raises(ZeroDivisionError):
            ensemble(obs, actions)
    else:
        assert ensemble(obs, actions).shape == (2, rows, 1)


def by_hand(critic: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """One critic's value, by layers that torch calls."""
    x = critic.nets["mlp"]._model(x)
    return critic.nets["decoder"].nets["value"](x)


@pytest.mark.parametrize("which", ["all", "first", "last"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_an_ensemble_is_its_members_whatever_their_layers(change, which):
    def make() -> ActionValueEnsemble:
        critics = make_critics(3)
        for i in {"all": (0, 1, 2), "first": (0,), "last": (2,)}[which]:
            change(critics[i].nets["mlp"]._model)
        return ActionValueEnsemble(critics).double()

    ensemble, expected_from = make(), make()
    obs, actions, _ = make_inputs(6)
    values = ensemble(obs, actions)
    x = torch.cat([obs["b"], obs["a"].flatten(1), actions], dim=1)
    expected = torch.stack([by_hand(critic, x) for critic in expected_from])
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-12)
    assert (expected - expected[:1]).abs().amax() > 1e-3
    weights = torch.arange(18.0, dtype=torch.float64).view(3, 6, 1)
    (weights * values).sum().backward()
    (weights * expected).sum().backward()
    for own, other in zip(ensemble.parameters(), expected_from.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=0, atol=1e-12)
    for own, other in zip(ensemble.buffers(), expected_from.buffers(), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-12)


def test_a_member_that_changes_later_counts_as_it_is():
    ensemble = ActionValueEnsemble(make_critics(2))
    obs, actions, _ = make_inputs()
    ensemble(obs, actions)
    ensemble[0].nets["mlp"]._model[1] = Bend().double()
    ensemble[1].value_bounds = (-0.1, 0.1)
    for critic, value in zip(ensemble, ensemble(obs, actions), strict=True):
        torch.testing.assert_close(value, critic(obs, actions), rtol=0, atol=1e-12)


def test_members_of_different_sizes():
    ensemble = ActionValueEnsemble([make_critics(1, (8, 6))[0], make_critics(1, (5,))[0]])
    obs, actions, _ = make_inputs()
    for critic, value in zip(ensemble, ensemble(obs, actions), strict=True):
        assert torch.equal(value, critic(obs, actions))


def test_a_frozen_member_stays_and_the_others_learn():
    algo = make_algo()
    algo.nets["critic"][0].requires_grad_(False)
    before = copy.deepcopy(algo.nets["critic"].state_dict())
    info = algo.train_on_batch(make_batch(), epoch=1)
    assert float(info["critic/critic1_grad_norms"]) == 0.0
    assert float(info["critic/critic2_grad_norms"]) > 0.0
    for key, x in algo.nets["critic"].state_dict().items():
        assert torch.equal(x, before[key]) == key.startswith("0.")


def test_critics_of_a_users_own_are_called_one_by_one():
    class Twice(ActionValueNetwork):
        def forward(self, obs_dict: Any, acts: Any, goal_dict: Any = None) -> torch.Tensor:
            return 2 * super().forward(obs_dict, acts, goal_dict)

    torch.manual_seed(0)
    critics = ActionValueEnsemble(Twice({"b": (3,)}, 2, (4,)) for _ in range(2)).double()
    obs, actions, _ = make_inputs()
    values = critics(obs, actions)
    for critic, value in zip(critics, values, strict=True):
        torch.testing.assert_close(value, 2 * ActionValueNetwork.forward(critic, obs, actions))


# ------------------------------------------------------------------------------- CriticAlgo


def make_algo(**critic: Any) -> CriticAlgo:
    config = config_factory("td3_bc")
    config.algo.actor.layer_dims = config.algo.critic.layer_dims = (8, 8)
    for path, value in critic.items():
        config.algo.critic.set_path(path, value)
    config.observation.modalities.obs.low_dim = ["flat"]
    torch.manual_seed(0)
    algo = algo_factory("td3_bc", config, {"flat": [3]}, ac_dim=2, device="cpu")
    algo.set_train()
    assert isinstance(algo, CriticAlgo)
    return algo


def make_batch() -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    return {
        "obs": {"flat": torch.randn(6, 3, generator=g)},
        "actions": torch.rand(6, 2, generator=g),
        "goal_obs": None,
        "next_obs": {"flat": torch.randn(6, 3, generator=g)},
        "rewards": torch.full((6, 1), 7.0),
        "dones": torch.zeros(6, 1),
    }


def test_targets_start_equal_and_follow_by_tau():
    algo = make_algo(**{"ensemble.n": 3})
    assert len(algo.nets["critic"]) == 3
    for target, source in zip(
        algo.nets["critic_target"].parameters(), algo.nets["critic"].parameters(), strict=True
    ):
        assert torch.equal(target, source)
        source.data += 1.0
    before = [p.clone() for p in algo.nets["critic_target"].parameters()]
    with algo.global_config.values_unlocked():
        algo.algo_config.target_tau = 0.25
    algo._update_target("critic")
    for target, old in zip(algo.nets["critic_target"].parameters(), before, strict=True):
        torch.testing.assert_close(target, old + 0.25)


def test_every_critic_learns_with_its_own_clipped_gradient():
    batch = make_batch()
    free, clipped = make_algo(), make_algo(max_gradient_norm=0.01)
    infos = []
    for algo in (free, clipped):
        before = [p.clone() for p in algo.nets["critic"].parameters()]
        infos.append(algo.train_on_batch(batch, epoch=1))
        after = list(algo.nets["critic"].parameters())
        assert all(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
    names = ["critic1_loss", "critic2_loss", "critic1_grad_norms", "critic2_grad_norms"]
    assert {f"critic/{name}" for name in names} <= set(infos[0])
    for i in (1, 2):
        assert infos[0][f"critic/critic{i}_grad_norms"] > 1.0
        norm = infos[1][f"critic/critic{i}_grad_norms"].item()  # robomimic logs its square
        assert norm == pytest.approx(0.01**2, rel=1e-3)
        values = free.ensemble_values("critic", batch["obs"], batch["actions"])
        assert values.shape == (2, 6, 1)


def test_validation_reports_losses_and_learns_nothing():
    algo, batch = make_algo(), make_batch()
    before = [p.clone() for p in algo.nets.parameters()]
    with torch.no_grad():
        losses = algo.compute_critic_losses(batch, torch.zeros(6, 1))
    info = algo.train_on_batch(batch, epoch=1, validate=True)
    assert {"critic/critic1_loss", "critic/critic2_loss"} <= set(info)
    assert not any(name.endswith("grad_norms") for name in info)
    assert all(torch.equal(p, b) for p, b in zip(algo.nets.parameters(), before, strict=True))
    q = algo.get_state_action_value(batch["obs"], batch["actions"])
    assert losses[0].item() == pytest.approx(q.square().mean().item())
