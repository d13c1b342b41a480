"""The command line. Nothing heavy is imported before a command needs it."""

import argparse
import contextlib
import errno
import json
import logging
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import raymimic
from raymimic.errors import ConfigError, RaymimicError

if TYPE_CHECKING:
    from raymimic.config import BaseConfig
    from raymimic.sweep.spec import SweepSpec


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and exits: 0 when it succeeded, 2 for an error that the user can cure.

    Args:
        argv: arguments, those of the process unless given.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("raymimic").setLevel(logging.INFO if args.verbose else logging.WARNING)
    asked: list[int] = []

    def terminated(signum: int, frame: Any) -> NoReturn:
        # As `kill` asks, but through the `finally` clauses that close records. Ray raises another
        # SystemExit in the place of this one where it is waiting.
        asked.append(signum)
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, terminated)
    # Modules of the user's own are found where the command runs, as with `python -m`.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        args.command(args)
        _exit(0)
    except KeyboardInterrupt:
        _exit(130, "interrupted; --resume goes on from the last checkpoint")
    except SystemExit:
        if not asked:
            raise
        _exit(128 + asked[0], "terminated; --resume goes on from the last checkpoint")
    except BrokenPipeError:
        sys.stderr.close()
        _exit(1)
    except RaymimicError as error:
        _explain(str(error), args.traceback)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _explain(f"the disk is full: {error.filename or error}; free some space", args.traceback)


class _Parser(argparse.ArgumentParser):
    """Says a mistake in the arguments in one line, as all other mistakes are said."""

    def error(self, message: str) -> NoReturn:
        """Ends the process."""
        _exit(2, f"error: {message}; see {self.prog} --help")


def _explain(message: str, with_traceback: bool) -> NoReturn:
    if with_traceback:
        traceback.print_exc()
    _exit(2, f"error: {message}")


def _exit(status: int, message: str = "") -> NoReturn:
    if message:
        print(f"raymimic: {message}", file=sys.stderr, flush=True)
    raise SystemExit(status)


# -- commands --


def _train(args: argparse.Namespace) -> None:
    from raymimic.training.run_folder import config_of_run, find_run
    from raymimic.training.trainer import train

    resume = None
    if args.resume is not None:
        resume = args.resume or find_run(_train_config(args))
    if resume is None or args.config is not None:
        config = _train_config(args)
    else:
        # Without a config file, what the command line leaves open is as the run has it.
        config = config_of_run(resume)
        if args.algo not in (None, config.algo_name):
            raise ConfigError(f"'{resume}' is a run of {config.algo_name}, not of {args.algo}")
        _apply(config, args)
    result = train(config, resume=resume)
    if args.json:
        print(json.dumps(_finite(result.to_dict())), flush=True)
        return
    if result.best_checkpoint is not None:
        print(f"best checkpoint: {result.best_checkpoint}")
    if result.learning_curve is not None:
        print(f"learning curve:  {result.learning_curve}")
    if result.mlflow_command is not None:
        print(f"MLflow page:     {result.mlflow_command}")


def _train_config(args: argparse.Namespace) -> "BaseConfig":
    """The config that the arguments describe."""
    from raymimic.config.base_config import config_factory, config_from_file, import_modules

    import_modules(args.imports)
    if args.config is not None:
        config = config_from_file(args.config)
        if args.algo is not None and args.algo != config.algo_name:
            raise ConfigError(
                f"--algo {args.algo} contradicts '{args.config}', which is for {config.algo_name}; "
                "give only one of them"
            )
    elif args.algo is not None:
        config = config_factory(args.algo)
    elif args.resume == "":
        raise ConfigError(
            "--resume needs the folder of a run, or --algo (or --config) and --name to find the "
            "newest run of that name"
        )
    else:
        raise ConfigError("what shall be trained? give --config FILE.json or --algo NAME")
    _apply(config, args)
    return config


def _apply(config: "BaseConfig", args: argparse.Namespace) -> None:
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
        if args.debug:
            for path, value in _DEBUG.items():
                config.set_path(path, value)
        for assignment in args.set:
            config.set_path(*parse_set(assignment))


# A training of seconds that passes through everything, as robomimic's --debug.
_DEBUG: dict[str, Any] = {
    "experiment.epoch_every_n_steps": 3,
    "experiment.validation_epoch_every_n_steps": 3,
    "train.num_epochs": 2,
    "experiment.rollout.rate": 1,
    "experiment.rollout.warmstart": 0,
    "experiment.rollout.n": 2,
    "experiment.rollout.horizon": 10,
}


def _tune(args: argparse.Namespace) -> None:
    from raymimic.config.base_config import import_modules

    for values in (args.imports, args.set):  # which take all words behind them
        if args.sweep is None and values and values[-1].endswith((".yaml", ".yml")):
            args.sweep = values.pop()
    import_modules(args.imports)
    spec = _sweep(args)
    # The trials' processes import them too.
    train = spec.base_config["train"]
    train["imports"] = sorted({*train["imports"], *args.imports})
    if args.dry_run:
        from raymimic.sweep.plan import plan

        planned = plan(spec)
        if args.json:
            print(json.dumps(_finite(planned.to_dict())), flush=True)
        else:
            print("\n".join(planned.lines()), flush=True)
        return
    from raymimic.sweep.tuner import run

    result = run(spec, resume=args.resume)
    if args.json:
        print(json.dumps(_finite(result.to_dict())), flush=True)


def _sweep(args: argparse.Namespace) -> "SweepSpec":
    """The sweep that the arguments describe."""
    from raymimic.config.base_config import parse_set
    from raymimic.sweep.spec import SweepSpec

    changes = [parse_set(assignment) for assignment in args.set]
    if args.dataset is not None:
        changes.append(("dataset", args.dataset))
    if (args.sweep is None) == (args.configs is None):
        raise ConfigError("what shall be tuned? give a sweep's YAML file, or --configs FOLDER")
    if args.max_concurrent is not None:
        changes.append(("max_concurrent", args.max_concurrent))
    if args.configs is not None:
        from raymimic.sweep.config_folder import configs_in

        return configs_in(args.configs, changes)
    return SweepSpec.from_file(args.sweep, changes)


def _evaluate(args: argparse.Namespace) -> None:
    from raymimic.config.base_config import import_modules
    from raymimic.rollout.report import evaluate_checkpoint, report_lines

    import_modules(args.imports)
    report = evaluate_checkpoint(
        args.checkpoint,
        episodes=args.episodes,
        num_actors=args.actors,
        seed=args.seed,
        horizon=args.horizon,
        env=args.env,
        video=args.video,
        imports=args.imports,
    )
    for line in report_lines(report, every_episode=True):
        print(line)
    if args.json is not None:
        from raymimic.utils.storage import write_bytes

        write_bytes(args.json, json.dumps(_finite(report.to_dict()), indent=2).encode())
        print(f"written to {args.json}")


def _export(args: argparse.Namespace) -> None:
    from raymimic.config.base_config import import_modules
    from raymimic.utils.export import export_checkpoint

    import_modules(args.imports)
    export_checkpoint(args.checkpoint, args.out, force=args.force)
    print(f"written to {args.out}, for robomimic 0.5")


def _config(args: argparse.Namespace) -> None:
    from raymimic.config.base_config import import_modules
    from raymimic.config.describe import describe

    import_modules(args.imports)
    print(describe(args.algo))


def _dataset_make(args: argparse.Namespace) -> None:
    from raymimic.data.make import make_dataset

    made = make_dataset(
        args.name,
        args.out or f"{args.name.replace('-', '_')}.hdf5",
        n_expert=args.expert,
        n_medium=args.medium,
        num_procs=args.procs,
        seed=args.seed,
    )
    print(f"dataset: {made.path}")
    for level, transitions in made.transitions.items():
        returns = made.returns[level]
        print(
            f"{level}: {transitions:,} transitions in {len(returns)} episodes, "
            f"mean return {sum(returns) / len(returns):.1f}"
        )


def _dataset_info(args: argparse.Namespace) -> None:
    from raymimic.data.schema import read_metadata

    meta = read_metadata(args.path)
    print(f"{meta.path}: {meta.num_demos} demos, {meta.num_transitions:,} transitions")
    print(f"environment: {json.dumps(meta.env_meta) if meta.env_meta else 'not stated'}")
    for key, shape in sorted(meta.obs_shapes.items()):
        print(f"obs/{key} {list(shape)}")
    for key, demos in sorted(meta.filter_keys.items()):
        print(f"filter key '{key}': {len(demos)} demos")
    for key, value in sorted(meta.attrs.items()):
        print(f"{key}: {value}")


def _mlflow_sync(args: argparse.Namespace) -> None:
    from raymimic.errors import OutputError
    from raymimic.tracking.mlflow_tracker import sync

    report = sync(Path(args.run_dir))
    print(f"delivered {report.delivered} records to MLflow run {report.run_id}")
    if report.reason:
        raise OutputError(
            f"the records of '{args.run_dir}' are not complete in MLflow ({report.reason}); "
            f"{report.left} of them wait there, and nothing is lost: try again later"
        )


def _quickstart(args: argparse.Namespace) -> None:
    from raymimic.quickstart import quickstart

    quickstart(Path(args.output_dir), seed=args.seed, fast=args.fast)


# -- arguments --


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument(
        "--traceback", action="store_true", help="show where in the code an error arose"
    )
    common.add_argument("--verbose", action="store_true", help="say more about what is done")
    imports = _Parser(add_help=False)
    imports.add_argument(
        "--import",
        dest="imports",
        action="extend",
        nargs="+",
        default=[],
        metavar="MODULE",
        help="Python modules that register algorithms, configs or environments of your own",
    )

    parser = _Parser(
        prog="raymimic", description="robomimic at cluster scale: offline robot learning on Ray."
    )
    parser.add_argument("--version", action="version", version=f"raymimic {raymimic.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    quickstart = commands.add_parser(
        "quickstart",
        parents=[common],
        help="make a dataset, train TD3-BC on it and compare the policy with the data",
    )
    quickstart.add_argument("--output-dir", default="quickstart", help="folder for all results")
    quickstart.add_argument("--seed", type=_natural, default=1, help="seed of the training")
    quickstart.add_argument(
        "--fast", action="store_true", help="a tiny dataset and training, to see it all work"
    )
    quickstart.set_defaults(command=_quickstart)

    train = commands.add_parser(
        "train",
        parents=[common, imports],
        help="train a policy, evaluate it, log it",
        description="Train a policy on Ray, evaluate it while it trains, log it to MLflow.",
    )
    add_train_arguments(train)
    train.set_defaults(command=_train)

    tune = commands.add_parser(
        "tune",
        parents=[common, imports],
        help="sweep over settings and seeds, and compare them",
        description="Train many settings with several seeds each on Ray Tune, and compare them.",
    )
    tune.add_argument("sweep", nargs="?", metavar="SWEEP.yaml", help="what to try: a sweep file")
    tune.add_argument(
        "--configs", metavar="FOLDER", help="try each JSON config of a folder, as robomimic writes"
    )
    tune.add_argument("--dataset", metavar="FILE.hdf5", help="training data, path or URI")
    tune.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change a key of the sweep or of its config, such as budget.trials=8",
    )
    either = tune.add_mutually_exclusive_group()
    either.add_argument(
        "--resume", action="store_true", help="go on with the newest sweep of this name"
    )
    either.add_argument(
        "--dry-run", action="store_true", help="print the trials and the estimated cost"
    )
    tune.add_argument(
        "--max-concurrent", type=_positive, metavar="N", help="trials at a time, at most"
    )
    tune.add_argument(
        "--json", action="store_true", help="end with one line of JSON that says what came out"
    )
    tune.set_defaults(command=_tune)

    evaluate = commands.add_parser(
        "evaluate", parents=[common, imports], help="play episodes with a checkpoint's policy"
    )
    evaluate.add_argument("checkpoint", help="checkpoint of raymimic or robomimic, path or URI")
    evaluate.add_argument("--episodes", type=_positive, default=50, help="how many (default 50)")
    evaluate.add_argument(
        "--actors", type=_natural, default=2, help="Ray actors; 0: this process (default 2)"
    )
    evaluate.add_argument("--seed", type=_natural, default=0, help="of the episodes (default 0)")
    evaluate.add_argument("--horizon", type=_positive, help="longest episode, in steps")
    evaluate.add_argument("--env", help="another environment than the checkpoint's")
    evaluate.add_argument("--video", metavar="OUT.mp4", help="film the first episode")
    evaluate.add_argument("--json", metavar="OUT.json", help="write all numbers there")
    evaluate.set_defaults(command=_evaluate)

    export = commands.add_parser(
        "export",
        parents=[common, imports],
        help="write a checkpoint that robomimic loads",
        description="Write a checkpoint that robomimic 0.5 loads, plays and trains further.",
    )
    export.add_argument("checkpoint", help="checkpoint of raymimic or robomimic, path or URI")
    export.add_argument("out", metavar="OUT.pth", help="where the new one goes, path or URI")
    export.add_argument("--force", action="store_true", help="replace a file that is there")
    export.set_defaults(command=_export)

    config = commands.add_parser(
        "config", parents=[common, imports], help="print an algorithm's settings, commented"
    )
    config.add_argument("algo", help="name of the algorithm, such as td3_bc")
    config.set_defaults(command=_config)

    dataset = commands.add_parser("dataset", help="make or look at a dataset")
    dataset_commands = dataset.add_subparsers(required=True, metavar="COMMAND")
    make = dataset_commands.add_parser(
        "make", parents=[common], help="record a dataset with policies that come with raymimic"
    )
    make.add_argument("name", help="such as walker2d-medium-expert")
    make.add_argument("--out", help="HDF5 file to write (default: <name>.hdf5 here)")
    make.add_argument(
        "--expert", type=_natural, default=100_000, help="least transitions of the expert"
    )
    make.add_argument(
        "--medium", type=_natural, default=100_000, help="least transitions of the medium policy"
    )
    make.add_argument("--procs", type=_positive, help="processes (default: one per CPU)")
    make.add_argument("--seed", type=_natural, default=0, help="of the episodes (default 0)")
    make.set_defaults(command=_dataset_make)
    info = dataset_commands.add_parser("info", parents=[common], help="what a dataset holds")
    info.add_argument("path", help="HDF5 file, path or URI")
    info.set_defaults(command=_dataset_info)

    mlflow = commands.add_parser("mlflow", help="records of runs")
    mlflow_commands = mlflow.add_subparsers(required=True, metavar="COMMAND")
    sync = mlflow_commands.add_parser(
        "sync", parents=[common], help="deliver what a tracking server missed while it was down"
    )
    sync.add_argument("run_dir", nargs="?", default=".", help="folder of the run (default: here)")
    sync.set_defaults(command=_mlflow_sync)
    return parser


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `raymimic train`."""
    parser.add_argument("--config", metavar="FILE.json", help="config of raymimic or robomimic")
    parser.add_argument("--algo", help="algorithm with its default config, such as td3_bc")
    parser.add_argument("--dataset", metavar="FILE.hdf5", help="training data, path or URI")
    parser.add_argument("--name", help="name of the run (experiment.name)")
    parser.add_argument(
        "--workers", type=_natural, metavar="N", help="training workers; 0: this process, no Ray"
    )
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting, such as algo.alpha=5",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN_DIR",
        help="go on with a run; without a folder, with the newest run of this name",
    )
    parser.add_argument("--debug", action="store_true", help="a training of seconds")
    parser.add_argument(
        "--json", action="store_true", help="end with one line of JSON that says what came out"
    )


def _natural(text: str) -> int:
    return _integer(text, least=0)


def _positive(text: str) -> int:
    return _integer(text, least=1)


def _integer(text: str, least: int) -> int:
    with contextlib.suppress(ValueError):
        if int(text) >= least:
            return int(text)
    raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from {least}")


def _finite(value: Any) -> Any:
    """JSON knows no NaN: such numbers become null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    if isinstance(value, float) and value - value != 0.0:
        return None
    return value


if __name__ == "__main__":
    main()
