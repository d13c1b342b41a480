"""IQL: the targets of each network, and the metrics."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raymimic.algo import IQL, algo_factory
from raymimic.algo.iql import MAX_ADVANTAGE_WEIGHT
from raymimic.config import config_factory
from raymimic.errors import ConfigError

torch.set_num_threads(1)

OBS, GOAL, ACTIONS, BATCH = 3, 2, 2, 6
STATISTICS = [
    f"{name}/{of}"
    for name in ("vf/q_pred", "vf/v_pred", "adv/adv", "adv/adv_weight")
    for of in ("max", "min", "mean", "std")
]


def make_algo(seed: int = 0, goal: bool = False, **settings: Any) -> IQL:
    """IQL in float64 with small networks; settings are keys below ``algo``, ``__`` for dots."""
    config = config_factory("iql")
    config.train.dtype = "float64"
    config.observation.modalities.obs.low_dim = ["flat"]
    config.observation.modalities.goal.low_dim = ["target"] if goal else []
    config.algo.actor.layer_dims = config.algo.critic.layer_dims = [8, 8]
    for key, value in settings.items():
        config.algo.set_path(key.replace("__", "."), value)
    torch.manual_seed(seed)
    algo = algo_factory("iql", config, {"flat": [OBS], "target": [GOAL]}, ACTIONS, "cpu")
    assert isinstance(algo, IQL)
    algo.set_train()
    return algo


def make_batch(goal: bool = False) -> dict[str, Any]:
    g = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return {
        "obs": {"flat": normal(BATCH, OBS)},
        "next_obs": {"flat": normal(BATCH, OBS)},
        "goal_obs": {"target": normal(BATCH, GOAL)} if goal else None,
        "actions": torch.tanh(normal(BATCH, ACTIONS)),
        "rewards": normal(BATCH, 1),
        "dones": torch.tensor([[0.0], [1.0]], dtype=torch.float64).repeat(BATCH // 2, 1),
    }


def step(algo: IQL, batch: dict[str, Any], **options: Any) -> dict[str, float]:
    log = algo.log_info(algo.train_on_batch(batch, epoch=1, **options))
    return {k: float(x) for k, x in log.items()}


def perturb(net: torch.nn.Module) -> None:
    """Moves parameters, so that a target network differs from its source."""
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))


@pytest.mark.parametrize("goal", [False, True])
@pytest.mark.parametrize("use_huber", [False, True])
def test_losses_are_the_papers(goal, use_huber):
    algo = make_algo(goal=goal, critic__use_huber=use_huber, discount=0.9, adv__beta=0.5)
    perturb(algo.nets["critic_target"])
    batch = make_batch(goal)
    log = step(algo, batch, validate=True)

    obs, actions, target = batch["obs"], batch["actions"], batch["goal_obs"]
    with torch.no_grad():
        q_target = torch.stack([c(obs, actions, target) for c in algo.nets["critic_target"]])
        q = q_target.amin(dim=0)
        v, next_v = algo.nets["vf"](obs, target), algo.nets["vf"](batch["next_obs"], target)
        backup = batch["rewards"] + 0.9 * (1 - batch["dones"]) * next_v
        loss = F.smooth_l1_loss if use_huber else F.mse_loss
        for i, critic in enumerate(algo.nets["critic"], 1):
            expected = loss(critic(obs, actions, target), backup)
            assert log[f"critic/critic{i}_loss"] == pytest.approx(expected.item())
        weight = torch.where(q > v, 0.9, 0.1).double()
        v_loss = (weight * (q - v) ** 2).mean()
        assert log["vf/v_loss"] == pytest.approx(v_loss.item(), rel=1e-6)
        log_prob = algo.nets["actor"].forward_train(obs, target).log_prob(actions)
        weights = torch.exp((q - v) / 0.5).squeeze(1)
        assert log["actor/loss"] == pytest.approx(-(weights * log_prob).mean().item())
        assert log["actor/log_prob"] == pytest.approx(log_prob.mean().item())
    parts = ("actor/loss", "vf/v_loss", "critic/critic1_loss", "critic/critic2_loss")
    assert log["Loss"] == pytest.approx(sum(log[part] for part in parts))


def test_v_of_one_expectile_is_above_v_of_another():
    batch, values = make_batch(), {}
    for quantile in (0.1, 0.5, 0.9):
        rate = {"optim_params__vf__learning_rate__initial": 1e-2}
        algo = make_algo(vf_quantile=quantile, target_tau=0.0, **rate)
        for name in ("critic", "critic_target"):
            perturb(algo.nets[name])
        for state in (batch["obs"], batch["next_obs"]):
            state["flat"] = torch.zeros(BATCH, OBS, dtype=torch.float64)  # one V for all actions
        for _ in range(400):
            step(algo, batch)
        with torch.no_grad():
            values[quantile] = float(algo.get_state_value(batch["obs"])[0])
            q = algo.ensemble_values("critic_target", batch["obs"], batch["actions"]).amin(dim=0)
            assert q.min() < values[quantile] < q.max()
            values[f"{quantile} q"] = q.mean().item()
    assert values[0.5] == pytest.approx(values["0.5 q"], abs=1e-3)
    assert values[0.1] < values[0.5] < values[0.9]


def test_advantages_are_clipped_and_so_are_weights():
    advantages = torch.tensor([[-1.0], [0.5], [2.0], [50.0]], dtype=torch.float64)
    exp = [math.exp(-1), math.exp(0.5), math.exp(2)]

    algo = make_algo()
    weights = algo.compute_advantage_weights(advantages).flatten().tolist()
    assert weights == pytest.approx([*exp, MAX_ADVANTAGE_WEIGHT])
    algo = make_algo(adv__clip_adv_value=1.0)
    weights = algo.compute_advantage_weights(advantages).flatten().tolist()
    assert weights == pytest.approx([*exp[:2], math.e, math.e])
    algo = make_algo(adv__use_final_clip=False)
    weights = algo.compute_advantage_weights(advantages).flatten().tolist()
    assert weights == pytest.approx([*exp, math.exp(50.0)])


def test_settings_are_read_when_they_are_used():
    algo, advantage = make_algo(), torch.ones(1, 1)
    algo.algo_config.adv.beta = 0.25
    assert algo.compute_advantage_weights(advantage).item() == pytest.approx(math.exp(4.0))
    before = step(algo, make_batch(), validate=True)["vf/v_loss"]
    algo.algo_config.vf_quantile = 0.1
    assert step(algo, make_batch(), validate=True)["vf/v_loss"] != pytest.approx(before)


def test_all_networks_learn_from_where_they_stood_before_the_step():
    algo, batch = make_algo(), make_batch()
    reference = copy.deepcopy(algo)
    step(algo, batch)
    # V's gradient does not see the critics' step, nor the actor's that of V.
    info = reference.train_on_batch(batch, epoch=1, validate=True)
    log = {k: float(x) for k, x in reference.log_info(info).items()}
    again = {k: float(x) for k, x in reference.log_info(reference.train_on_batch(batch, 1)).items()}
    assert {k: again[k] for k in log} == pytest.approx(log)
    for p, q in zip(reference.nets.parameters(), algo.nets.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_actors_loss_reaches_the_actor_alone():
    algo = make_algo()
    before = copy.deepcopy(algo.nets.state_dict())
    for _, optimizer in algo.named_optimizers():
        if optimizer is not algo.optimizers["actor"]:
            optimizer.param_groups[0]["lr"] = 0.0
    step(algo, make_batch())
    moved = {k.split(".")[0] for k, x in algo.nets.state_dict().items() if not x.equal(before[k])}
    assert moved == {"actor"}


def test_targets_move_a_share_of_the_way():
    algo = make_algo(target_tau=0.25)
    before = [p.clone() for p in algo.nets["critic_target"].parameters()]
    step(algo, make_batch())
    critic, target = (algo.nets[name].parameters() for name in ("critic", "critic_target"))
    for old, p, moved in zip(before, critic, target, strict=True):
        torch.testing.assert_close(moved, 0.75 * old + 0.25 * p)


def test_metrics_have_robomimics_names():
    log = step(make_algo(), make_batch())
    assert set(STATISTICS) < set(log)
    assert log["vf/q_pred/min"] <= log["vf/q_pred/mean"] <= log["vf/q_pred/max"]
    assert {"critic/critic1_pred", "critic/critic1_grad_norms", "vf/grad_norms"} < set(log)
    assert {"Loss", "Optimizer/vf0_lr", "Optimizer/critic10_lr", "Optimizer/actor0_lr"} < set(log)


def test_statistics_of_a_single_sample_are_finite():
    single = {k: x[:1] if isinstance(x, Tensor) else x for k, x in make_batch().items()}
    single |= {k: {"flat": single[k]["flat"][:1]} for k in ("obs", "next_obs")}
    log = step(make_algo(), single, validate=True)
    assert log["vf/q_pred/std"] == 0.0
    assert all(math.isfinite(x) for x in log.values())


@pytest.mark.parametrize("net", ["gaussian", "gmm"])
def test_both_policies_act_and_imitate(net):
    algo, batch = make_algo(actor__net__type=net), make_batch()
    first = step(algo, batch)["actor/log_prob"]
    for _ in range(100):
        last = step(algo, batch)["actor/log_prob"]
    assert last > first
    algo.set_eval()
    torch.manual_seed(0)
    action = algo.get_action(batch["obs"])
    assert action.shape == (BATCH, ACTIONS)
    centres = algo.nets["actor"].forward_train(batch["obs"])
    means = centres.component_distribution.mean if net == "gmm" else centres.mean.unsqueeze(1)
    nearest = (action.unsqueeze(1) - means).abs().amax(dim=2).amin(dim=1)
    assert nearest.max() < 1e-3


def test_an_unknown_policy_is_refused():
    with pytest.raises(ConfigError, match=r"'flow': it must be gaussian or gmm"):
        make_algo(actor__net__type="flow")


def test_returns_of_two_steps_and_terminal_rewards_for_ever():
    algo = make_algo(n_step=2, infinite_horizon=True, discount=0.9)
    g = torch.Generator().manual_seed(2)
    raw = {
        "obs": {"flat": torch.randn(2, 2, OBS, generator=g)},
        "next_obs": {"flat": torch.randn(2, 2, OBS, generator=g)},
        "actions": torch.zeros(2, 2, ACTIONS),
        "rewards": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "dones": torch.tensor([[0.0, 0.0], [0.0, 1.0]]),
    }
    batch = algo.process_batch_for_training(raw)
    log = step(algo, batch, validate=True)

    last = {"flat": raw["next_obs"]["flat"][:1, 1].double()}
    bootstrap = 0.9**2 * algo.get_state_value(last).item()
    targets = torch.tensor([[1.0 + 0.9 * 2.0 + bootstrap], [(3.0 + 0.9 * 4.0) / (1 - 0.9**2)]])
    q = algo.get_state_action_value(batch["obs"], batch["actions"])
    assert log["critic/critic1_loss"] == pytest.approx(F.mse_loss(q, targets.double()).item())
