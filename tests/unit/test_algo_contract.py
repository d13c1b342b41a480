"""The contract of every registered algorithm, built in or a user's own."""

import copy
import io
from typing import Any

import my_td3_bc
import numpy as np
import pytest
import robomimic_idiom
import torch
from tiny import small_config

from raymimic.algo import (
    Algo,
    HierarchicalAlgo,
    PolicyAlgo,
    RolloutPolicy,
    ValueAlgo,
    algo_class,
    algo_factory,
    registered_algos,
)
from raymimic.config import BaseConfig, config_factory
from raymimic.config.base_config import sections_named
from raymimic.tensors import map_tensor

torch.set_num_threads(1)

OBS_DIM, GOAL_DIM, ACTION_DIM, BATCH = 5, 3, 2, 12
ALGOS = registered_algos()
PASTED = my_td3_bc.TD3_BCConfig.ALGO_NAME  # an algorithm as robomimic's tutorial prints it
# Likewise, with the types of its own methods.
IN_ROBOMIMICS_FORM = ("idiom_averaged", "idiom_hierarchy", "idiom_windowed")
TAKES_ITS_STEPS = (PASTED, "idiom_averaged", "idiom_windowed")
assert set(IN_ROBOMIMICS_FORM) < set(ALGOS), robomimic_idiom
POLICIES = [
    name
    for name in ALGOS
    if issubclass(algo_class(name, config_factory(name)), PolicyAlgo | HierarchicalAlgo)
]


def make_config(
    name: str, goal: bool = False, dtype: str = "float32", start_epoch: int = -1, **options: Any
) -> BaseConfig:
    config = small_config(name, goals=["target"] if goal else [], **options)
    for _, optim_params in sections_named(config.algo, "optim_params"):
        for net in optim_params.values():
            net.num_train_batches = net.num_epochs = 100
            net.start_epoch = start_epoch
    config.train.dtype = dtype
    return config


def make_algo(name: str, seed: int = 0, **options: Any) -> Algo:
    torch.manual_seed(seed)
    shapes = {"flat": [OBS_DIM], "target": [GOAL_DIM]}
    algo = algo_factory(name, make_config(name, **options), shapes, ACTION_DIM, "cpu")
    algo.set_train()
    return algo


def simple_parts(algo: Algo) -> list[Algo]:
    """The algorithm, or the ones that it is made of."""
    parts = getattr(algo, "parts", {})
    return [p for part in parts.values() for p in simple_parts(part)] if parts else [algo]


def raw_batch(name: str, seed: int = 0, goal: bool = False) -> dict[str, Any]:
    """A batch as the loader gives it: collated sequences."""
    train = config_factory(name).train
    length = train.seq_length + train.frame_stack - 1
    g = torch.Generator().manual_seed(seed)
    batch = {
        "obs": {"flat": torch.randn(BATCH, length, OBS_DIM, generator=g)},
        "next_obs": {"flat": torch.randn(BATCH, length, OBS_DIM, generator=g)},
        "actions": torch.rand(BATCH, length, ACTION_DIM, generator=g) * 2 - 1,
        "next_actions": torch.rand(BATCH, length, ACTION_DIM, generator=g) * 2 - 1,
        "rewards": torch.randn(BATCH, length, generator=g),
        "dones": (torch.rand(BATCH, length, generator=g) < 0.2).float(),
    }
    if goal:
        batch["goal_obs"] = {"target": torch.randn(BATCH, GOAL_DIM, generator=g)}
    return batch


def step(algo: Algo, seed: int, validate: bool = False, **options: Any) -> dict[str, float]:
    """One step whose batch and noise are functions of the seed."""
    torch.manual_seed(seed)
    raw = raw_batch(algo.global_config.algo_name, seed, **options)
    batch = algo.process_batch_for_training(raw)
    batch = algo.postprocess_batch_for_training(batch, obs_normalization_stats=None)
    log = algo.log_info(algo.train_on_batch(batch, epoch=1, validate=validate))
    if not validate:
        algo.on_gradient_step()
    assert all(isinstance(x, float) or (x.dim() == 0 and not x.requires_grad) for x in log.values())
    return {k: float(x) for k, x in log.items()}


def assert_equal_states(a: Algo, b: Algo) -> None:
    for (key, x), y in zip(a.nets.state_dict().items(), b.nets.state_dict().values(), strict=True):
        assert torch.equal(x, y), key


@pytest.mark.parametrize("goal", [False, True])
@pytest.mark.parametrize("name", [n for n in ALGOS if config_factory(n).train.seq_length == 1])
def test_processed_batch_has_no_time_dimension(name, goal):
    algo = make_algo(name, goal=goal)
    raw = raw_batch(name, goal=goal)
    batch = algo.process_batch_for_training(raw)
    assert torch.equal(batch["obs"]["flat"], raw["obs"]["flat"][:, 0])
    assert batch["actions"].shape == (BATCH, ACTION_DIM)
    assert batch["rewards"].shape == batch["dones"].shape == (BATCH, 1)
    if goal:
        assert torch.equal(batch["goal_obs"]["target"], raw["goal_obs"]["target"])
    else:
        assert batch["goal_obs"] is None


@pytest.mark.parametrize("goal", [False, True])
@pytest.mark.parametrize("name", ALGOS)
def test_training_lowers_the_loss_and_moves_every_learned_network(name, goal):
    algo = make_algo(name, goal=goal)
    before = {k: x.clone() for k, x in algo.nets.named_parameters()}
    logs = [step(algo, seed=0, goal=goal) for _ in range(100)]
    assert all(np.isfinite(list(log.values())).all() for log in logs)
    assert logs[-1]["Loss"] < logs[0]["Loss"]
    for key, x in algo.nets.named_parameters():
        assert not torch.equal(x, before[key]), key


@pytest.mark.parametrize("name", [n for n in ALGOS if n not in TAKES_ITS_STEPS])
def test_networks_wait_for_their_first_epoch(name):
    """All steps are of epoch 1."""
    waiting, learning = make_algo(name, start_epoch=2), make_algo(name, start_epoch=1)
    before = copy.deepcopy(waiting.nets.state_dict())
    for algo in (waiting, learning):
        log = step(algo, seed=0)
        assert np.isfinite(log["Loss"])
    for key, x in waiting.nets.state_dict().items():
        assert torch.equal(x, before[key]), key
    assert not any("grad_norms" in key.lower() for key in step(waiting, seed=0))
    after = learning.nets.state_dict()
    assert any(not torch.equal(x, before[key]) for key, x in after.items())


@pytest.mark.parametrize("name", ALGOS)
def test_validation_learns_nothing(name):
    algo = make_algo(name)
    for seed in range(3):
        step(algo, seed)
    before = copy.deepcopy((algo.serialize(), algo.training_state()))
    algo.set_eval()
    log = step(algo, seed=7, validate=True)
    assert np.isfinite(log["Loss"])
    after = (algo.serialize(), algo.training_state())
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert not any(key.endswith("Grad_Norms") for key in log)


@pytest.mark.parametrize("name", ALGOS)
def test_training_needs_training_mode(name):
    algo = make_algo(name)
    algo.set_eval()
    with pytest.raises(RuntimeError, match="set_train"):
        step(algo, seed=0)


@pytest.mark.parametrize("name", ALGOS)
def test_a_restored_algorithm_continues_bit_by_bit(name):
    algo = make_algo(name, seed=1)
    for seed in range(3):
        step(algo, seed)
    algo.on_epoch_end(1)
    saved = io.BytesIO()
    torch.save({"model": algo.serialize(), "state": algo.training_state()}, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=True)

    restored = make_algo(name, seed=2)
    restored.deserialize(loaded["model"], load_optimizers=True)
    restored.load_training_state(loaded["state"])
    assert_equal_states(algo, restored)
    for seed in range(3, 6):
        assert step(algo, seed) == step(restored, seed)
    assert_equal_states(algo, restored)
    torch.testing.assert_close(restored.serialize(), algo.serialize(), rtol=0, atol=0)
    assert restored.training_state() == algo.training_state()


@pytest.mark.parametrize("name", ALGOS)
def test_one_optimizer_for_each_network(name):
    for algo in simple_parts(make_algo(name)):
        assert set(algo.lr_schedulers) <= set(algo.optimizers)
        learned = [key for key in algo.optim_params if key in algo.nets]
        assert learned
        for key in learned:
            net, optimizer = algo.nets[key], algo.optimizers[key]
            pairs = (
                zip(net, optimizer, strict=True)
                if isinstance(optimizer, list)
                else [(net, optimizer)]
            )
            for element, own in pairs:
                [group] = own.param_groups
                assert {id(p) for p in group["params"]} == {id(p) for p in element.parameters()}
                rate = group.get("initial_lr", group["lr"])
                assert rate == algo.optim_params[key].learning_rate.initial


@pytest.mark.parametrize("name", [n for n in ALGOS if n not in IN_ROBOMIMICS_FORM])
def test_everything_is_computed_in_train_dtype(name):
    algo = make_algo(name, dtype="float64")
    state = algo.nets.state_dict().values()
    assert {x.dtype for x in state if x.is_floating_point()} == {torch.float64}
    seen = []
    map_tensor(algo.process_batch_for_training(raw_batch(name)), lambda x: seen.append(x.dtype))
    assert set(seen) == {torch.float64}
    assert np.isfinite(step(algo, seed=0)["Loss"])


@pytest.mark.parametrize("name", ALGOS)
def test_target_networks_stay_in_evaluation_mode(name):
    algo = make_algo(name)
    for part in simple_parts(algo):
        modes = {key: net.training for key, net in part.nets.items()}
        assert modes == {key: not key.endswith("_target") for key in part.nets}


@pytest.mark.parametrize("goal", [False, True])
@pytest.mark.parametrize("name", POLICIES)
def test_acts(name, goal):
    policy = RolloutPolicy(make_algo(name, goal=goal))
    policy.start_episode(seeds=range(4))
    rng = np.random.default_rng(0)
    obs = {"flat": rng.normal(size=(4, OBS_DIM)), "unused": np.zeros(4)}
    goals = {"target": rng.normal(size=(4, GOAL_DIM))} if goal else None
    actions = policy(obs, goals, batched_ob=True)
    assert actions.shape == (4, ACTION_DIM)
    assert actions.dtype == np.float32
    assert (np.abs(actions) <= 1.001).all()
    for i in range(4):
        policy.start_episode(seeds=[i])
        one = policy({k: x[i] for k, x in obs.items()}, goals and {"target": goals["target"][i]})
        np.testing.assert_allclose(one, actions[i], atol=1e-6)
    if goal:
        policy.start_episode(seeds=range(4))
        other = policy(obs, {"target": goals["target"] + 1}, batched_ob=True)
        assert np.abs(other - actions).max() > 1e-5


@pytest.mark.parametrize("name", [n for n in ALGOS if n != PASTED])
def test_values_have_a_column(name):
    algo = make_algo(name)
    if not isinstance(algo, ValueAlgo):
        pytest.skip("estimates no values")
    algo.set_eval()
    obs = {"flat": torch.randn(BATCH, OBS_DIM)}
    value = algo.get_state_value(obs)
    assert value.shape == (BATCH, 1)
    own_value = algo.get_state_action_value(obs, algo.get_action(obs))
    assert own_value.shape == (BATCH, 1)
    if name == "td3_bc":  # acts without chance, and has no network for the values of states
        assert torch.equal(own_value, value)


@pytest.mark.parametrize("name", ALGOS)
def test_two_configs_of_one_algorithm_do_not_touch_each_other(name):
    """Modalities and keys belong to the algorithm, not to the process."""
    first = make_algo(name)
    config = make_config(name, keys=("b", "a"))
    second = algo_factory(name, config, {"a": [2], "b": [3], "flat": [OBS_DIM]}, ACTION_DIM, "cpu")
    assert list(first.obs_shapes) == ["flat"]
    assert list(second.obs_shapes) == ["a", "b"]
    step(first, seed=0)
