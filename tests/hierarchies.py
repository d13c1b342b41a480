"""Small HBC and IRIS algorithms, their configs and batches."""

from typing import Any

import torch
from torch import Tensor

from raymimic.algo import Algo, algo_factory
from raymimic.config import BaseConfig, HBCConfig, IRISConfig

B, T, A = 6, 4, 2
SHAPES = {"far": (3,), "near": (2,)}


def hbc_config(**settings: Any) -> HBCConfig:
    """The actor sees the whole subgoal, two keys, three steps ahead."""
    config = HBCConfig()
    config.algo.planner.subgoal_horizon = 3
    return _small(config, "planner", settings)


def iris_config(**settings: Any) -> IRISConfig:
    config = IRISConfig()
    config.algo.value_planner.planner.subgoal_horizon = 3
    config.algo.value_planner.num_samples = 5
    config.observation.value_planner.value.modalities.obs.low_dim = list(SHAPES)
    return _small(config, "value_planner.planner", settings)


def _small(config: Any, planner: str, settings: dict[str, Any]) -> Any:
    for path, _ in config.algo.leaves():
        if path.endswith("layer_dims"):
            config.algo.set_path(path, (8,))
    config.algo.set_path(f"{planner}.vae.latent_dim", 4)
    config.algo.actor.rnn.enabled = False  # a policy without memory, unless a test wants one
    config.algo.actor.rnn.hidden_dim = 8
    config.algo.actor.rnn.horizon = config.train.seq_length = T
    config.algo.subgoal_update_interval = 3
    for group in ("obs", "subgoal"):
        config.observation.set_path(f"{planner}.modalities.{group}.low_dim", list(SHAPES))
    config.observation.actor.modalities.obs.low_dim = list(SHAPES)
    config.observation.actor.modalities.goal.low_dim = list(SHAPES)
    for key, value in settings.items():
        config.set_path(key.replace("__", "."), value)
    return config


def make(config: BaseConfig, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    algo = algo_factory(config.algo_name, config, SHAPES, A, "cpu")
    algo.set_train()
    return algo


def observations(*size: int) -> dict[str, Tensor]:
    return {k: torch.randn(*size, *shape) for k, shape in SHAPES.items()}


def raw_batch(length: int = T) -> dict[str, Any]:
    """A batch as the loader gives it."""
    return {
        "obs": observations(B, length),
        "next_obs": observations(B, length),
        "actions": torch.rand(B, length, A) * 2 - 1,
        "rewards": torch.rand(B, length),
        "dones": torch.zeros(B, length),
        "index": torch.arange(B),
    }


def processed(algo: Algo, raw: dict[str, Any], stats: Any = None) -> dict[str, Any]:
    return algo.postprocess_batch_for_training(algo.process_batch_for_training(raw), stats)


def step(algo: Algo, seed: int, epoch: int = 1, validate: bool = False) -> dict[str, float]:
    """One step whose batch and noise are functions of the seed."""
    torch.manual_seed(seed)
    info = algo.train_on_batch(processed(algo, raw_batch()), epoch, validate)
    if not validate:
        algo.on_gradient_step()
    return {k: float(x) for k, x in algo.log_info(info).items()}
