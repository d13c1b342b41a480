"""`raymimic train`: trains one policy."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from raymimic.cli.shared import (
    add_allow_links,
    add_import,
    add_set,
    json_text,
    natural,
    writing_results,
)
from raymimic.errors import ConfigError
from raymimic.terminal import doing, shown

if TYPE_CHECKING:
    from raymimic.config import BaseConfig

# Settings of `--debug`, as robomimic's: a training of seconds that passes through everything.
_DEBUG: dict[str, Any] = {
    "experiment.epoch_every_n_steps": 3,
    "experiment.validation_epoch_every_n_steps": 3,
    "train.num_epochs": 2,
    "experiment.rollout.rate": 1,
    "experiment.rollout.warmstart": 0,
    "experiment.rollout.n": 2,
    "experiment.rollout.horizon": 10,
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `raymimic train`."""
    parser.description = "Train a policy on Ray, evaluate it while it trains, log it to MLflow."
    add_import(parser)
    parser.add_argument("--config", metavar="FILE.json", help="config of raymimic or robomimic")
    parser.add_argument(
        "--algo", help="algorithm with its default config, or a template, such as td3_bc or bc_rnn"
    )
    parser.add_argument("--dataset", metavar="FILE.hdf5", help="training data, path or URI")
    add_allow_links(parser)
    parser.add_argument("--name", help="name of the run (experiment.name)")
    parser.add_argument(
        "--workers", type=natural, metavar="N", help="number of workers; 0: this process, no Ray"
    )
    add_set(parser, "change a setting, such as algo.alpha=5")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN_DIR",
        help="continue a run; without a folder, the newest run of this name",
    )
    parser.add_argument(
        "--from",
        dest="from_checkpoint",
        metavar="CHECKPOINT",
        help="with --resume: continue from this checkpoint of the run, not from its newest",
    )
    parser.add_argument("--debug", action="store_true", help="train for a few seconds, as a test")
    parser.add_argument(
        "--json", action="store_true", help="print the result as one line of JSON at the end"
    )


def run(args: argparse.Namespace) -> None:
    """Trains, or continues a run, and prints where the results are."""
    with doing("starting"):
        from raymimic.config.base_config import import_modules
        from raymimic.config.templates import config_named
        from raymimic.training.run_folder import config_of_run, find_run
        from raymimic.training.trainer import train

    import_modules(args.imports)
    resume = None
    if args.resume is not None:
        resume = args.resume or find_run(_config(args))
    if resume is None or args.config is not None:
        config = _config(args)
    else:
        # Without a config file, the run's own config holds all that the command line leaves open.
        config = config_of_run(resume, args.imports)
        if args.algo is not None and config_named(args.algo).algo_name != config.algo_name:
            raise ConfigError(f"'{resume}' is a run of {config.algo_name}, not of {args.algo}")
        _apply(config, args)
        _check_address(config, resume, args)
    with writing_results():
        result = train(config, resume=resume, from_checkpoint=args.from_checkpoint)
    if args.json:
        print(json_text(result.to_dict()), flush=True)
        return
    if result.best_checkpoint is not None:
        print(f"best checkpoint: {shown(result.best_checkpoint)}")
    elif result.last_checkpoint is not None:
        print(f"last checkpoint: {shown(result.last_checkpoint)}")
    if result.learning_curve is not None:
        print(f"learning curve:  {shown(result.learning_curve)}")
    if page := result.mlflow_url or result.mlflow_command:
        print(f"MLflow page:     {page}")


def _check_address(config: BaseConfig, run_dir: str, args: argparse.Namespace) -> None:
    """Refuses to join a cluster that only a run's folder names: it could make us run its code.

    Raises:
        ConfigError: the command line does not name it.
    """
    address = config.ray.address
    named = any(assignment.startswith("ray.address=") for assignment in args.set)
    own = (None, "auto", "local", os.environ.get("RAY_ADDRESS"))
    if config.ray.num_workers > 0 and address not in own and not named:
        raise ConfigError(
            f"the run '{run_dir}' names a Ray cluster ({address}), which raymimic joins only if "
            "you name it too: add --set ray.address=… (null: none)"
        )


def _config(args: argparse.Namespace) -> BaseConfig:
    """The config that the arguments describe."""
    from raymimic.config.base_config import config_from_file
    from raymimic.config.templates import config_named

    if args.config is not None:
        config = config_from_file(args.config)
        if args.algo is not None and args.algo != config.algo_name:
            raise ConfigError(
                f"--algo {args.algo} contradicts '{args.config}', which is for {config.algo_name}; "
                "give only one of them"
            )
    elif args.algo is not None:
        config = config_named(args.algo)
    elif args.resume == "":
        raise ConfigError(
            "--resume needs the folder of a run, or --algo (or --config) and --name to find the "
            "newest run of that name"
        )
    else:
        raise ConfigError("nothing to train: give --config FILE.json or --algo NAME")
    _apply(config, args)
    return config


def _apply(config: BaseConfig, args: argparse.Namespace) -> None:
    """Puts the command line's settings into a config."""
    from raymimic.config.base_config import parse_set

    with config.values_unlocked():
        if args.dataset is not None:
            config.train.data = args.dataset
        if args.name is not None:
            config.experiment.name = args.name
        if args.workers is not None:
            config.ray.num_workers = args.workers
        if args.imports:
            config.train.imports = sorted({*config.train.imports, *args.imports})
        if args.allow_links:
            config.train.allow_links = [*config.train.allow_links, *args.allow_links]
        if args.debug:
            for path, value in _DEBUG.items():
                config.set_path(path, value)
        for assignment in args.set:
            config.set_path(*parse_set(assignment))
