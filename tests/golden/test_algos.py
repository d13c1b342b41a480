"""Algorithms against robomimic 0.5: all its variants on low-dimensional observations.

See `reference.compare`.
"""

import json
from typing import Any

import numpy as np
import pytest
import torch
from reference import (
    DATA,
    TOLERANCE,
    centred_rng,
    compare,
    fill,
    golden_batch,
    make,
    numbers,
    variant_config,
    variants,
)

from raymimic.algo import Algo, algo_factory
from raymimic.checkpoints.policy import policy_from_checkpoint
from raymimic.config import config_factory

CHECKPOINTS = sorted(path.stem for path in (DATA / "checkpoints").glob("*.pth"))
SLOW = ("diffusion_policy_ddim", "diffusion_policy_ema")  # of the size of diffusion_policy_ddpm


def make_case(name: str) -> tuple[Algo, dict[str, Any]]:
    """The algorithm at robomimic's start, and the batch that robomimic trained on."""
    config = variant_config(name)
    return fill(make(config)), golden_batch(config, numbers()[name]["idx"])


@pytest.mark.parametrize("name", ["bc", "bc_losses", "td3_bc"])
def test_batch_is_processed_as_by_robomimic(name):
    algo, raw = make_case(name)
    batch = algo.postprocess_batch_for_training(algo.process_batch_for_training(raw), None)

    assert batch["goal_obs"] is None
    expected = {"obs", "goal_obs", "actions", "rewards", "dones"} | (raw.keys() & {"next_obs"})
    assert set(batch) == expected
    for group in {"obs", "next_obs"} & expected:
        assert set(batch[group]) == set(raw[group])
        for key, x in batch[group].items():
            assert x.dtype == torch.float32
            assert torch.equal(x, raw[group][key][:, 0])
    assert torch.equal(batch["actions"], raw["actions"][:, 0])
    assert torch.equal(batch["rewards"], raw["rewards"])
    assert torch.equal(batch["dones"], raw["dones"])


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in variants()]
)
def test_computes_what_robomimic_computes(name):
    algo, raw = make_case(name)
    compare(name, algo, raw)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_robomimics_checkpoint_acts_as_in_robomimic(name):
    policy, _ = policy_from_checkpoint(ckpt_path=str(DATA / "checkpoints" / f"{name}.pth"))
    steps = json.loads((DATA / "checkpoints" / f"{name}.json").read_text())["steps"]

    with centred_rng():
        policy.start_episode()
        for step in steps:
            obs = {k: np.array(x) for k, x in step["obs"].items()}
            np.testing.assert_allclose(policy(obs), step["action"], rtol=TOLERANCE, atol=1e-6)

        policy.start_episode()
        for step in steps:  # two episodes side by side
            obs = {k: np.stack([np.array(x)] * 2) for k, x in step["obs"].items()}
            both = policy(obs, batched_ob=True)
            np.testing.assert_allclose(both, [step["action"]] * 2, rtol=TOLERANCE, atol=1e-6)


@pytest.mark.parametrize("cuda", [True, False])
def test_a_policy_acts_on_a_gpu_if_there_is_one_and_its_config_wants_it(cuda):
    ckpt = torch.load(DATA / "checkpoints" / "bc.pth", weights_only=True)
    config = json.loads(ckpt["config"])
    config["train"]["cuda"] = cuda
    policy, _ = policy_from_checkpoint(ckpt_dict={**ckpt, "config": json.dumps(config)})
    on_gpu = cuda and torch.cuda.is_available()
    assert policy.policy.device.type == ("cuda" if on_gpu else "cpu")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_robomimics_optimizers_load(name):
    checkpoint = torch.load(DATA / "checkpoints" / f"{name}.pth", weights_only=True)
    algo_name = checkpoint["algo_name"]
    config = config_factory(algo_name, json.loads(checkpoint["config"]))
    algo = algo_factory(algo_name, config, checkpoint["shape_metadata"]["all_shapes"], 7, "cpu")
    algo.deserialize(checkpoint["model"], load_optimizers=True)
    steps = [
        entry["step"].item()
        for _, optimizer in algo.named_optimizers()
        for entry in optimizer.state_dict()["state"].values()
    ]
    assert steps
    assert set(steps) <= {5, 2}  # TD3-BC's actor takes every other step
    if name in ("bc", "td3_bc"):
        saved = checkpoint["model"]["optimizers"]
        saved = saved["critic"][1] if name == "td3_bc" else saved["policy"]
        ours = algo.optimizers["critic"][1] if name == "td3_bc" else algo.optimizers["policy"]
        assert torch.equal(ours.state_dict()["state"][0]["exp_avg"], saved["state"][0]["exp_avg"])
