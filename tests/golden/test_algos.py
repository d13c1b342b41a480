"""Algorithms against robomimic 0.5: what it computed lies in `data/cases`.

Each case gives a raw batch, the log of one validation step, three actions, the logs of three
training steps on the same batch and the sums of all parameters after them.
"""

import json
from typing import Any

import numpy as np
import pytest
import torch
from reference import DATA, Centred, fill, make, observation, state, train_step

from raymimic.algo import Algo, algo_factory
from raymimic.config import config_factory
from raymimic.utils.file_utils import policy_from_checkpoint

CASES = ["bc", "bc_losses", "td3_bc"]
CHECKPOINTS = ["bc", "td3_bc"]
TOLERANCE = 1e-4

# What deliberately differs, as docs/deviations.md explains: metrics of the validation step.
DEVIATIONS: dict[str, set[str]] = {}


def load_case(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    case = json.loads((DATA / "cases" / f"{name}.json").read_text())
    batch: dict[str, Any] = {}
    with np.load(DATA / "dataset" / f"{name}.npz") as arrays:
        for key, array in arrays.items():
            group, _, inner = key.partition("/")
            part = batch.setdefault(group, {}) if inner else batch
            part[inner or group] = torch.from_numpy(array)
    return case, batch


def make_algo(case: dict[str, Any]) -> Algo:
    return fill(make(config_factory(case["algo_name"], case["config"])))


def log(algo: Algo, raw: dict[str, Any], validate: bool = False) -> dict[str, float]:
    return {k: float(x) for k, x in train_step(algo, raw, validate).items()}


@pytest.mark.parametrize("name", ["bc", "bc_losses", "td3_bc"])
def test_batch_is_processed_as_by_robomimic(name):
    case, raw = load_case(name)
    algo = make_algo(case)
    batch = algo.postprocess_batch_for_training(algo.process_batch_for_training(raw), None)

    assert batch["goal_obs"] is None
    expected = {"obs", "goal_obs", "actions", "rewards", "dones"} | (algo.needs & {"next_obs"})
    assert set(batch) == expected
    for group in {"obs", "next_obs"} & expected:
        assert set(batch[group]) == set(raw[group])
        for key, x in batch[group].items():
            assert x.dtype == torch.float32
            assert torch.equal(x, raw[group][key][:, 0].float())
    assert torch.equal(batch["actions"], raw["actions"][:, 0])
    assert torch.equal(batch["rewards"], raw["rewards"])
    assert torch.equal(batch["dones"], raw["dones"])


@pytest.mark.parametrize("name", CASES)
def test_computes_what_robomimic_computes(name):
    case, raw = load_case(name)
    algo = make_algo(case)
    with Centred():
        compare(name, algo, case, raw)


def compare(name: str, algo: Algo, case: dict[str, Any], raw: dict[str, Any]) -> None:
    """Validates, acts and trains, in this order."""
    algo.set_eval()
    validation = log(algo, raw, validate=True)
    assert validation.keys() == case["validate"].keys()
    for key in validation.keys() - DEVIATIONS.get(name, set()):
        assert validation[key] == pytest.approx(case["validate"][key], rel=TOLERANCE), key

    algo.reset()
    for i, expected in enumerate(case["actions"]):
        obs = observation(raw, algo.global_config, slice(i, i + 1))
        with torch.no_grad():
            action = algo.get_action({k: x.float() for k, x in obs.items()})
        np.testing.assert_allclose(action.numpy(), expected, rtol=TOLERANCE, atol=1e-6)

    algo.set_train()
    for expected in case["train"]:
        assert log(algo, raw) == pytest.approx(expected, rel=TOLERANCE)

    sums = state(algo)
    assert sums.keys() == case["manifest"].keys()
    for key, (expected_sum, scale) in case["param_sums"].items():
        x = sums[key].double()
        assert x.abs().sum().item() == pytest.approx(scale, rel=TOLERANCE), key
        assert x.sum().item() == pytest.approx(expected_sum, abs=TOLERANCE * scale), key


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_robomimics_checkpoint_acts_as_in_robomimic(name):
    policy, checkpoint = policy_from_checkpoint(ckpt_path=str(DATA / "checkpoints" / f"{name}.pth"))
    steps = json.loads((DATA / "checkpoints" / f"{name}.json").read_text())["steps"]

    with Centred():
        policy.start_episode()
        for step in steps:
            obs = {k: np.array(x) for k, x in step["obs"].items()}
            np.testing.assert_allclose(policy(obs), step["action"], rtol=TOLERANCE, atol=1e-6)

        policy.start_episode()
        for step in steps:  # two episodes side by side
            obs = {k: np.stack([np.array(x)] * 2) for k, x in step["obs"].items()}
            both = policy(obs, batched_ob=True)
            np.testing.assert_allclose(both, [step["action"]] * 2, rtol=TOLERANCE, atol=1e-6)


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
