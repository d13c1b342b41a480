"""The promises of every variant of every algorithm: robomimic's 80 on low-dimensional data.

Each is built with robomimic's parameters, trains, resumes bit by bit, and acts for several episodes
at once as it does for each alone.
"""

import io

import numpy as np
import pytest
import torch
from reference import (
    ACTION_DIM,
    SHAPES,
    golden_batch,
    make,
    small_config,
    state,
    train_step,
    variant_config,
    variants,
)

from raymimic.algo import Algo, HierarchicalAlgo, PolicyAlgo, RolloutPolicy, algo_class
from raymimic.config import BaseConfig

torch.set_num_threads(1)

STEPS, RESET = 12, 5  # longer than an RNN's horizon, a queue of actions, a subgoal's life
ROWS = 3


def acts(name: str) -> bool:
    config = variant_config(name)
    return issubclass(algo_class(config.algo_name, config), PolicyAlgo | HierarchicalAlgo)


def seeded(config: BaseConfig, seed: int) -> Algo:
    torch.manual_seed(seed)
    algo = make(config)
    algo.set_train()
    return algo


@pytest.mark.parametrize("name", variants())
def test_has_robomimics_parameters(name):
    with torch.device("meta"):
        algo = make(variant_config(name), "meta")
    shapes = {key: list(x.shape) for key, x in state(algo).items()}
    assert shapes == variants()[name]["state_dict"]


@pytest.mark.parametrize("name", variants())
def test_trains_and_resumes_bit_by_bit(name):
    config = small_config(name)
    raw = golden_batch(config, [0, 11, 30, 55, 80])

    def step(algo: Algo, seed: int) -> dict[str, float]:
        torch.manual_seed(seed)
        return {key: float(x) for key, x in train_step(algo, raw).items()}

    algo = seeded(config, 1)
    before = [
        [p.clone() for group in optimizer.param_groups for p in group["params"]]
        for _, optimizer in algo.named_optimizers()
    ]
    for seed in range(2):  # TD3-BC's actor moves every other step
        assert np.isfinite(list(step(algo, seed).values())).all()
    algo.on_epoch_end(1)
    assert before
    for old, (key, optimizer) in zip(before, algo.named_optimizers(), strict=True):
        new = [p for group in optimizer.param_groups for p in group["params"]]
        assert any(not torch.equal(a, b) for a, b in zip(old, new, strict=True)), key

    saved = io.BytesIO()
    torch.save({"model": algo.serialize(), "state": algo.training_state()}, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=True)
    resumed = seeded(config, 2)
    resumed.deserialize(loaded["model"], load_optimizers=True)
    resumed.load_training_state(loaded["state"])
    assert step(algo, 7) == step(resumed, 7)
    torch.testing.assert_close(resumed.serialize(), algo.serialize(), rtol=0, atol=0)
    torch.testing.assert_close(resumed.training_state(), algo.training_state(), rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in variants() if acts(name)])
def test_episodes_side_by_side_are_as_each_alone(name):
    """In float64, with goals; the last row's episode ends early and another one begins."""
    config = small_config(name, goals=True, **{"train.dtype": "float64"})
    policy = RolloutPolicy(seeded(config, 3))
    rng = np.random.default_rng(0)

    def observations() -> dict[str, np.ndarray]:
        return {key: rng.normal(size=(ROWS, *shape)) for key, shape in SHAPES.items()}

    steps, goals = [observations() for _ in range(STEPS)], observations()
    last = np.arange(ROWS) == ROWS - 1
    together = []
    policy.start_episode(seeds=[10, 11, 12])
    for t, obs in enumerate(steps):
        if t == RESET:
            policy.start_episode(last, seeds=[0, 0, 13])
        together.append(policy(obs, goals, batched_ob=True))
    assert together[0].shape == (ROWS, ACTION_DIM)
    assert together[0].dtype == np.float64
    assert np.isfinite(together).all()

    for row, seed, begin, end in [(0, 10, 0, 12), (1, 11, 0, 12), (2, 12, 0, 5), (2, 13, 5, 12)]:
        policy.start_episode(seeds=[seed])
        for t in range(begin, end):
            obs = {key: x[row] for key, x in steps[t].items()}
            alone = policy(obs, {key: x[row] for key, x in goals.items()})
            np.testing.assert_allclose(alone, together[t][row], rtol=1e-7, atol=1e-9)

    policy.start_episode(seeds=[10, 11, 12])
    elsewhere = policy(steps[0], {key: x + 1 for key, x in goals.items()}, batched_ob=True)
    assert not np.allclose(elsewhere, together[0])


@pytest.mark.parametrize("name", ["gl_ae", "gl_vae"])
def test_plans_for_several_states(name):
    algo = make(small_config(name))
    algo.set_eval()
    obs = {key: torch.randn(ROWS, *shape) for key, shape in SHAPES.items()}
    plans = algo.get_subgoal_predictions(obs)
    assert {key: list(x.shape) for key, x in plans.items()} == {
        key: [ROWS, *shape] for key, shape in SHAPES.items()
    }
    samples = algo.sample_subgoals(obs, num_samples=4)
    assert {key: list(x.shape) for key, x in samples.items()} == {
        key: [ROWS, 4, *shape] for key, shape in SHAPES.items()
    }
