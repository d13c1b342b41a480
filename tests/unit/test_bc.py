"""Behavioural cloning's variants: losses in numbers, and the memory of their episodes."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raymimic.algo import Algo, RolloutPolicy, algo_class, algo_factory
from raymimic.algo.bc import (
    BC,
    BC_GMM,
    BC_RNN,
    BC_RNN_GMM,
    BC_VAE,
    BC_Gaussian,
    BC_Transformer,
    BC_Transformer_GMM,
)
from raymimic.config import BaseConfig, config_factory
from raymimic.errors import ConfigError

torch.set_num_threads(1)
ACTION_DIM, HORIZON = 4, 5


def make_config(*variants: str, goals: bool = False) -> BaseConfig:
    config = config_factory("bc")
    config.observation.modalities.obs.low_dim = ["a", "b"]
    if goals:
        config.observation.modalities.goal.low_dim = ["a"]
    algo = config.algo
    algo.actor_layer_dims = (8, 8)
    algo.gmm.num_modes, algo.gmm.min_std = 3, 0.05
    for net in ("encoder", "decoder", "prior"):
        algo.vae[f"{net}_layer_dims"] = (8, 8)
    algo.rnn.horizon, algo.rnn.hidden_dim = HORIZON, 6
    algo.transformer.update(
        {"context_length": HORIZON, "embed_dim": 8, "num_layers": 1, "num_heads": 2}
    )
    for dropout in ("emb_dropout", "attn_dropout", "block_output_dropout"):
        algo.transformer[dropout] = 0.0
    for variant in variants:
        algo[variant].enabled = True
    if "transformer" in variants:
        config.train.frame_stack = HORIZON
    return config


def make(config: BaseConfig) -> Any:
    torch.manual_seed(0)
    algo = algo_factory("bc", config, {"a": [3], "b": [2]}, ACTION_DIM, "cpu")
    algo.set_train()
    return algo


def observations(*leading: int) -> dict[str, Tensor]:
    return {"a": torch.randn(*leading, 3), "b": torch.randn(*leading, 2)}


def raw_batch(size: int = 3, length: int = HORIZON, goals: bool = False) -> dict[str, Any]:
    batch: dict[str, Any] = {"obs": observations(size, length)}
    batch["actions"] = torch.rand(size, length, ACTION_DIM) * 2 - 1
    if goals:
        batch["goal_obs"] = {"a": torch.randn(size, 3)}
    return batch


def prepared(algo: Algo, batch: dict[str, Any]) -> dict[str, Any]:
    return algo.postprocess_batch_for_training(algo.process_batch_for_training(batch), None)


VARIANTS = {
    (): BC,
    ("gaussian",): BC_Gaussian,
    ("gmm",): BC_GMM,
    ("vae",): BC_VAE,
    ("rnn",): BC_RNN,
    ("rnn", "gmm"): BC_RNN_GMM,
    ("transformer",): BC_Transformer,
    ("transformer", "gmm"): BC_Transformer_GMM,
}


@pytest.mark.parametrize("goals", [False, True])
@pytest.mark.parametrize("variants", VARIANTS)
def test_variants_learn_and_validation_does_not(variants, goals):
    algo = make(make_config(*variants, goals=goals))
    assert type(algo) is VARIANTS[variants]
    algo.optimizers["policy"].param_groups[0]["lr"] = 1e-2
    batch = prepared(algo, raw_batch(goals=goals))
    before = {k: x.clone() for k, x in algo.nets.state_dict().items()}
    algo.set_eval()
    algo.train_on_batch(batch, 1, validate=True)
    assert all(torch.equal(x, before[k]) for k, x in algo.nets.state_dict().items())

    algo.set_train()
    losses = [algo.log_info(algo.train_on_batch(batch, 1))["Loss"] for _ in range(40)]
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize("actions", ["gaussian", "vae"])
@pytest.mark.parametrize("memory", ["rnn", "transformer"])
def test_policies_that_there_are_not(actions, memory):
    with pytest.raises(ConfigError, match=f"algo.{actions}.enabled and algo.{memory}.enabled"):
        algo_class("bc", make_config(actions, memory))


# ------------------------------------------------------------------------------------- losses


def test_losses_of_a_deterministic_policy():
    config = make_config()
    algo = make(config)
    batch = prepared(algo, raw_batch(length=1))
    with torch.no_grad():
        actions = algo.nets["policy"](batch["obs"])
    error = actions - batch["actions"]
    l2 = (error**2).mean()
    l1 = torch.where(error.abs() < 1, 0.5 * error**2, error.abs() - 0.5).mean()
    u, v = actions[:, :3], batch["actions"][:, :3]
    cosine = 1 - ((u * v).sum(-1) / (u.norm(dim=-1) * v.norm(dim=-1))).mean()

    config.algo.loss.update({"l2_weight": 0.5, "l1_weight": 2.0, "cos_weight": 3.0})
    losses = algo.compute_losses(batch)
    torch.testing.assert_close(losses["loss"], 0.5 * l2 + 2.0 * l1 + 3.0 * cosine)
    log = algo.log_info(algo.train_on_batch(batch, 1))
    names = {"Loss", "L2_Loss", "L1_Loss", "Cosine_Loss", "Policy_Grad_Norms"}
    assert set(log) == names | {"Optimizer/policy0_lr"}


@pytest.mark.parametrize("fixed_std", [False, True])
def test_likelihood_of_a_gaussian_policy_in_training_and_validation(fixed_std):
    config = make_config("gaussian")
    config.algo.gaussian.update({"fixed_std": fixed_std, "init_std": 0.2, "min_std": 0.15})
    algo = make(config)
    batch = prepared(algo, raw_batch(length=1))
    policy = algo.nets["policy"]
    with torch.no_grad():
        features = policy.nets["mlp"](policy.nets["encoder"](obs=batch["obs"]))
        outputs = policy.nets["decoder"](features)
    mean = torch.tanh(outputs["mean"].clamp(-9, 9))
    std = torch.full_like(mean, 0.2)
    if not fixed_std:
        std = (outputs["scale"].exp().log1p() * 0.2 / math.log(2)).clamp(0.15, 7.5)
    log_prob = -0.5 * ((batch["actions"] - mean) / std) ** 2 - std.log()
    expected = (log_prob - 0.5 * math.log(2 * math.pi)).sum(-1).mean()

    for mode in (algo.set_train, algo.set_eval):
        mode()
        info = algo.log_info(algo.train_on_batch(batch, 1, validate=True))
        torch.testing.assert_close(info["Log_Likelihood"], expected)
        torch.testing.assert_close(info["Loss"], -expected)


def test_loss_and_temperature_of_a_vae():
    config = make_config("vae")
    config.algo.vae.prior.update({"learn": True, "use_categorical": True})
    config.algo.vae.prior.update({"categorical_init_temp": 1.0, "categorical_min_temp": 0.3})
    config.algo.vae.prior.categorical_temp_anneal_step = 0.1
    algo = make(config)
    batch = prepared(algo, raw_batch(length=1))
    for epoch, temperature in ((1, 0.9), (5, 0.5), (50, 0.3)):
        log = algo.log_info(algo.train_on_batch(batch, epoch, validate=True))
        assert log["Gumbel_Temperature"] == pytest.approx(temperature)
    for weight in (0.0, 2.5):
        config.algo.vae.kl_weight = weight
        log = algo.log_info(algo.train_on_batch(batch, 1, validate=True))
        expected = log["Reconstruction_Loss"] + weight * log["KL_Loss"]
        torch.testing.assert_close(log["Loss"], expected)


# ------------------------------------------------------------------------------------- memory


def act(algo: Any, obs: dict[str, Tensor], t: int) -> Tensor:
    with torch.no_grad():
        action: Tensor = algo.get_action({k: x[:, t] for k, x in obs.items()})
    return action


@pytest.mark.parametrize("rnn_type", ["LSTM", "GRU"])
def test_recurrent_policy_acts_as_it_was_trained_and_forgets_after_the_horizon(rnn_type):
    config = make_config("rnn")
    config.algo.rnn.rnn_type = rnn_type
    algo = make(config)
    algo.set_eval()
    obs = observations(3, 2 * HORIZON)
    actions = torch.stack([act(algo, obs, t) for t in range(2 * HORIZON)], dim=1)
    for start in (0, HORIZON):
        part = {k: x[:, start : start + HORIZON] for k, x in obs.items()}
        with torch.no_grad():
            expected = algo.nets["policy"](part)
        torch.testing.assert_close(actions[:, start : start + HORIZON], expected)


@pytest.mark.parametrize("open_loop", [False, True])
@pytest.mark.parametrize("rnn_type", ["LSTM", "GRU"])
def test_each_episode_of_a_batch_is_as_if_alone(rnn_type, open_loop):
    """Episodes begin in rows at steps of their own; each equals one that is played alone."""
    config = make_config("rnn")
    config.algo.rnn.update({"rnn_type": rnn_type, "open_loop": open_loop})
    algo, alone = make(config), make(config)
    algo.set_eval()
    alone.set_eval()
    steps, rows = 3 * HORIZON, 4
    obs = observations(rows, steps)
    starts = {3: [1], 4: [0, 2], 7: [1, 3], 11: [2]}

    algo.reset()
    batched = []
    for t in range(steps):
        if t in starts:
            algo.reset(torch.tensor([row in starts[t] for row in range(rows)]))
        batched.append(act(algo, obs, t))

    for row in range(rows):
        alone.reset()
        for t in range(steps):
            if row in starts.get(t, []):
                alone.reset()
            single = act(alone, {k: x[row : row + 1] for k, x in obs.items()}, t)
            torch.testing.assert_close(batched[t][row : row + 1], single)


def test_open_loop_policy_sees_the_first_observation_of_each_horizon():
    config = make_config("rnn")
    config.algo.rnn.open_loop = True
    algo = make(config)
    raw = raw_batch()
    batch = prepared(algo, raw)
    for key, x in batch["obs"].items():
        assert x.shape == raw["obs"][key].shape
        assert all(torch.equal(x[:, t], raw["obs"][key][:, 0]) for t in range(HORIZON))

    algo.set_eval()
    obs = observations(3, 2 * HORIZON)
    actions = [act(algo, obs, t) for t in range(2 * HORIZON)]
    noisy = {k: x + torch.randn_like(x) for k, x in obs.items()}
    for t in (0, HORIZON):
        for key in obs:
            noisy[key][:, t] = obs[key][:, t]
    algo.reset()
    assert all(torch.equal(act(algo, noisy, t), actions[t]) for t in range(2 * HORIZON))
    assert not torch.equal(actions[0], actions[1])


def test_open_loop_policy_keeps_its_observation_though_the_buffer_is_reused():
    config = make_config("rnn")
    config.algo.rnn.open_loop = True
    algo = make(config)
    algo.set_eval()
    obs = observations(2)
    with torch.no_grad():
        algo.get_action(obs)
        kept = {k: x.clone() for k, x in obs.items()}
        second = algo.get_action(obs)
        algo.reset()
        algo.get_action(obs)
        for x in obs.values():
            x.zero_()
        torch.testing.assert_close(algo.get_action(kept), second)


def test_recurrent_policy_of_another_batch_of_episodes():
    algo = make(make_config("rnn"))
    algo.set_eval()
    act(algo, observations(3, 1), 0)
    with pytest.raises(RuntimeError, match="2 observations for 3 episodes: call reset"):
        act(algo, observations(2, 1), 0)
    algo.reset()
    assert act(algo, observations(2, 1), 0).shape == (2, ACTION_DIM)


def test_memory_is_no_part_of_a_checkpoint():
    algo = make(make_config("rnn"))
    before = set(algo.training_state())
    algo.set_eval()
    act(algo, observations(3, 1), 0)
    assert set(algo.training_state()) == before


def test_recurrent_mixture_learns_every_step():
    algo = make(make_config("rnn", "gmm"))
    batch = prepared(algo, raw_batch())
    dist = algo.nets["policy"].forward_train(batch["obs"])
    log_prob = torch.stack([dist.log_prob(batch["actions"])[:, t] for t in range(HORIZON)])
    torch.testing.assert_close(algo.compute_losses(batch)["loss"], -log_prob.mean())


def test_bidirectional_is_refused_with_a_reason():
    config = make_config("rnn")
    config.algo.rnn.kwargs.bidirectional = True
    with pytest.raises(ConfigError, match="observations of the future"):
        make(config)


# -------------------------------------------------------------------------------- transformers


@pytest.mark.parametrize(
    ("supervise", "future", "length", "steps"),
    [
        (False, False, HORIZON, HORIZON - 1),
        (True, False, HORIZON, slice(0, HORIZON)),
        (True, True, 2 * HORIZON - 1, slice(HORIZON - 1, 2 * HORIZON - 1)),
    ],
)
@pytest.mark.parametrize("mixture", [(), ("gmm",)])
def test_steps_that_a_transformer_predicts(supervise, future, length, steps, mixture):
    config = make_config("transformer", *mixture)
    config.algo.transformer.update({"supervise_all_steps": supervise, "pred_future_acs": future})
    algo = make(config)
    raw = raw_batch(length=length)
    batch = prepared(algo, raw)
    assert torch.equal(batch["actions"], raw["actions"][:, steps])
    assert all(torch.equal(x, raw["obs"][k][:, :HORIZON]) for k, x in batch["obs"].items())

    predicted = slice(None) if supervise else -1
    loss = algo.compute_losses(batch)["loss"]
    if mixture:
        dist = algo.nets["policy"].forward_train(batch["obs"])
        targets = batch["actions"] if supervise else batch["actions"][:, None]
        expected = -dist.log_prob(targets)[:, predicted].mean()
    else:
        actions = algo.nets["policy"](batch["obs"])[:, predicted]
        expected = ((actions - batch["actions"]) ** 2).mean()
        algo.set_eval()
        with torch.no_grad():
            acts = algo.get_action(batch["obs"])
        torch.testing.assert_close(acts, algo.nets["policy"](batch["obs"])[:, 0 if future else -1])
    torch.testing.assert_close(loss, expected)

    with pytest.raises(
        ConfigError, match=f"sequences of {length} steps but there are {length - 1}"
    ):
        algo.process_batch_for_training(raw_batch(length=length - 1))


def test_rollouts_stack_observations_for_each_episode():
    """The last observations of each row, the first of an episode repeated."""
    algo = make(make_config("transformer"))
    policy = RolloutPolicy(algo)
    steps, rows = 2 * HORIZON, 3
    obs = {k: x.numpy() for k, x in observations(rows, steps).items()}
    starts = {2: [1], HORIZON: [0, 2]}

    policy.start_episode()
    begun = [0] * rows
    for t in range(steps):
        for row in starts.get(t, []):
            policy.start_episode(np.arange(rows) == row)
            begun[row] = t
        single = {k: x[:, t] for k, x in obs.items()}
        seen = [[max(t + i, begun[row]) for i in range(1 - HORIZON, 1)] for row in range(rows)]
        stacks = {k: np.stack([x[row, seen[row]] for row in range(rows)]) for k, x in obs.items()}
        with torch.no_grad():
            expected = algo.get_action({k: torch.from_numpy(x) for k, x in stacks.items()})
        np.testing.assert_allclose(policy(single, batched_ob=True), expected, atol=1e-6)
        # Environments that stack themselves, as robomimic's do, get the same.
        np.testing.assert_allclose(policy(stacks, batched_ob=True), expected, atol=1e-6)


def test_rollouts_take_one_environment_with_or_without_stacks():
    algo = make(make_config("transformer"))
    policy = RolloutPolicy(algo)
    obs = {k: x.numpy() for k, x in observations(1).items()}
    single = {k: x[0] for k, x in obs.items()}
    policy.start_episode()
    action = policy(single)
    assert action.shape == (ACTION_DIM,)
    stack = {k: np.repeat(x, HORIZON, axis=0) for k, x in obs.items()}
    np.testing.assert_allclose(policy(stack), action, atol=1e-6)
