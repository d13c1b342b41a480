"""Algorithms on camera images against robomimic 0.5: all its 40 variants.

``data/numbers_images.json.gz`` holds robomimic's numbers as `reference.py` describes them, on
images of 42 x 42 pixels (`reference.with_images`). ``data/images.npz`` holds images of 84 x 84 of
the golden dataset, on which two variants are compared too. Sums of parameters are those of groups:
a layer of a ResNet, else a tensor. Most variants are marked slow.
"""

import re
from typing import Any

import numpy as np
import pytest
import torch
from reference import (
    CAMERA,
    CQL,
    DATA,
    TOLERANCE,
    assert_contains,
    centred_rng,
    fill,
    golden_batch,
    log,
    make,
    numbers,
    observation,
    state,
    variant_config,
    variants,
    with_images,
)
from torch import Tensor

from raymimic.algo import Algo
from raymimic.observations.modality import process_obs_dict
from raymimic.tensors import map_tensor

SIZE = 42
# One of each kind of policy, and an algorithm with targets.
QUICK = ("bc_rgb", "bc_image_crop", "bc_rgb_rnn_gmm", "bc_rgb_transformer", "iql_image_crop")
# As in `test_algos.py`, whose variants have the same names without images.
DEVIATIONS: dict[str, set[str]] = {
    "bc_rgb_gaussian": {"Loss", "Log_Likelihood"},
    "bc_rgb_gmm": {"Loss", "Log_Likelihood"},
    "bc_rgb_rnn_gmm": {"Loss", "Log_Likelihood"},
    "cql_rgb_fixed_entropy": CQL,
    "cql_rgb_fixed_gaussian": CQL | {"Entropy_Weight_Loss"},
    "cql_rgb_fixed_q_gap": CQL | {"Entropy_Weight_Loss"},
    "cql_image_crop": CQL | {"Entropy_Weight_Loss"},
    "iql_image_crop": {"actor/loss", "actor/log_prob"},
    "iql_rgb_clip_adv": {"actor/loss", "actor/log_prob"},
    "iql_rgb_gaussian": {"actor/loss", "actor/log_prob"},
    "iql_rgb_gmm": {"actor/loss", "actor/log_prob"},
    "bcq_rgb_as_gmm": {"Loss", "Action_Sampler/Loss"},
}
# Of sums over thousands of pixels, in float32.
NOISE = 2e-6
# Networks whose running statistics of BatchNorm are not robomimic's, by algorithm.
OWN_STATISTICS = {"cql": "critic"}


def case(name: str, size: int) -> tuple[Algo, dict[str, Any], dict[str, Any]]:
    """The algorithm at robomimic's start, the batch, and robomimic's numbers."""
    config = variant_config(name)
    randomizer = config.observation.encoder.rgb.obs_randomizer_kwargs
    if size != 84 and randomizer:
        randomizer.update(crop_height=size - 4, crop_width=size - 4)
    for params in config.algo.optim_params.values():
        params.update(num_train_batches=3, num_epochs=2)
    expected = numbers("images")[f"{name}_84" if size == 84 else name]
    raw = golden_batch(config, expected["idx"])
    if size == 84:
        raw["obs"][CAMERA] = torch.from_numpy(np.load(DATA / "images.npz")["images"])
    else:
        raw = with_images(raw, size)
    return fill(make(config, image_size=size)), raw, expected


def groups(key: str) -> str:
    """The group of a parameter or a statistic."""
    group = re.sub(r"((?:backbone|nets\.0)\.nets\.\d+)\..*", r"\1", key)
    return f"{group} statistics" if "running" in key else group


def sums(algo: Algo) -> dict[str, list[float]]:
    """Sum, and sum of absolute values, of each group."""
    result: dict[str, list[float]] = {}
    for key, x in state(algo).items():
        if x.is_floating_point():
            own = result.setdefault(groups(key), [0.0, 0.0])
            own[0] += x.double().sum().item()
            own[1] += x.double().abs().sum().item()
    return result


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in variants("images")],
)
def test_computes_what_robomimic_computes(name: str) -> None:
    compare(name, SIZE)


@pytest.mark.parametrize("name", ["bc_rgb", "bc_image_crop"])
def test_computes_what_robomimic_computes_on_the_golden_images(name: str) -> None:
    compare(name, 84)


def compare(name: str, size: int) -> None:
    algo, raw, expected = case(name, size)

    def float32(x: Tensor) -> Tensor:
        return x.float()

    with centred_rng():
        algo.set_eval()
        own = log(algo, raw, validate=True)
        assert_contains(own, expected["validate"], DEVIATIONS.get(name, ()), NOISE)

        algo.reset()
        for i, action in enumerate(expected["actions"]):
            obs = observation(raw, algo.global_config, slice(i, i + 1))
            obs = process_obs_dict(map_tensor(obs, float32), algo.obs_shapes)
            with torch.no_grad():
                found = algo.get_action(obs)
            np.testing.assert_allclose(found.numpy(), action, rtol=TOLERANCE, atol=1e-6)

        algo.set_train()
        if name.startswith("iql"):
            # As in robomimic. raymimic's targets take running statistics (docs/deviations.md).
            algo.nets["critic_target"].train()
        for metrics in expected["train"]:
            assert_contains(log(algo, raw), metrics, noise=NOISE)
    found_sums = sums(algo)
    assert found_sums.keys() == expected["param_sums"].keys()
    for key, (total, scale) in expected["param_sums"].items():
        if key.endswith("statistics") and re.search(OWN_STATISTICS.get(name[:3], "_target"), key):
            continue  # robomimic's targets, and critics of CQL, have others (docs/deviations.md)
        assert found_sums[key][1] == pytest.approx(scale, rel=1e-3), key
        assert found_sums[key][0] == pytest.approx(total, abs=1e-3 * scale), key


@pytest.mark.parametrize("name", variants("images"))
def test_keys_and_shapes_are_robomimics(name: str) -> None:
    with torch.device("meta"):
        algo = make(variant_config(name), device="meta", image_size=84)
    shapes = {key: list(x.shape) for key, x in state(algo).items()}
    assert shapes == variants("images")[name]["state_dict"]
