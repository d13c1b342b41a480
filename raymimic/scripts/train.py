"""`python -m raymimic.scripts.train --config … --dataset …`: robomimic's name for training."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from raymimic.config import BaseConfig
    from raymimic.training.trainer import TrainResult


def train(
    config: BaseConfig, device: torch.device | str | None = None, resume: bool = False
) -> TrainResult:
    """Trains a policy, see `raymimic.train`.

    Args:
        config: the config.
        device: `cpu` trains without a GPU; None, or a GPU, as `train.cuda` says.
        resume: go on with the newest run of this name.

    Returns:
        where the results lie.

    Raises:
        RaymimicError: the user can correct it; one sentence tells how.
    """
    import torch

    from raymimic.config import config_factory
    from raymimic.training import trainer
    from raymimic.training.run_folder import find_run

    own = config_factory(config.algo_name, config.to_dict())
    if device is not None and torch.device(device).type == "cpu":
        own.train.cuda = False
    return trainer.train(own, resume=find_run(own) if resume else None)


def main(args: argparse.Namespace) -> None:
    """Trains as the command line of robomimic says, and returns.

    Args:
        args: `config`, `algo`, `name`, `dataset`, `debug` and `resume`, as robomimic's parser gives
            them.

    Raises:
        RaymimicError: the user can correct it; one sentence tells how.
    """
    from raymimic.cli.commands import parse

    given: dict[str, Any] = vars(args)
    words = [
        f"--{key}={given[key]}"
        for key in ("config", "algo", "name", "dataset")
        if given.get(key) is not None
    ]
    flags = [f"--{key}" for key in ("debug", "resume") if given.get(key)]
    command = parse(["train", *words, *flags])
    command.run_command(command)


if __name__ == "__main__":
    from raymimic.cli import main as run_command

    run_command(["train", *sys.argv[1:]])
