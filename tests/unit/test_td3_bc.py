"""TD3-BC: every step against the paper's equations, written again in NumPy with their gradients."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from raymimic.algo import TD3_BC, algo_factory
from raymimic.config import config_factory

torch.set_num_threads(1)

OBS, ACTIONS, BATCH = 3, 2, 6
RATE = 1e-2

Array = NDArray[np.float64]


def make_algo(seed: int = 0, **settings: Any) -> TD3_BC:
    """TD3-BC in float64 with small networks; settings are keys below `algo`, `__` for dots."""
    config = config_factory("td3_bc")
    config.train.dtype = "float64"
    config.observation.modalities.obs.low_dim = ["flat"]
    config.algo.actor.layer_dims = config.algo.critic.layer_dims = [8, 7]
    for net in ("actor", "critic"):
        config.algo.optim_params[net].learning_rate.initial = RATE
    for key, value in settings.items():
        config.algo.set_path(key.replace("__", "."), value)
    torch.manual_seed(seed)
    algo = algo_factory("td3_bc", config, {"flat": [OBS]}, ACTIONS, "cpu")
    assert isinstance(algo, TD3_BC)
    algo.set_train()
    with torch.no_grad():  # targets that differ from their sources, actions all over [-1, 1]
        for name, net in algo.nets.items():
            for p in net.parameters():
                p.add_((0.3 if "target" in name else 0.1) * torch.randn_like(p))
    return algo


def make_batch(seed: int = 1) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return {
        "obs": {"flat": normal(BATCH, OBS)},
        "next_obs": {"flat": normal(BATCH, OBS)},
        "goal_obs": None,
        "actions": torch.tanh(normal(BATCH, ACTIONS)),
        "rewards": normal(BATCH, 1),
        "dones": torch.tensor([[0.0], [1.0]], dtype=torch.float64).repeat(BATCH // 2, 1),
    }


def step(
    algo: TD3_BC, batch: dict[str, Any], seed: int, validate: bool = False
) -> dict[str, float]:
    torch.manual_seed(seed)
    log = algo.log_info(algo.train_on_batch(batch, epoch=1, validate=validate))
    if not validate:
        algo.on_gradient_step()
    return {k: float(x) for k, x in log.items()}


# ------------------------------------------------------------------ the paper, in NumPy


class Net:
    """Layers with ReLU between them, and tanh behind the last one of an actor."""

    def __init__(self, net: torch.nn.Module, squash: bool) -> None:
        self.weights = [p.detach().numpy().copy() for p in net.parameters()]
        self.squash = squash
        self.moments = [(np.zeros_like(w), np.zeros_like(w)) for w in self.weights]
        self.steps = 0

    def forward(self, x: Array) -> Array:
        self.inputs = []
        for weight, bias in zip(self.weights[::2], self.weights[1::2], strict=True):
            x = np.maximum(x, 0.0) if self.inputs else x
            self.inputs.append(x)
            x = x @ weight.T + bias
        self.output = np.tanh(x) if self.squash else x
        return self.output

    def backward(self, gradient: Array) -> tuple[Array, list[Array]]:
        """Gradients of the last input and of all weights, from that of the last output."""
        if self.squash:
            gradient = gradient * (1 - self.output**2)
        gradients: list[Array] = []
        for i in reversed(range(len(self.inputs))):
            gradients = [gradient.T @ self.inputs[i], gradient.sum(axis=0), *gradients]
            gradient = gradient @ self.weights[2 * i]
            gradient = gradient * (self.inputs[i] > 0) if i else gradient
        return gradient, gradients

    def adam(self, gradients: list[Array], rate: float = RATE) -> None:
        """A step of Adam, Kingma & Ba (2015), algorithm 1."""
        self.steps += 1
        for weight, gradient, (m, v) in zip(self.weights, gradients, self.moments, strict=True):
            m += 0.1 * (gradient - m)
            v += 0.001 * (gradient**2 - v)
            scale = np.sqrt(v / (1 - 0.999**self.steps)) + 1e-8
            weight -= rate * m / (1 - 0.9**self.steps) / scale

    def follow(self, source: "Net", tau: float) -> None:
        for weight, target in zip(source.weights, self.weights, strict=True):
            target += tau * (weight - target)


class Paper:
    """TD3 (Fujimoto et al., 2018, algorithm 1) with equations 3 to 5 of TD3-BC (2021)."""

    def __init__(self, algo: TD3_BC) -> None:
        self.config = copy.deepcopy(algo.algo_config)
        nets = algo.nets
        self.critics, self.critic_targets = (
            [Net(critic, squash=False) for critic in nets[name]]
            for name in ("critic", "critic_target")
        )
        self.actor, self.actor_target = (
            Net(nets[name], squash=True) for name in ("actor", "actor_target")
        )
        self.critic_steps = 0

    def step(self, batch: dict[str, Any], seed: int) -> dict[str, float]:
        obs, next_obs = (batch[key]["flat"].numpy() for key in ("obs", "next_obs"))
        actions, rewards, dones = (batch[k].numpy() for k in ("actions", "rewards", "dones"))
        config, log = self.config, {}

        torch.manual_seed(seed)
        noise = config.actor.noise_std * torch.randn(BATCH, ACTIONS, dtype=torch.float64).numpy()
        noise = np.clip(noise, -config.actor.noise_clip, config.actor.noise_clip)
        next_actions = np.clip(self.actor_target.forward(next_obs) + noise, -1, 1)
        values = [c.forward(joined(next_obs, next_actions)) for c in self.critic_targets]
        targets = rewards + config.discount * (1 - dones) * np.minimum(*values)
        log["Critic/Q_Targets"] = targets.mean()

        for i, critic in enumerate(self.critics, 1):
            error = critic.forward(joined(obs, actions)) - targets
            log[f"Critic/Critic{i}_Loss"] = (error**2).mean()
            _, gradients = critic.backward(2 * error / BATCH)
            log[f"Critic/Critic{i}_Grad_Norms"] = squared_norm(gradients)
            critic.adam(gradients)
        self.critic_steps += 1

        policy = self.actor.forward(obs)
        q = self.critics[0].forward(joined(obs, policy))
        scale = config.alpha / np.abs(q).mean()
        log["Actor/Loss"] = -scale * q.mean() + ((policy - actions) ** 2).mean()
        if self.critic_steps % config.actor.update_freq == 0:
            through_q, _ = self.critics[0].backward(np.full_like(q, -scale / BATCH))
            imitation = 2 * (policy - actions) / actions.size
            _, gradients = self.actor.backward(through_q[:, ACTION_COLUMNS] + imitation)
            log["Actor/Grad_Norms"] = squared_norm(gradients)
            self.actor.adam(gradients)
            for target, source in zip(self.critic_targets, self.critics, strict=True):
                target.follow(source, config.target_tau)
            self.actor_target.follow(self.actor, config.target_tau)
        log["Loss"] = sum(log[f"{name}_Loss"] for name in ("Critic/Critic1", "Critic/Critic2"))
        log["Loss"] += log["Actor/Loss"]
        return log

    def weights(self) -> list[Array]:
        nets = [*self.critics, *self.critic_targets, self.actor, self.actor_target]
        return [weight for net in nets for weight in net.weights]


ACTION_COLUMNS = slice(OBS, OBS + ACTIONS)


def joined(obs: Array, actions: Array) -> Array:
    """A critic's input."""
    return np.concatenate([obs, actions], axis=1)


def squared_norm(gradients: list[Array]) -> float:
    return float(sum((gradient**2).sum() for gradient in gradients))


# ------------------------------------------------------------------ tests


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"alpha": 0.4, "discount": 0.8, "target_tau": 0.2, "actor__update_freq": 3},
        {"actor__noise_std": 3.0, "actor__noise_clip": 0.1, "actor__update_freq": 1},
    ],
)
def test_every_step_is_the_papers(settings):
    algo = make_algo(**settings)
    paper = Paper(algo)
    for seed in range(7):
        batch = make_batch(seed)
        expected, log = paper.step(batch, seed), step(algo, batch, seed)
        assert {k: log[k] for k in expected} == pytest.approx(expected, rel=1e-9)
        assert ("Actor/Grad_Norms" in log) == ("Actor/Grad_Norms" in expected)
        for weight, parameter in zip(paper.weights(), algo.nets.parameters(), strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), weight, rtol=1e-9, atol=1e-12)


def test_the_paper_sees_each_setting():
    """Settings whose effect the equations above would not show prove nothing."""
    batches = [make_batch(seed) for seed in range(2)]

    def last(**settings: Any) -> list[Array]:
        paper = Paper(make_algo(**settings))
        for seed, batch in enumerate(batches):
            paper.step(batch, seed)
        return paper.weights()

    reference = last()
    for settings in (
        {"alpha": 1.0},
        {"discount": 0.9},
        {"target_tau": 0.1},
        {"actor__update_freq": 1},
        {"actor__noise_std": 0.4},
        {"actor__noise_clip": 0.1},
    ):
        pairs = zip(reference, last(**settings), strict=True)
        assert not all(np.array_equal(one, other) for one, other in pairs), settings


def test_noise_is_clipped_and_so_are_the_actions():
    """Targets show the actions, as these critics return the first component of them."""
    algo = make_algo(discount=1.0, actor__noise_std=50.0, actor__noise_clip=0.25)
    batch = make_batch()
    batch["rewards"].zero_()
    batch["dones"].zero_()
    asked: list[torch.Tensor] = []

    def first_component(name: str, obs: Any, actions: torch.Tensor, goal: Any) -> torch.Tensor:
        assert name == "critic_target"
        asked.append(actions)
        return torch.stack([actions[:, :1], actions[:, :1] + 1])  # the lower one counts

    algo.ensemble_values = first_component  # type: ignore[method-assign]
    target = algo.compute_td_target(batch)
    (actions,) = asked
    with torch.no_grad():
        policy = algo.nets["actor_target"](batch["next_obs"])
    off = (actions - policy).abs()
    assert actions.abs().max() <= 1.0
    inside = actions.abs() < 1.0
    assert inside.any()
    torch.testing.assert_close(off[inside], torch.full_like(off[inside], 0.25))
    assert off.max() <= 0.25 + 1e-12
    torch.testing.assert_close(target, actions[:, :1])


def test_the_q_term_has_one_scale_whatever_the_rewards_are():
    """The loss does not change with the size of Q, as equation 5 divides by its mean."""
    algo, batch = make_algo(), make_batch()
    before = algo.compute_actor_loss(batch)
    with torch.no_grad():
        for p in list(algo.nets["critic"][0].parameters())[-2:]:
            p.mul_(1000.0)
    torch.testing.assert_close(algo.compute_actor_loss(batch), before)


def test_the_actors_gradient_stops_at_the_critic():
    algo, batch = make_algo(), make_batch()
    algo.nets.zero_grad(set_to_none=True)
    algo.compute_actor_loss(batch).backward()
    assert all(p.grad is not None for p in algo.nets["actor"].parameters())
    others = [p for name, net in algo.nets.items() if name != "actor" for p in net.parameters()]
    assert all(p.grad is None for p in others)
    assert all(p.requires_grad for p in algo.nets["critic"].parameters())


def test_a_validation_neither_learns_nor_counts():
    algo, batch = make_algo(), make_batch()
    before = copy.deepcopy(algo.nets.state_dict())
    expected = Paper(algo).step(batch, 3)
    log = step(algo, batch, 3, validate=True)
    for name in ("Critic/Critic1_Loss", "Critic/Critic2_Loss", "Critic/Q_Targets"):
        assert log[name] == pytest.approx(expected[name], rel=1e-9)
    assert not any("Grad_Norms" in name for name in log)
    assert all(x.equal(before[k]) for k, x in algo.nets.state_dict().items())
    assert algo.actor_update_counter == 0


def test_a_resumed_run_keeps_the_actors_turns():
    algo = make_algo(actor__update_freq=2)
    step(algo, make_batch(0), 0)
    again = make_algo(seed=5, actor__update_freq=2)
    again.deserialize(copy.deepcopy(algo.serialize()), load_optimizers=True)
    again.load_training_state(algo.training_state())
    logs = [step(one, make_batch(1), 1) for one in (algo, again)]
    assert logs[0] == logs[1]
    assert "Actor/Grad_Norms" in logs[1]
    for p, q in zip(algo.nets.parameters(), again.nets.parameters(), strict=True):
        assert torch.equal(p, q)
