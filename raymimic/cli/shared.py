"""Arguments that several commands take, and how a command ends and prints JSON."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from raymimic.credentials import masked
from raymimic.errors import ConfigError, OutputError, perhaps
from raymimic.storage import absolute
from raymimic.terminal import counted

if TYPE_CHECKING:
    from raymimic.data.curation.masks import WrittenMasks

CHECKPOINT_HELP = (
    "checkpoint of raymimic or robomimic: path, URI, or a model of MLflow (runs:/…, models:/…)"
)


def leave(status: int, message: str = "") -> NoReturn:
    """Ends the process, with a line on stderr if there is a message."""
    if message:
        with contextlib.suppress(OSError):  # the status stays, even if stderr cannot be written
            print(f"raymimic: {masked(message)}", file=sys.stderr, flush=True)
    raise SystemExit(status)


@contextlib.contextmanager
def writing_results() -> Iterator[None]:
    """Adds the settings of a training's folder to errors of files that cannot be written.

    Raises:
        OutputError: a file cannot be written.
    """
    try:
        yield
    except OutputError as error:
        if "train.output_dir" in str(error):
            raise
        places = "results of a training go to train.output_dir or ray.storage_path"
        raise OutputError(f"{error} ({places})") from error


class Parser(argparse.ArgumentParser):
    """Reports a mistake in the arguments in one line, like all other errors of the user."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with exit status 2; of a mistyped choice, names the nearest."""
        hint = ""
        if choice := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)$", message):
            hint = perhaps(choice[1], re.findall(r"[^', ]+", choice[2]))
        leave(2, f"error: {message}{hint}; see {self.prog} --help")


def check_distinct(outputs: Mapping[str, str | None]) -> None:
    """Makes sure that no two outputs of a command are one file.

    Args:
        outputs: path or URI of each option's file; None: the option is not given.

    Raises:
        ConfigError: two options name the same file.
    """
    options: dict[str, str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        other = options.setdefault(absolute(path), option)
        if other != option:
            raise ConfigError(f"{other} and {option} name the same file, '{path}': name two files")


def add_import(parser: argparse.ArgumentParser) -> None:
    """Adds `--import`, as `args.imports`. The current folder then joins the import path."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="extend",
        nargs="+",
        default=[],
        metavar="MODULE",
        help="Python modules of your own that register algorithms, environments, encoders, formats "
        "or trackers; the current folder is searched too",
    )


def add_actors(parser: argparse.ArgumentParser, shared: str = "episodes") -> None:
    """Adds `--actors`.

    Args:
        parser: of the command.
        shared: the things that the actors share.
    """
    parser.add_argument(
        "--actors",
        "--procs",
        type=natural,
        help=f"Ray actors that share the {shared}; 0: one process, without Ray (default: one per "
        "CPU)",
    )


def add_allow_links(parser: argparse.ArgumentParser) -> None:
    """Adds `--allow-links`."""
    parser.add_argument(
        "--allow-links",
        action="append",
        default=[],
        metavar="DIR",
        help="allow links of the dataset into this folder, besides its own; may be repeated",
    )


def add_set(parser: argparse.ArgumentParser, help_text: str) -> None:
    """Adds `--set KEY=VALUE …`."""
    parser.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help=help_text
    )


def hdf5_file(text: str) -> str:
    """The type of an argument that names an HDF5 file to write."""
    from raymimic.data.hdf5 import HDF5_ENDINGS

    if not text.endswith(HDF5_ENDINGS):
        raise argparse.ArgumentTypeError(f"'{text}' must be an HDF5 file: end its name in .hdf5")
    return text


def natural(text: str) -> int:
    """The type of an argument that is a whole number from 0."""
    return _integer(text, least=0)


def seed_of_32_bits(text: str) -> int:
    """The type of a seed that NumPy's older generators take, as robomimic uses them."""
    return _integer(text, least=0, most=2**32 - 1)


def positive(text: str) -> int:
    """The type of an argument that is a whole number from 1."""
    return _integer(text, least=1)


def resumed(number: int, unit: str) -> Iterator[str]:
    """Tells how much is from an earlier run, if anything is."""
    if number:
        yield f"{number} of the {unit} are from an earlier, interrupted run"


def _integer(text: str, least: int, most: float = math.inf) -> int:
    with contextlib.suppress(ValueError):
        if least <= int(text) <= most:
            return int(text)
    to = f" to {most}" if most < math.inf else ""
    raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from {least}{to}")


def print_masks(written: WrittenMasks, as_json: bool) -> None:
    """Prints the filter keys that a command wrote."""
    if as_json:
        masks = {key: {"demos": len(n), "steps": sum(n)} for key, n in written.lengths.items()}
        print(json_text({"filter_keys": masks, "replaced": list(written.replaced)}), flush=True)
        return
    for key, lengths in written.lengths.items():
        replaced = " (replaced)" if key in written.replaced else ""
        steps = counted(sum(lengths), "step")
        print(f"filter key '{key}'{replaced}: {counted(len(lengths), 'demo')}, {steps}")


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON. JSON knows no NaN and no infinity: they become null."""
    return json.dumps(_finite(value), indent=indent)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    if isinstance(value, float) and value - value != 0.0:
        return None
    return value
