"""The words of a sweep file: searches, schedulers with their options, metrics."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from raymimic.config.base_config import BaseConfig
from raymimic.errors import ConfigError, did_you_mean

Search = Literal["grid", "random", "optuna"]
Scheduler = Literal["none", "asha", "median", "pbt"]
Mode = Literal["max", "min"]

# The metrics by which a training keeps its best checkpoint. A sweep ranks by no other, because the
# winner is such a checkpoint.
METRICS: dict[str, Mode] = {
    "Rollout/Return": "max",
    "Rollout/Success_Rate": "max",
    "Valid/Loss": "min",
}

# Each scheduler's options: default and lower bound. None stands for the gradient steps between two
# evaluations.
SCHEDULER_OPTIONS: dict[str, dict[str, tuple[Any, float]]] = {
    "none": {},
    "asha": {"grace_steps": (None, 1), "reduction_factor": (3, 2)},
    "median": {"grace_steps": (None, 1), "min_samples": (3, 1)},
    "pbt": {"interval_steps": (None, 1), "quantile": (0.25, 0.01), "resample": (0.25, 0.0)},
}


def measure_of(metric: str) -> str:
    """A metric without the environment: `Rollout/Return` of `Rollout/Return/Walker2d-v5`."""
    return "/".join(metric.split("/")[:2]) if metric.startswith("Rollout/") else metric


def evaluated_epochs(config: BaseConfig) -> list[int]:
    """The epochs after which a training is evaluated."""
    rollout = config.experiment.rollout
    epochs = range(rollout.warmstart + 1, config.train.num_epochs + 1)
    return [e for e in epochs if e % rollout.rate == 0] if rollout.enabled else []


def refuse_unknown(section: str, content: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuses unknown keys.

    Args:
        section: stands before the key in the message, with its dot.
        content: the mapping whose keys are checked.
        known: the allowed keys.

    Raises:
        ConfigError: a key is unknown.
    """
    for key in content:
        if key not in known:
            raise ConfigError(f"unknown key '{section}{key}'{did_you_mean(str(key), known)}")
