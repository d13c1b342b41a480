"""Algorithms against robomimic 0.5: what it computed lies in `data/cases`.

Each case gives a raw batch, the log of one validation step, three actions, the logs of three
training steps on the same batch and the sums of all parameters after them. Both sides start from
the same formula for parameters, and draw the centre of every distribution.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raymimic.algo import Algo, algo_factory
from raymimic.config import config_factory
from raymimic.utils.file_utils import policy_from_checkpoint

DATA = Path(__file__).parent / "data"
CASES = ("bc", "bc_losses", "td3_bc")
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def centred_noise(monkeypatch):
    """The only draw in these algorithms gives its mean."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)


def load_case(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    case = json.loads((DATA / "cases" / f"{name}.json").read_text())
    batch: dict[str, Any] = {}
    with np.load(DATA / "cases" / f"{name}.npz") as arrays:
        for key, array in arrays.items():
            group, _, inner = key.partition("/")
            part = batch.setdefault(group, {}) if inner else batch
            part[inner or group] = torch.from_numpy(array)
    return case, batch


def make_algo(case: dict[str, Any], batch: dict[str, Any]) -> Algo:
    config = config_factory(case["algo_name"], case["config"])
    shapes = {k: x.shape[2:] for k, x in sorted(batch["obs"].items())}
    algo = algo_factory(case["algo_name"], config, shapes, ac_dim=7, device="cpu")
    with torch.no_grad():
        for key, p in algo.nets.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
            x = torch.rand(p.shape, generator=generator) * 2 - 1
            p.copy_(x / p[0].numel() ** 0.5 if p.dim() > 1 else x * 0.1)
    return algo


@pytest.mark.parametrize("name", CASES)
def test_state_dict_has_robomimics_keys_and_shapes(name):
    case, batch = load_case(name)
    state = make_algo(case, batch).nets.state_dict()
    assert {f":{k}": list(x.shape) for k, x in state.items()} == case["manifest"]


@pytest.mark.parametrize("name", CASES)
def test_batch_is_processed_as_by_robomimic(name):
    case, raw = load_case(name)
    algo = make_algo(case, raw)
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
    algo = make_algo(case, raw)

    def step(validate: bool) -> dict[str, float]:
        batch = algo.postprocess_batch_for_training(algo.process_batch_for_training(raw), None)
        info = algo.train_on_batch(batch, epoch=1, validate=validate)
        return {k: float(x) for k, x in algo.log_info(info).items()}

    algo.set_eval()
    assert step(validate=True) == pytest.approx(case["validate"], rel=TOLERANCE)

    algo.reset()
    for i, expected in enumerate(case["actions"]):
        obs = {k: x[i : i + 1, 0].float() for k, x in raw["obs"].items()}
        action = algo.get_action(obs).detach().numpy()
        np.testing.assert_allclose(action, expected, rtol=TOLERANCE, atol=1e-7)

    algo.set_train()
    for expected in case["train"]:
        assert step(validate=False) == pytest.approx(expected, rel=TOLERANCE)
        algo.on_gradient_step()

    for key, x in algo.nets.state_dict().items():
        expected_sum, scale = case["param_sums"][f":{key}"]
        assert x.double().abs().sum().item() == pytest.approx(scale, rel=TOLERANCE)
        assert x.double().sum().item() == pytest.approx(expected_sum, abs=TOLERANCE * scale)


@pytest.mark.parametrize("name", ["bc", "td3_bc"])
def test_robomimics_checkpoint_acts_as_in_robomimic(name):
    policy, checkpoint = policy_from_checkpoint(ckpt_path=str(DATA / "checkpoints" / f"{name}.pth"))
    assert checkpoint["algo_name"] == name
    steps = json.loads((DATA / "checkpoints" / f"{name}.json").read_text())["steps"]

    policy.start_episode()
    for step in steps:
        obs = {k: np.array(x) for k, x in step["obs"].items()}
        np.testing.assert_allclose(policy(obs), step["action"], rtol=TOLERANCE, atol=1e-6)

    batch = {k: np.array([step["obs"][k] for step in steps]) for k in steps[0]["obs"]}
    expected = [step["action"] for step in steps]
    np.testing.assert_allclose(policy(batch, batched_ob=True), expected, rtol=TOLERANCE, atol=1e-6)


@pytest.mark.parametrize("name", ["bc", "td3_bc"])
def test_robomimics_optimizers_load(name):
    checkpoint = torch.load(DATA / "checkpoints" / f"{name}.pth", weights_only=True)
    config = config_factory(name, json.loads(checkpoint["config"]))
    algo = algo_factory(name, config, checkpoint["shape_metadata"]["all_shapes"], 7, "cpu")
    algo.deserialize(checkpoint["model"], load_optimizers=True)

    saved = checkpoint["model"]["optimizers"]
    saved = saved["critic"][1] if name == "td3_bc" else saved["policy"]
    optimizer = algo.optimizers["critic"][1] if name == "td3_bc" else algo.optimizers["policy"]
    state = optimizer.state_dict()["state"]
    assert state[0]["step"].item() == 5
    assert torch.equal(state[0]["exp_avg"], saved["state"][0]["exp_avg"])
