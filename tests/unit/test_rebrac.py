"""ReBRAC: the paper's equations, computed anew, and its networks."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import run_two_ranks
from tiny import Ran, small_config, train_args, write_hopper
from torch import Tensor, nn
from waiting import DEADLINE_S

from raymimic.algo import ReBRAC, algo_class, algo_factory
from raymimic.data.reads import one_step
from raymimic.data.training_data import make_loaders
from raymimic.models.base_nets import MLP
from raymimic.models.ensembles import can_be_batched
from raymimic.models.value_nets import ActionValueEnsemble, ActionValueNetwork
from raymimic.tensors import map_tensor
from raymimic.training.grad_sync import GradientSync

torch.set_num_threads(1)

OBS, ACT, B = 5, 2, 9


def make(**settings: Any) -> ReBRAC:
    settings = {
        "train.dtype": "float64",
        "algo.critic.layer_dims": [7, 6, 5],
        "algo.actor.layer_dims": [6, 5, 4],
        "algo.actor.bc_weight": 0.7,
        "algo.critic.bc_weight": 0.3,
    } | settings
    torch.manual_seed(0)
    algo = algo_factory("rebrac", small_config("rebrac", **settings), {"flat": [OBS]}, ACT, "cpu")
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():  # LayerNorm's scales and shifts too, and targets apart from networks
        for p in algo.nets.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=p.dtype) * 0.6 + 0.1)
    algo.set_train()
    assert isinstance(algo, ReBRAC)
    return algo


def make_batch(rows: int = B, length: int = 1) -> dict[str, Any]:
    g = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.rand(rows, *shape, generator=g, dtype=torch.float64) * 2 - 1

    return {
        "obs": {"flat": 2 * draw(1, OBS)},
        "next_obs": {"flat": 2 * draw(1, OBS)},
        "actions": draw(1, ACT),
        "next_actions": draw(1, ACT),
        "rewards": draw(length),
        "dones": (draw(length) > 0.5).double(),
    }


def layers(net: nn.Module) -> list[Tensor]:
    """Copies of a network's parameters, in order, that gradients can be taken of."""
    return [p.detach().clone().requires_grad_(True) for p in net.parameters()]


def plain(x: Tensor, params: list[Tensor], norm: bool) -> Tensor:
    """A network of three hidden layers, by matrix products alone."""
    *hidden, weight, bias = params
    step = 4 if norm else 2
    for i in range(0, len(hidden), step):
        x = x @ hidden[i].T + hidden[i + 1]
        if norm:
            centred = x - x.mean(1, keepdim=True)
            x = centred / ((centred**2).mean(1, keepdim=True) + 1e-5) ** 0.5
            x = x * hidden[i + 2] + hidden[i + 3]
        x = x * (x > 0)
    return x @ weight.T + bias


def q_of(params: list[Tensor], obs: Tensor, action: Tensor) -> Tensor:
    return plain(torch.cat([obs, action], 1), params, norm=True)[:, 0]


def pi_of(params: list[Tensor], obs: Tensor) -> Tensor:
    return torch.tanh(plain(obs, params, norm=False))


@pytest.mark.parametrize("n_step", [1, 3])
def test_critics_losses_and_gradients_are_the_papers(n_step: int) -> None:
    algo = make(**{"algo.n_step": n_step, "train.seq_length": n_step})
    batch = make_batch(length=n_step)
    config = algo.algo_config
    processed = algo.process_batch_for_training(batch)
    torch.manual_seed(5)
    noise = (torch.randn(B, ACT, dtype=torch.float64) * 0.2).clamp(-0.5, 0.5)

    next_obs, gamma = batch["next_obs"]["flat"][:, 0], 0.99
    action = (pi_of(layers(algo.nets["actor_target"]), next_obs) + noise).clamp(-1, 1)
    penalty = ((action - batch["next_actions"][:, 0]) ** 2).sum(1)
    targets = [q_of(layers(net), next_obs, action) for net in algo.nets["critic_target"]]
    reward = sum(gamma**i * batch["rewards"][:, i] for i in range(n_step))
    alive = 1 - batch["dones"].max(1).values
    y = (
        reward
        + gamma**n_step * alive * (torch.minimum(*targets) - config.critic.bc_weight * penalty)
    ).detach()

    torch.manual_seed(5)
    losses = algo._critic_losses(processed, epoch=1).of["critic"]
    sum(losses).backward()
    for net, loss in zip(algo.nets["critic"], losses, strict=True):
        params = layers(net)
        values = q_of(params, batch["obs"]["flat"][:, 0], batch["actions"][:, 0])
        expected = ((values - y) ** 2).mean()
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
        expected.backward()
        for p, own in zip(net.parameters(), params, strict=True):
            torch.testing.assert_close(p.grad, own.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("normalize_q", [True, False])
def test_actors_loss_and_gradient_are_the_papers(normalize_q: bool) -> None:
    algo = make(**{"algo.actor.normalize_q": normalize_q})
    batch = make_batch()
    obs, data = batch["obs"]["flat"][:, 0], batch["actions"][:, 0]
    params = layers(algo.nets["actor"])
    action = pi_of(params, obs)
    q = torch.minimum(*[q_of(layers(net), obs, action) for net in algo.nets["critic"]])
    lam = 1 / q.abs().mean().detach() if normalize_q else 1.0
    expected = (0.7 * ((action - data) ** 2).sum(1) - lam * q).mean()
    expected.backward()

    loss = algo.compute_actor_loss(algo.process_batch_for_training(batch))
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    for p, own in zip(algo.nets["actor"].parameters(), params, strict=True):
        torch.testing.assert_close(p.grad, own.grad, rtol=1e-9, atol=1e-12)
    assert all(p.grad is None for p in algo.nets["critic"].parameters())


def test_actor_and_targets_move_at_every_second_step() -> None:
    algo = make()
    batch = algo.process_batch_for_training(make_batch())
    moved = []
    for _ in range(4):
        before = {k: x.clone() for k, x in algo.nets.state_dict().items()}
        algo.train_on_batch(batch, epoch=1)
        after = algo.nets.state_dict()
        moved.append({k.split(".")[0] for k in after if not torch.equal(after[k], before[k])})
    everything = {"critic", "actor", "critic_target", "actor_target"}
    assert moved == [{"critic"}, everything, {"critic"}, everything]


def test_it_reads_the_action_after_the_last_of_its_steps(tmp_path: Path) -> None:
    """Through the loader, from the file: the reward's steps, and the action that follows them."""
    path = write_hopper(tmp_path / "hopper.hdf5")
    config = small_config("rebrac", **{"algo.n_step": 3, "train.seq_length": 3})
    config.train.data, config.train.batch_size = str(path), 16
    config.experiment.rollout.enabled = False
    reads = algo_class("rebrac", config).reads(config)
    assert reads is one_step(3)
    batch, _, _ = next(make_loaders(config, reads, torch.device("cpu")).train.epoch(1))
    algo = algo_factory("rebrac", config, {"flat": [11]}, 3, "cpu")
    processed = algo.process_batch_for_training(batch)
    with h5py.File(path) as file:
        demos = [file[f"data/demo_{i}"] for i in range(6)]
        actions = [demo["actions"][()] for demo in demos]
        rewards = [demo["rewards"][()] for demo in demos]
    for i, index in enumerate(batch["index"].tolist()):
        demo, step = divmod(index, 20)
        np.testing.assert_array_equal(
            processed["next_actions"][i], actions[demo][min(step + 3, 19)]
        )
        expected = sum(0.99**k * rewards[demo][min(step + k, 19)] for k in range(3))
        assert processed["rewards"][i].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_hidden_layers_of_critics_are_normalised_and_no_others() -> None:
    algo = make()
    for critic in [*algo.nets["critic"], *algo.nets["critic_target"]]:
        norms = [m.normalized_shape for m in critic.modules() if isinstance(m, nn.LayerNorm)]
        assert norms == [(7,), (6,), (5,)]
    assert not any(isinstance(m, nn.LayerNorm) for m in algo.nets["actor"].modules())
    plain_critics = make(**{"algo.critic.layer_norm": False}).nets["critic"]
    assert not any(isinstance(m, nn.LayerNorm) for m in plain_critics.modules())


def test_normalised_layers_have_robomimics_keys() -> None:
    keys = list(MLP(3, 2, (5,), layer_norm=True).state_dict())
    linear, norm, last = ([f"_model.{i}.{name}" for name in ("weight", "bias")] for i in (0, 1, 3))
    assert keys == [*linear, *norm, *last]


def test_members_of_an_ensemble_keep_their_own_normalisation() -> None:
    torch.manual_seed(0)
    members = [ActionValueNetwork({"flat": (OBS,)}, ACT, (7, 6), layer_norm=True) for _ in range(3)]
    for member in members:
        for m in member.modules():
            if isinstance(m, nn.LayerNorm):
                nn.init.normal_(m.weight)
                nn.init.normal_(m.bias)
    obs, action = {"flat": torch.randn(4, OBS)}, torch.randn(4, ACT)
    values = ActionValueEnsemble(members)(obs, action)
    for value, member in zip(values, members, strict=True):
        torch.testing.assert_close(value, member(obs, action))
        x = torch.cat([obs["flat"], action], 1)
        torch.testing.assert_close(value, plain(x, list(member.parameters()), norm=True))
    assert not can_be_batched(members)


def test_a_setting_out_of_range_is_refused(cli: Any, tmp_path: Path) -> None:
    path = write_hopper(tmp_path / "hopper.hdf5")
    args = train_args(path)
    args[args.index("td3_bc")] = "rebrac"
    ran: Ran = cli(*args, "algo.actor.bc_weight=-1")
    assert ran.status == 2
    assert "algo.actor.bc_weight" in ran.err
    assert cli(*args).status == 0


# -- two workers --


def trained(rank: int | None) -> ReBRAC:
    """Some steps of one rank of two, with parts of 6 and 3 samples, or (None) of one worker."""
    algo = make(**{"algo.actor.noise_std": 0.0})
    batch = algo.process_batch_for_training(make_batch())
    if rank is not None:
        cut = (slice(0, 6), slice(6, B))[rank]
        batch = map_tensor(batch, lambda x: x[cut])
        algo.grad_sync = GradientSync(world_size=2)
        algo.grad_sync.weight = (cut.stop - cut.start) / B
    for _ in range(4):
        algo.train_on_batch(batch, epoch=1)
    return algo


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=DEADLINE_S),
    )
    algo = trained(rank)
    algo.grad_sync.check_replicas(algo.nets, epoch=1)
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        alone = trained(None).nets.state_dict()
        differences = [
            ((x - alone[k]).abs().max() / alone[k].abs().max()).item()
            for k, x in algo.nets.state_dict().items()
        ]
        Path(folder, "found.json").write_text(json.dumps(max(differences)))


@pytest.mark.slow
def test_two_workers_give_the_result_of_one(tmp_path: Path) -> None:
    run_two_ranks(_rank, str(tmp_path))
    assert json.loads((tmp_path / "found.json").read_text()) < 1e-9


def test_huber_losses_of_critics_hold_here_too() -> None:
    algo = make(**{"algo.critic.use_huber": True, "algo.actor.noise_std": 0.0})
    batch = algo.process_batch_for_training(make_batch())
    target = algo.compute_td_target(batch)
    losses = algo.compute_critic_losses(batch, target)
    values = algo.ensemble_values("critic", batch["obs"], batch["actions"], None)
    for loss, value in zip(losses, values, strict=True):
        torch.testing.assert_close(loss, F.smooth_l1_loss(value, target))
