"""CQL: duals, targets, proposals and the phases of training."""

import copy
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raymimic.algo import CQL, algo_factory
from raymimic.algo import cql as cql_module
from raymimic.config import config_factory
from raymimic.errors import ConfigError
from raymimic.tensors import map_tensor

torch.set_num_threads(1)

OBS, ACTIONS, BATCH = 3, 2, 6


def make_algo(seed: int = 0, **settings: Any) -> CQL:
    """CQL in float64 with small networks; settings are keys below ``algo``, ``__`` for dots."""
    config = config_factory("cql")
    config.train.dtype = "float64"
    config.observation.modalities.obs.low_dim = ["flat"]
    config.algo.actor.layer_dims = config.algo.critic.layer_dims = [8, 8]
    config.algo.actor.net.gaussian.init_last_fc_weight = None
    config.algo.critic.num_random_actions = 4
    for key, value in settings.items():
        config.algo.set_path(key.replace("__", "."), value)
    torch.manual_seed(seed)
    algo = algo_factory("cql", config, {"flat": [OBS]}, ACTIONS, "cpu")
    assert isinstance(algo, CQL)
    algo.set_train()
    return algo


def make_batch(seed: int = 1) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return {
        "obs": {"flat": normal(BATCH, OBS)},
        "next_obs": {"flat": normal(BATCH, OBS)},
        "goal_obs": None,
        "actions": torch.tanh(normal(BATCH, ACTIONS)),
        "rewards": normal(BATCH, 1),
        "dones": torch.tensor([[0.0], [1.0]], dtype=torch.float64).repeat(BATCH // 2, 1),
    }


def step(algo: CQL, batch: dict[str, Any], seed: int = 2, **options: Any) -> dict[str, float]:
    torch.manual_seed(seed)
    log = algo.log_info(algo.train_on_batch(batch, epoch=1, **options))
    return {k: float(x) for k, x in log.items()}


class ConstantQ(nn.Module):
    """Q(s, a) = scale * the action's first entry + offset."""

    def __init__(self, scale: float, offset: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))
        self.offset = offset

    def forward(self, obs: Any, acts: Tensor, goal: Any = None) -> Tensor:
        return self.scale * acts[:, :1] + self.offset


def replace_critics(algo: CQL, name: str, *critics: nn.Module) -> None:
    """Makes ``ensemble_values`` of one name those of other networks."""
    inner = algo.ensemble_values

    def values(asked: str, obs: Any, acts: Tensor, goal: Any = None) -> Tensor:
        if asked != name:
            return inner(asked, obs, acts, goal)
        return torch.stack([critic(obs, acts, goal) for critic in critics])

    algo.ensemble_values = values  # type: ignore[method-assign]


# --------------------------------------------------------------------------------- targets


def next_policy_of(algo: CQL, batch: dict[str, Any]) -> Any:
    return algo.nets["actor"].forward_train(batch["next_obs"])


def test_td_target_is_the_least_target_critic_after_the_discounted_reward():
    algo, batch = make_algo(discount=0.5), make_batch()
    replace_critics(algo, "critic_target", ConstantQ(0.0, 4.0), ConstantQ(0.0, 6.0))
    target = algo.compute_td_target(batch, next_policy_of(algo, batch))
    torch.testing.assert_close(target, batch["rewards"] + 0.5 * (1 - batch["dones"]) * 4.0)


def test_the_best_of_several_next_actions_counts_for_each_critic():
    algo, batch = make_algo(critic__num_action_samples=64, discount=1.0), make_batch()
    replace_critics(algo, "critic_target", ConstantQ(1.0), ConstantQ(1.0, 5.0))
    torch.manual_seed(0)
    target = algo.compute_td_target(batch, next_policy_of(algo, batch))
    torch.manual_seed(0)
    samples = next_policy_of(algo, batch).rsample((64,))
    best = samples[..., 0].amax(dim=0).unsqueeze(1)
    torch.testing.assert_close(target, batch["rewards"] + (1 - batch["dones"]) * best)


@pytest.mark.parametrize("use_tanh", [True, False])
def test_a_stochastic_backup_adds_the_entropy_of_each_row(use_tanh):
    settings = {"actor__net__common__use_tanh": use_tanh}
    algo, batch = make_algo(critic__deterministic_backup=False, **settings), make_batch()
    algo.nets["log_entropy_weight"].param.data.fill_(math.log(0.5))
    replace_critics(algo, "critic_target", ConstantQ(0.0, 1.0))
    torch.manual_seed(0)
    target = algo.compute_td_target(batch, next_policy_of(algo, batch))

    torch.manual_seed(0)
    policy = next_policy_of(algo, batch)
    action = policy.rsample((1,))
    value = 1.0 - 0.5 * policy.log_prob(action).view(BATCH, 1)
    expected = batch["rewards"] + 0.99 * (1 - batch["dones"]) * value
    assert target.shape == (BATCH, 1)
    torch.testing.assert_close(target, expected, rtol=1e-3, atol=1e-3)


# ----------------------------------------------------------------------------- the penalty


def test_proposals_carry_the_density_that_they_were_drawn_from():
    algo, batch = make_algo(), make_batch()
    policy = algo.nets["actor"].forward_train(batch["obs"])
    next_policy = next_policy_of(algo, batch)
    actions, log_densities = algo._sample_proposals(policy, next_policy)
    assert actions.shape == (BATCH, 12, ACTIONS)
    assert log_densities.shape == (BATCH, 12)
    assert actions.abs().max() <= 1.0

    uniform, now, after = log_densities.split(4, dim=1)
    assert torch.equal(uniform, torch.full_like(uniform, ACTIONS * math.log(0.5)))
    for part, dist, drawn in ((now, policy, actions[:, 4:8]), (after, next_policy, actions[:, 8:])):
        expected = dist.log_prob(drawn.transpose(0, 1)).transpose(0, 1)
        torch.testing.assert_close(part, expected, rtol=1e-3, atol=1e-3)


def test_each_row_keeps_its_own_actions():
    algo, batch = make_algo(), make_batch()
    actions = torch.tanh(torch.randn(BATCH, 5, ACTIONS, dtype=torch.float64))
    values = algo._values_of_many("critic", batch["obs"], actions, None)
    for m in range(5):
        alone = algo.ensemble_values("critic", batch["obs"], actions[:, m])
        torch.testing.assert_close(values[:, :, m], alone.squeeze(-1))


def test_critics_lose_by_td_error_and_weighted_gap():
    settings = {"critic__target_q_gap": None, "critic__cql_weight": 3.0}
    algo = make_algo(**settings, critic__min_q_weight=2.0)
    batch, recorded = make_batch(), []
    inner = cql_module.conservative_gap

    def record(*args: Tensor) -> Tensor:
        recorded.append((args[2], inner(*args)))
        return recorded[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cql_module, "conservative_gap", record)
        patch.setattr(algo, "compute_td_target", lambda *_: torch.ones(BATCH, 1))
        log = step(algo, batch, validate=True)
    for i, (q, gap) in enumerate(recorded, 1):
        expected = (q - 1.0).square().mean() + 3.0 * 2.0 * gap
        assert log[f"Critic/Critic{i}_Loss"] == pytest.approx(expected.item())
    assert len(recorded) == 2
    assert "Critic/CQL_Weight" not in log


def test_training_lowers_values_of_sampled_actions_below_those_of_the_data():
    rate = {"optim_params__critic__learning_rate__initial": 1e-2}
    algo = make_algo(critic__target_q_gap=None, critic__cql_weight=5.0, **rate)
    batch = make_batch()
    actions = torch.rand(BATCH, 20, ACTIONS, dtype=torch.float64) * 2 - 1

    def gap() -> float:
        with torch.no_grad():
            data = algo.ensemble_values("critic", batch["obs"], batch["actions"]).mean()
            return float(algo._values_of_many("critic", batch["obs"], actions, None).mean() - data)

    before = gap()
    for i in range(60):
        step(algo, batch, seed=i)
    assert gap() < before - 0.5


# -------------------------------------------------------------------------- dual variables


@pytest.mark.parametrize(("target", "sign"), [(-50.0, -1), (50.0, 1)])
def test_the_entropys_weight_falls_above_the_target_and_rises_below(target, sign):
    algo = make_algo(actor__target_entropy=target)
    assert step(algo, make_batch())["Entropy_Weight"] == 1.0
    moved = algo.nets["log_entropy_weight"].param.item()
    assert moved == pytest.approx(sign * 3e-4, rel=1e-4)  # one step of Adam at the actor's rate


@pytest.mark.parametrize(("target", "sign"), [(1000.0, -1), (0.0, 1)])
def test_the_penaltys_weight_falls_below_the_target_gap_and_rises_above(target, sign):
    algo = make_algo(critic__target_q_gap=target)
    assert step(algo, make_batch())["Critic/CQL_Weight"] == 1.0
    assert algo.nets["log_cql_weight"].param.item() == pytest.approx(sign * 1e-3, rel=1e-4)


def test_a_steps_metrics_are_those_of_the_weights_before_it():
    algo, batch = make_algo(), make_batch()
    log = step(algo, batch)
    # d/d log w of -w * mean excess, at w = 1, is the dual loss itself.
    assert log["Critic/CQL_Grad_Norms"] == pytest.approx(log["Critic/CQL_Weight_Loss"] ** 2)
    assert log["Entropy_Weight_Loss"] == 0.0  # log alpha is 0
    assert step(algo, batch)["Entropy_Weight_Loss"] != 0.0
    total = log["Actor/Loss"] + log["Critic/Critic1_Loss"] + log["Critic/Critic2_Loss"]
    assert log["Loss"] == pytest.approx(total)


@pytest.mark.parametrize("gap", [None, -1.0])
def test_fixed_weights_are_no_parameters(gap):
    algo = make_algo(actor__target_entropy=None, critic__target_q_gap=gap)
    assert set(algo.nets) == {"actor", "critic", "critic_target"}
    assert set(algo.optimizers) == {"actor", "critic"}
    log = step(algo, make_batch())
    assert (log["Entropy_Weight"], log["Entropy_Weight_Loss"]) == (1.0, 0.0)


def test_the_default_target_entropy_is_minus_the_number_of_actions():
    assert make_algo().target_entropy == -ACTIONS
    assert make_algo(actor__target_entropy=-0.5).target_entropy == -0.5


def test_dual_variables_and_their_optimizers_are_in_the_checkpoint():
    algo, batch = make_algo(), make_batch()
    step(algo, batch)
    saved = copy.deepcopy(algo.serialize())
    assert {"log_entropy_weight.param", "log_cql_weight.param"} < set(saved["nets"])
    assert set(saved["optimizers"]) == {"actor", "critic", "entropy", "cql"}
    assert set(saved["lr_schedulers"]) == {"actor", "critic"}

    resumed = make_algo(seed=5)
    resumed.deserialize(saved, load_optimizers=True)
    resumed.load_training_state(algo.training_state())
    assert step(resumed, batch, seed=7) == step(algo, batch, seed=7)
    for p, q in zip(resumed.nets.parameters(), algo.nets.parameters(), strict=True):
        assert torch.equal(p, q)


class Pair:
    """Two workers, in two threads, each with half of every batch."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=120.0)
        self.gradients: dict[int, list[Tensor]] = {}

    def average_gradients(self, params: Any) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        self.gradients[threading.get_ident()] = [g.clone() for g in grads]
        self.barrier.wait()
        for g, *halves in zip(grads, *self.gradients.values(), strict=True):
            g.copy_(sum(halves) / 2)
        self.barrier.wait()

    def mean(self, x: Tensor) -> Tensor:
        raise AssertionError("no statistic of the batch enters a loss")


def half(batch: Any, which: int) -> Any:
    return map_tensor(batch, lambda x: x[which * BATCH // 2 : (which + 1) * BATCH // 2])


def test_two_workers_take_the_step_of_one(monkeypatch):
    alone = make_algo(critic__deterministic_backup=False)
    for draw in ("normal_", "uniform_"):  # without noise the results must be equal
        monkeypatch.setattr(torch.Tensor, draw, lambda x, *_: x.zero_())
    workers = [copy.deepcopy(alone), copy.deepcopy(alone)]
    pair, batches = Pair(), [make_batch(seed) for seed in range(3)]

    def work(rank: int) -> None:
        workers[rank].grad_sync = pair
        for batch in batches:
            workers[rank].train_on_batch(half(batch, rank), epoch=1)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    for batch in batches:
        alone.train_on_batch(batch, epoch=1)
    names = [name for name, _ in alone.nets.named_parameters()]
    assert {"log_entropy_weight.param", "log_cql_weight.param"} < set(names)
    for worker in workers:
        for name, p in worker.nets.named_parameters():
            torch.testing.assert_close(p, alone.nets.get_parameter(name), rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------- the actor


def test_the_warm_start_imitates_and_ends():
    algo, batch = make_algo(actor__bc_start_steps=2, actor__target_entropy=None), make_batch()

    def losses() -> tuple[float, float]:
        """The losses of imitation and of improvement for the next step's draws."""
        torch.manual_seed(2)
        with torch.no_grad():
            policy = algo.nets["actor"].forward_train(batch["obs"])
            action, z = policy.rsample(return_pretanh_value=True)
            entropy = policy.log_prob(action, z).mean()
            q = algo.ensemble_values("critic", batch["obs"], action).amin(dim=0)
            imitation = entropy - policy.log_prob(batch["actions"]).mean()
            return float(imitation), float(entropy - q.mean())

    for i in range(4):
        expected = losses()[0 if i < 2 else 1]
        assert step(algo, batch, validate=True)["Actor/Loss"] == pytest.approx(expected)
        assert step(algo, batch)["Actor/Loss"] == pytest.approx(expected)
    assert algo.training_state()["actor_update_counter"] == 4


def test_the_actors_step_leaves_critics_without_gradients():
    algo = make_algo()
    actor, _ = algo.updates()
    losses = actor.losses(make_batch(), 1).of
    assert set(losses) == {"actor", "entropy"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in algo.nets["actor"].parameters())
    assert all(p.grad is None and p.requires_grad for p in algo.nets["critic"].parameters())


def test_targets_move_a_share_of_the_way():
    algo = make_algo(target_tau=0.25)
    before = [p.clone() for p in algo.nets["critic_target"].parameters()]
    step(algo, make_batch())
    critic, target = (algo.nets[name].parameters() for name in ("critic", "critic_target"))
    for old, p, moved in zip(before, critic, target, strict=True):
        torch.testing.assert_close(moved, 0.75 * old + 0.25 * p)


def test_validation_learns_nothing():
    algo = make_algo()
    before = copy.deepcopy(algo.nets.state_dict())
    step(algo, make_batch(), validate=True)
    assert all(torch.equal(x, before[k]) for k, x in algo.nets.state_dict().items())
    assert algo.actor_update_counter == 0


@pytest.mark.parametrize("use_tanh", [True, False])
def test_acts_by_the_policys_mean(use_tanh):
    algo, batch = make_algo(actor__net__common__use_tanh=use_tanh), make_batch()
    algo.set_eval()
    action = algo.get_action(batch["obs"])
    assert torch.equal(action, algo.get_action(batch["obs"]))
    base = algo.nets["actor"].forward_train(batch["obs"])
    centre = torch.tanh(base.base_dist.mean) if use_tanh else base.mean
    torch.testing.assert_close(action, centre)
    q = algo.get_state_action_value(batch["obs"], action)
    assert torch.equal(algo.get_state_value(batch["obs"]), q)


def test_an_unknown_policy_is_refused():
    with pytest.raises(ConfigError, match=r"'algo.actor.net.type' is 'gmm': it must be gaussian"):
        make_algo(actor__net__type="gmm")
