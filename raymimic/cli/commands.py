"""The commands of the command line, and the parser of their arguments.

To add a command, write a module with the functions of `Command` and list it in `COMMANDS`. Only the
module of the command that the user gives is imported. Its `run` has its imports inside, so that
`--help` is quick. `shared.py` has the arguments that several commands take.
"""

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

import raymimic
from raymimic.cli.shared import Parser

COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": (
        "raymimic.cli.quickstart",
        "make a dataset, train TD3-BC on it and compare the policy with the data",
    ),
    "train": ("raymimic.cli.train", "train a policy, evaluate it, log it"),
    "tune": ("raymimic.cli.tune", "sweep over settings and seeds, and compare them"),
    "evaluate": ("raymimic.cli.evaluate", "play episodes with a checkpoint's policy"),
    "export": ("raymimic.cli.export", "write a checkpoint that robomimic loads"),
    "config": ("raymimic.cli.config", "print an algorithm's settings, commented"),
    "dataset make": (
        "raymimic.cli.dataset_make",
        "record a dataset of a scripted expert, a shipped policy or a checkpoint",
    ),
    "dataset extract-obs": (
        "raymimic.cli.dataset_extract_obs",
        "play a dataset's states back, and write their observations and images",
    ),
    "dataset playback": (
        "raymimic.cli.dataset_playback",
        "film a dataset, or measure how far its actions lead from its states",
    ),
    "dataset info": ("raymimic.cli.dataset_info", "print a summary of a dataset"),
    "dataset cache": (
        "raymimic.cli.dataset_cache",
        "show or empty the caches of datasets on this machine",
    ),
    "dataset convert": (
        "raymimic.cli.dataset_convert",
        "write a dataset of another format as robomimic's HDF5, and back",
    ),
    "dataset validate": (
        "raymimic.cli.dataset_validate",
        "list every fault of a dataset",
    ),
    "dataset split": (
        "raymimic.cli.dataset_split",
        "hold demos out for validation, as filter keys train and valid",
    ),
    "dataset filter": (
        "raymimic.cli.dataset_filter",
        "write a filter key that names demos: a number of them, successful, long, …",
    ),
    "dataset repair": (
        "raymimic.cli.dataset_repair",
        "write a copy of a dataset without its faults",
    ),
    "dataset merge": ("raymimic.cli.dataset_merge", "join datasets into one file"),
    "mlflow sync": (
        "raymimic.cli.mlflow_sync",
        "deliver the records that a tracking server missed while it was down",
    ),
}
"""Module and help text of each command. A name of two words is a command of a group."""

GROUPS = {"dataset": "make, look at, check and change datasets", "mlflow": "records of runs"}
"""Help text of each group."""


class Command(Protocol):
    """The module of a command."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the command's arguments to its parser, and perhaps a longer description.

        If a command takes `--resume`, the message after an interruption says so.
        """

    def run(self, args: argparse.Namespace) -> None:
        """Runs the command. A `RaymimicError` ends it with one line and exit status 2."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command line.

    Returns:
        the arguments of the command, its `run` as `run_command`, and `traceback` and `verbose`.
    """
    common = Parser(add_help=False)
    common.add_argument(
        "--traceback", action="store_true", help="show where in the code an error arose"
    )
    common.add_argument("--verbose", action="store_true", help="log more")
    parser = Parser(
        prog="raymimic", description="robomimic at cluster scale: offline robot learning on Ray."
    )
    parser.add_argument("--version", action="version", version=f"raymimic {raymimic.__version__}")
    top = parser.add_subparsers(required=True, metavar="COMMAND")
    groups = {"": top}
    chosen = parser
    for words, (module, help_text) in COMMANDS.items():
        group, _, name = words.rpartition(" ")
        if group not in groups:
            group_parser = top.add_parser(group, help=GROUPS[group])
            groups[group] = group_parser.add_subparsers(required=True, metavar="COMMAND")
        subparser = groups[group].add_parser(name, parents=[common], help=help_text)
        if words.split() == list(argv[: len(words.split())]):
            command = cast(Command, import_module(module))
            command.arguments(subparser)
            subparser.set_defaults(run_command=command.run)
            chosen = subparser
    args, unknown = parser.parse_known_args(argv)
    if unknown:  # here, as `parse_args` would name the help of all commands
        chosen.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args
