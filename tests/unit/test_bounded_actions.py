"""Policies that stay in [-1, 1] say so, and a training on data beyond warns."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import my_td3_bc
import pytest
import torch
from tiny import Ran, small_config, train_args

from raymimic.algo import BC, Algo, RolloutPolicy, algo_factory
from raymimic.models.distributions import TanhWrappedDistribution
from raymimic.models.obs_nets import MIMO_MLP
from raymimic.training.worker import fill_in_schedule_lengths

torch.set_num_threads(1)

PASTED = my_td3_bc.TD3_BCConfig.ALGO_NAME  # an algorithm as robomimic's tutorial prints it

RNN = {"algo.rnn.enabled": True, "train.seq_length": 10}
TRANSFORMER = {
    "algo.transformer.enabled": True,
    "algo.transformer.embed_dim": 8,
    "train.frame_stack": 10,
}
GMM = {"algo.gmm.enabled": True}
POLICIES: list[tuple[str, dict[str, Any]]] = [
    ("bc", {}),
    ("bc", {"algo.gaussian.enabled": True}),
    ("bc", GMM),
    ("bc", {"algo.vae.enabled": True}),
    ("bc", RNN),
    ("bc", {**RNN, **GMM}),
    ("bc", TRANSFORMER),
    ("bc", {**TRANSFORMER, **GMM}),
    ("bcq", {}),
    ("bcq", {"algo.actor.enabled": False}),
    ("bcq", {"algo.action_sampler.gmm.enabled": True, "algo.action_sampler.vae.enabled": False}),
    ("cql", {}),
    ("cql", {"algo.actor.net.common.use_tanh": False}),
    ("iql", {}),
    ("iql", {"algo.actor.net.type": "gmm"}),
    ("td3_bc", {}),
    (PASTED, {}),
    ("hbc", {}),
    ("iris", {}),
]


def make(algo: str, **settings: Any) -> Algo:
    config = small_config(algo, **settings)
    fill_in_schedule_lengths(config, 10)
    torch.manual_seed(0)
    return algo_factory(algo, config, {"flat": [3]}, 2, "cpu")


@pytest.mark.parametrize(("algo", "settings"), POLICIES)
def test_bounded_policies_say_so_and_are(algo: str, settings: dict[str, Any]) -> None:
    made = make(algo, **settings)
    assert made.bounded_actions
    for p in made.nets.parameters():
        p.data *= 30.0  # as if it had learned to reach far
    policy = RolloutPolicy(made)
    policy.start_episode()
    stack = settings.get("train.frame_stack", 1)
    obs = torch.randn(3) if stack == 1 else torch.randn(stack, 3)
    action = policy({"flat": obs.numpy()})
    assert abs(action).max() > 0.9
    assert abs(action).max() <= 1.001  # low_noise_eval leaves a deviation of 0.0001


def test_others_do_not() -> None:
    assert not make("gl").bounded_actions
    assert not make("hbc", **{"algo.mode": "planner_only"}).bounded_actions
    assert make("hbc", **{"algo.mode": "actor_only"}).bounded_actions
    algo = make("diffusion_policy")
    assert algo.reads(algo.global_config).bounded_actions  # which are an error there


def test_an_algorithm_with_networks_of_its_own_may_say_so() -> None:
    class Linear(BC):
        def _create_networks(self) -> None:
            groups = {"obs": self.obs_shapes}
            self.nets["policy"] = MIMO_MLP(groups, {"action": (self.ac_dim,)}, (4,))

    class Clipped(Linear):
        bounded_actions = True

    config = small_config("bc")
    arguments = config.algo, config.observation, config, {"flat": [3]}, 2, torch.device("cpu")
    assert not Linear(*arguments).bounded_actions
    assert Clipped(*arguments).bounded_actions


def test_the_likelihood_of_actions_beyond_the_bound_is_finite() -> None:
    normal = torch.distributions.Normal(torch.zeros(3), torch.ones(3))
    dist = TanhWrappedDistribution(torch.distributions.Independent(normal, 1))
    beyond = dist.log_prob(torch.tensor([[2.9, -1.5, 0.1], [1.0, -1.0, 0.1]]))
    assert torch.isfinite(beyond).all()
    assert beyond[0] == beyond[1]


@pytest.fixture
def far(hopper: Path, tmp_path: Path) -> Path:
    """A dataset with actions within ±2.9."""
    path = Path(shutil.copy(hopper, tmp_path / "far.hdf5"))
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            demo["actions"][:] = 2.9 * demo["actions"][:] / abs(demo["actions"][:]).max()
    return path


NORMALIZATION = "train.action_config.actions.normalization"


@pytest.mark.parametrize(
    ("algo", "settings", "reach"),
    [
        ("td3_bc", [], "'actions' reaches 2.9, which it cannot reach"),
        ("bc", [], "'actions' reaches 2.9, which it cannot reach"),
        ("bc", [f"{NORMALIZATION}=gaussian"], "with gaussian normalization, which it cannot reach"),
        ("bc", [f"{NORMALIZATION}=min_max"], None),
    ],
)
def test_a_training_says_once_that_actions_are_out_of_reach(
    cli: Callable[..., Ran],
    far: Path,
    tmp_path: Path,
    algo: str,
    settings: list[str],
    reach: str | None,
) -> None:
    ran = cli(*train_args(far, *settings, algo=algo))
    assert ran.status == 0, ran.err
    log = next(tmp_path.glob("*/*/*/logs/log.txt")).read_text()
    for text in (ran.out, log):
        warnings = [line for line in text.splitlines() if "warning: " in line]
        assert len(warnings) == (reach is not None)
        if reach is not None:
            assert f"warning: {algo} learns actions in [-1, 1], but" in warnings[0]
            assert reach in warnings[0]
            assert "set train.action_config['actions'].normalization to 'min_max'" in warnings[0]
    lines = ran.out.splitlines()
    if reach is not None:
        before = next(i for i, line in enumerate(lines) if "epoch" in line)
        assert any("warning: " in line for line in lines[:before])


def test_a_users_algorithm_of_single_steps_refuses_stacks(
    cli: Callable[..., Ran], hopper: Path, tmp_path: Path
) -> None:
    """Wherever it is defined: at its first action it would meet a stack."""
    small = ["algo.actor.layer_dims=[8,8]", "algo.critic.layer_dims=[8,8]"]
    args = train_args(hopper, *small, "train.frame_stack=2")
    args[args.index("td3_bc")] = PASTED
    ran = cli(*args)
    assert ran.status == 2
    assert "'train.frame_stack' is 2, but TD3_BC sees one observation at a time" in ran.err
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
