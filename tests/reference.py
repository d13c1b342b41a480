"""robomimic 0.5's numbers, and the same starting point for raymimic.

``golden/data/variants_low_dim.json.gz`` holds config and state-dict shapes of robomimic's 80
variants of algorithms on low-dimensional observations, ``variants_images.json.gz`` those of its 40
on images. Both sides start from the same formula for
parameters, and every random draw gives its centre. ``numbers_low_dim.json.gz`` and
``numbers_images.json.gz`` hold robomimic's numbers, on the same batch: the log of one validation
step, three actions, the logs of three training steps and, after them, sum and sum of absolute
values of each parameter.
"""

import gzip
import json
import math
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from raymimic.algo import Algo, HierarchicalAlgo, ValuePlanner, algo_factory
from raymimic.config import BaseConfig, config_factory
from raymimic.data.columns import ColumnRequest, DemoSource
from raymimic.data.reads import Reads
from raymimic.data.sequence import SequenceDataset
from raymimic.data.store import DemoStore
from raymimic.tensors import map_tensor

DATA = Path(__file__).parent / "golden" / "data"
OBS_KEYS = ("object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
SHAPES = dict(zip(OBS_KEYS, ([10], [3], [4], [2]), strict=True))
CAMERA = "agentview_image"
ACTION_DIM = 7
TOLERANCE = 1e-4

# Metrics of CQL that differ on purpose in the validation step (docs/deviations.md): robomimic takes
# likelihoods and samples under the standard deviation of low-noise evaluation, raymimic under the
# trained one.
CQL = {"Loss", "Critic/Critic1_Loss", "Critic/Critic2_Loss", "Actor/Loss"}
# Deliberate differences of the validation step, see `CQL`.
IRIS_GMM = {"Loss", "Planner/Loss", "Planner/ValueNetwork/Loss"}
DEVIATIONS: dict[str, set[str]] = {
    "bc_gaussian": {"Loss", "Log_Likelihood"},
    "bc_gmm": {"Loss", "Log_Likelihood"},
    "bc_rnn_gmm": {"Loss", "Log_Likelihood"},
    "bcq_as_gmm": {"Loss", "Action_Sampler/Loss"},
    "cql_fixed_entropy": CQL,
    "cql_fixed_gaussian": CQL | {"Entropy_Weight_Loss"},
    "cql_fixed_q_gap": CQL | {"Entropy_Weight_Loss"},
    "iql_clip_adv": {"actor/loss", "actor/log_prob"},
    "iql_gaussian": {"actor/loss", "actor/log_prob"},
    "iql_gmm": {"actor/loss", "actor/log_prob"},
    "iris_bcq_gmm": IRIS_GMM | {"Planner/ValueNetwork/Action_Sampler/Loss"},
}


@contextmanager
def centred_rng() -> Iterator[None]:
    """Every random draw of torch gives the centre of its distribution (dropout excepted)."""
    with ExitStack() as patches:
        for (owner, name), centre in _CENTRES.items():
            patches.enter_context(patch.object(owner, name, centre))
        yield


def _made(value: float) -> Callable[..., Tensor]:
    def make(*size: Any, **kwargs: Any) -> Tensor:
        size = kwargs.pop("size", size[0] if size and not isinstance(size[0], int) else size)
        kwargs.pop("generator", None)
        return torch.full(tuple(size), value, **{"dtype": torch.get_default_dtype(), **kwargs})

    return make


def _randint(low: int, high: Any, size: Any = None, **kwargs: Any) -> Tensor:
    if size is None:
        low, high, size = 0, low, high
    kwargs.pop("generator", None)
    return torch.full(tuple(size), (low + high - 1) // 2, **{"dtype": torch.long, **kwargs})


def _normal(mean: Any, std: Any = 1.0, size: Any = None, **kwargs: Any) -> Tensor:
    if size is not None:
        return torch.full(tuple(size), float(mean))
    return mean + torch.zeros_like(std) if isinstance(std, Tensor) else mean.clone()


def _multinomial(p: Tensor, n: int, replacement: bool = False, **kwargs: Any) -> Tensor:
    return p.argmax(-1, keepdim=True).expand(*p.shape[:-1], n)


_CENTRES: dict[tuple[Any, str], Callable[..., Tensor]] = {
    (torch, "randn"): _made(0.0),
    (torch, "rand"): _made(0.5),
    (torch, "randn_like"): lambda x, **_: torch.zeros_like(x),
    (torch, "rand_like"): lambda x, **_: torch.full_like(x, 0.5),
    (torch, "randint"): _randint,
    (torch, "normal"): _normal,
    (torch, "multinomial"): _multinomial,
    (Tensor, "normal_"): lambda x, mean=0.0, std=1.0, **_: x.fill_(mean),
    (Tensor, "uniform_"): lambda x, low=0.0, high=1.0, **_: x.fill_((low + high) / 2),
    (Tensor, "exponential_"): lambda x, rate=1.0, **_: x.fill_(1.0 / rate),
}


@cache
def variants(kind: str = "low_dim") -> dict[str, dict[str, Any]]:
    """``config`` and ``state_dict`` (``"part:key"`` to shape) of each variant."""
    return json.loads(gzip.decompress((DATA / f"variants_{kind}.json.gz").read_bytes()))


@cache
def numbers(kind: str = "low_dim") -> dict[str, dict[str, Any]]:
    """robomimic's numbers of each variant."""
    return json.loads(gzip.decompress((DATA / f"numbers_{kind}.json.gz").read_bytes()))


def variant_config(name: str, **settings: Any) -> BaseConfig:
    """A variant's config; settings are named by dotted keys."""
    known = variants() if name in variants() else variants("images")
    config = known[name]["config"]
    config = config_factory(config["algo_name"], config)
    for key, value in settings.items():
        config.set_path(key, value)
    return config


def small_config(name: str, goals: bool = False, **settings: Any) -> BaseConfig:
    """A variant's config, the U-Net small too; with goals for every part that may have them.

    IRIS chooses from fewer samples.
    """
    if name.startswith("iris"):
        settings["algo.value_planner.num_samples"] = 10
        settings["algo.value_planner.value.critic.num_action_samples_rollout"] = 10
    if name.startswith("diffusion"):
        settings["algo.unet.down_dims"] = [16, 32]
        settings["algo.unet.diffusion_step_embed_dim"] = 16
    config = variant_config(name, **settings)
    if "actor" in config.observation:  # it sees its subgoals
        config.observation.actor.modalities.goal.low_dim = list(OBS_KEYS)
    if goals:
        config.train.goal_mode = "last"
        for path, _ in list(config.observation.leaves()):
            if path.endswith("modalities.goal.low_dim") and not path.startswith("actor."):
                config.observation.set_path(path, list(OBS_KEYS))
    return config


def make(config: BaseConfig, device: str = "cpu", image_size: int | None = None) -> Algo:
    """The algorithm that a config describes, on the observations of the golden dataset."""
    shapes = SHAPES
    if image_size is not None:
        shapes = {CAMERA: [3, image_size, image_size], **SHAPES}
    return algo_factory(config.algo_name, config, shapes, ACTION_DIM, torch.device(device))


def parts(algo: Algo) -> dict[str, Algo]:
    """The algorithms that hold networks, by robomimic's names for them."""
    if not isinstance(algo, HierarchicalAlgo):
        return {"": algo}
    if not isinstance(algo.planner, ValuePlanner):
        return {"planner": algo.planner, "actor": algo.actor}
    planner, value = algo.planner.planner, algo.planner.value_net
    return {"planner": planner, "value": value, "actor": algo.actor}


def state(algo: Algo) -> dict[str, Tensor]:
    """All state-dict entries as ``"part:key"``."""
    return {
        f"{name}:{key}": x
        for name, part in parts(algo).items()
        for key, x in part.nets.state_dict().items()
    }


@torch.no_grad()
def fill(algo: Algo) -> Algo:
    """Sets parameters and BatchNorm's statistics by a formula of their keys."""
    for part in parts(algo).values():
        for key, p in part.nets.named_parameters():
            _fill(key, p)
        for key, x in part.nets.state_dict().items():  # of two names of a statistic the last counts
            if key.endswith(("running_mean", "running_var")):
                _fill(key, x)
    return algo


def _fill(key: str, value: Tensor) -> None:
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    x = torch.rand(value.shape, generator=generator) * 2 - 1
    if key.endswith(("running_var", "temperature")):
        x = x.abs() + 0.5
    elif value.dim() > 1:
        x = x / math.sqrt(value[0].numel())
    else:
        x = x * 0.1
    value.copy_(x)


def with_images(batch: dict[str, Any], size: int) -> dict[str, Any]:
    """A raw batch with camera images `[..., size, size, 3]` that follow from the arm's place."""
    row = torch.arange(size)[:, None, None]
    column, channel = row.transpose(0, 1), torch.arange(3)

    def images(obs: dict[str, Tensor]) -> Tensor:
        place = (obs["robot0_eef_pos"] * 1000).round().long()[..., None, None, :]
        pattern = row * (5 + channel) + column * 3 + row * column // 4
        return ((pattern + 7 * place) % 256).to(torch.uint8)

    groups = [name for name in ("obs", "next_obs") if name in batch]
    return {**batch, **{name: {**batch[name], CAMERA: images(batch[name])} for name in groups}}


@cache
def _store() -> DemoStore:
    return DemoStore.load(
        [DemoSource(str(DATA / "dataset" / "golden_low_dim.hdf5"), "train")],
        ColumnRequest(
            obs_keys=OBS_KEYS, dataset_keys=("actions", "rewards", "dones"), load_next_obs=True
        ),
    )


def golden_batch(
    config: BaseConfig, index: list[int], reads: Reads | None = None
) -> dict[str, Any]:
    """A raw batch of the golden dataset, as robomimic's loader gives it or in exact windows."""
    train = config.train
    dataset = SequenceDataset(
        _store(),
        seq_length=train.seq_length,
        frame_stack=train.frame_stack,
        pad_seq_length=train.pad_seq_length,
        pad_frame_stack=train.pad_frame_stack,
        goal_mode=train.goal_mode,
        load_next_obs=train.hdf5_load_next_obs,
        reads=reads,
    )
    return dataset.gather(torch.tensor(index))


def observation(batch: dict[str, Any], config: BaseConfig, rows: slice) -> dict[str, Tensor]:
    """A policy's inputs at the first step of some rows of a raw batch."""
    frames = config.train.frame_stack
    first = slice(0, frames) if frames > 1 else 0
    return {k: x[rows, first] for k, x in batch["obs"].items()}


def train_step(algo: Algo, raw: dict[str, Any], validate: bool = False) -> dict[str, Tensor]:
    """One step on a raw batch, as the training loop takes it; returns its metrics."""
    raw = map_tensor(raw, lambda x: x)  # nothing may change the batch
    batch = algo.postprocess_batch_for_training(algo.process_batch_for_training(raw), None)
    log = algo.log_info(algo.train_on_batch(batch, epoch=1, validate=validate))
    if not validate:
        algo.on_gradient_step()
    return log


def assert_contains(
    log: dict[str, float],
    expected: dict[str, float],
    deviating: Collection[str] = (),
    noise: float = 1e-7,
) -> None:
    """The log has all of robomimic's metrics (and may have more), equal except some.

    Args:
        log: ours.
        expected: robomimic's.
        deviating: metrics that differ.
        noise: difference that the arithmetic of float32 explains, as in a difference of large
            numbers.
    """
    assert expected.keys() <= log.keys()
    for key, value in expected.items():
        equal = log[key] == pytest.approx(value, rel=TOLERANCE, abs=noise)
        assert equal == (key not in deviating), f"{key}: {log[key]} against {value}"


def log(algo: Algo, raw: dict[str, Any], validate: bool = False) -> dict[str, float]:
    """The metrics of one step, as numbers."""
    return {k: float(x) for k, x in train_step(algo, raw, validate).items()}


def compare(name: str, algo: Algo, raw: dict[str, Any]) -> None:
    """Validates, acts and trains, in this order, and compares with robomimic's numbers.

    Args:
        name: of a variant on low-dimensional observations.
        algo: at robomimic's start.
        raw: the batch of the golden dataset.
    """
    case = numbers()[name]
    with centred_rng():
        algo.set_eval()
        assert_contains(log(algo, raw, validate=True), case["validate"], DEVIATIONS.get(name, ()))

        algo.reset()
        averaged = algo.algo_config.get("ema", {}).get("enabled")  # the copies start at random
        for i, expected in enumerate([] if averaged else case["actions"]):
            obs = observation(raw, algo.global_config, slice(i, i + 1))
            with torch.no_grad():
                action = algo.get_action({k: x.float() for k, x in obs.items()})
            np.testing.assert_allclose(action.numpy(), expected, rtol=TOLERANCE, atol=1e-6)

        algo.set_train()
        for expected in case["train"]:
            assert_contains(log(algo, raw), expected)

    sums = state(algo)
    for key, (expected_sum, scale) in case["param_sums"].items():
        x = sums[key].double()
        assert x.abs().sum().item() == pytest.approx(scale, rel=TOLERANCE), key
        assert x.sum().item() == pytest.approx(expected_sum, abs=TOLERANCE * scale), key
