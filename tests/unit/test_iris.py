"""IRIS: HBC that chooses the best of several subgoals; values, metrics, exact resume."""

import io

import numpy as np
import pytest
import torch
from hierarchies import A, B, T, iris_config, make, observations, processed, raw_batch, step

from raymimic.algo import algo_class
from raymimic.training.grad_sync import GradientSync

GMM = {
    "algo__value_planner__value__action_sampler__vae__enabled": False,
    "algo__value_planner__value__action_sampler__gmm__enabled": True,
}
VARIANTS = [{}, {"algo__mode": "cascade"}, {"algo__actor_use_random_subgoals": True}, GMM]
VARIANTS += [{"algo__value_planner__value__actor__enabled": True}]
VARIANTS += [{"algo__actor__rnn__enabled": True}]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_needs_rewards():
    config = iris_config()
    reads = algo_class("iris", config).reads(config)
    assert reads.required == {"next_obs", "rewards", "dones"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains_and_acts(variant):
    algo = make(iris_config(**variant))
    logs = [step(algo, 0) for _ in range(40)]
    assert all(np.isfinite(list(log.values())).all() for log in logs)
    assert logs[-1]["Actor/Loss"] < logs[0]["Actor/Loss"]
    assert logs[-1]["Planner/Planner/Loss"] < logs[0]["Planner/Planner/Loss"]
    algo.set_eval()
    assert np.isfinite(step(algo, 1, validate=True)["Loss"])
    algo.reset()
    assert algo.get_action(observations(B)).shape == (B, A)


def test_metrics_are_robomimics():
    log = step(make(iris_config()), 0)
    names = {"Planner/Planner/Optimizer/goal_network0_lr", "Planner/ValueNetwork/Critic/Q_Targets"}
    names |= {"Planner/ValueNetwork/Optimizer/critic00_lr", "Actor/Policy_Grad_Norms"}
    assert names <= log.keys()
    planner = log["Planner/Planner/Loss"] + log["Planner/ValueNetwork/Loss"]
    assert log["Planner/Loss"] == pytest.approx(planner)
    assert log["Loss"] == pytest.approx(log["Planner/Loss"] + log["Actor/Loss"])


def test_the_best_of_the_sampled_subgoals_is_pursued(monkeypatch):
    algo = make(iris_config())
    algo.set_eval()
    samples = observations(B, 5)
    values = torch.randn(B, 5)
    monkeypatch.setattr(algo.planner, "sample_subgoals", lambda obs, goal, n: samples)

    def value_of(obs_dict, goal_dict=None):
        assert torch.equal(obs_dict["far"], samples["far"].flatten(0, 1))
        return values.reshape(-1, 1)

    monkeypatch.setattr(algo.planner.value_net, "get_state_value", value_of)
    obs = observations(B)
    action = algo.get_action(obs)
    for row in range(B):
        best = int(values[row].argmax())
        assert torch.equal(algo.current_subgoal["near"][row], samples["near"][row, best])
    torch.testing.assert_close(action, algo.actor.get_action(obs, algo.current_subgoal))


def test_actor_is_trained_towards_the_state_that_was_reached():
    algo, raw = make(iris_config()), raw_batch()
    goal = algo._actor_goal(processed(algo, raw))
    assert goal.keys() == {"far", "near"}
    assert all(torch.equal(x, raw["next_obs"][k][:, 2]) for k, x in goal.items())


def test_random_subgoals_reach_the_actor_alone(monkeypatch):
    algo, raw = make(iris_config(algo__actor_use_random_subgoals=True)), raw_batch()
    monkeypatch.setattr(torch, "randint", lambda low, high, size, **_: torch.full(size, low))
    batch = processed(algo, raw)
    goal = algo._actor_goal(batch)
    assert torch.equal(goal["far"], raw["next_obs"]["far"][:, 0])
    planners = batch["planner"]["planner"]["target_subgoals"]
    assert torch.equal(planners["far"], raw["next_obs"]["far"][:, 2])


def test_cascade_trains_the_actor_towards_choices_of_the_planner(monkeypatch):
    algo = make(iris_config(algo__mode="cascade"))
    batch = processed(algo, raw_batch())
    chosen = observations(B)
    monkeypatch.setattr(algo.planner, "get_subgoal_predictions", lambda obs, goal: chosen)
    assert algo._actor_goal(batch) is chosen


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ["planner_only", "actor_only"])
def test_modes_train_one_part(mode):
    algo = make(iris_config(algo__mode=mode))
    name = mode.removesuffix("_only")
    log = step(algo, 0)
    algo.on_epoch_end(1)
    assert log["Loss"] == log[f"{name.title()}/Loss"]
    assert not any(key.startswith("Actor/") == (name == "planner") for key in log if "/" in key)


def test_values_are_the_value_networks():
    algo = make(iris_config())
    algo.set_eval()
    obs, actions = observations(B), torch.rand(B, A)
    value = algo.get_state_action_value(obs, actions)
    torch.testing.assert_close(value, algo.planner.value_net.get_state_action_value(obs, actions))
    torch.manual_seed(3)
    value = algo.get_state_value(obs)
    torch.manual_seed(3)
    torch.testing.assert_close(value, algo.planner.value_net.get_state_value(obs))
    assert algo.discount == pytest.approx(0.99)
    algo.discount = 0.5
    assert algo.planner.value_net.discount == 0.5


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_restored_hierarchy_continues_bit_by_bit(variant):
    algo = make(iris_config(**variant), seed=1)
    algo.discount = 0.5
    for seed in range(3):
        step(algo, seed)
    algo.on_epoch_end(1)
    saved = io.BytesIO()
    torch.save({"model": algo.serialize(), "state": algo.training_state()}, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=True)

    restored = make(iris_config(**variant), seed=2)
    restored.deserialize(loaded["model"], load_optimizers=True)
    restored.load_training_state(loaded["state"])
    for seed in range(3, 6):
        assert step(algo, seed) == step(restored, seed)
    torch.testing.assert_close(algo.serialize(), restored.serialize(), rtol=0, atol=0)
    assert set(algo.serialize()["planner"]) == {"planner", "value_net"}


def test_other_workers_reach_every_part():
    algo = make(iris_config())
    algo.grad_sync = sync = GradientSync(1)
    assert algo.planner.value_net.grad_sync is algo.planner.planner.grad_sync is sync
    assert "planner/value_net/critic0" in dict(algo.named_optimizers())
    algo.set_train()
    assert not algo.planner.value_net.nets["critic_target"].training
    assert algo.planner.value_net.nets["critic"].training


def test_n_step_returns_of_the_value():
    config = iris_config(algo__value_planner__value__n_step=T)
    algo, raw = make(config), raw_batch()
    batch = algo.process_batch_for_training(raw)["planner"]["value_net"]
    discounts = 0.99 ** torch.arange(T)
    torch.testing.assert_close(batch["rewards"][:, 0], (raw["rewards"] * discounts).sum(dim=1))
