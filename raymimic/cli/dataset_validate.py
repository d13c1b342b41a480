"""`raymimic dataset validate`: lists everything that is wrong with a dataset."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from raymimic.cli.shared import add_allow_links, add_import, json_text
from raymimic.errors import DatasetError, printable
from raymimic.storage import is_uri
from raymimic.terminal import Counting, counted

if TYPE_CHECKING:
    from raymimic.data.curation.validate import Fault, Validation


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `raymimic dataset validate`."""
    parser.description = (
        "Reads all of a dataset and lists its faults: errors, for which a training is refused, and "
        "warnings. Status 2 means that there are errors."
    )
    add_import(parser)
    parser.add_argument("path", help="HDF5 file, path or URI")
    parser.add_argument(
        "--config",
        metavar="FILE.json",
        help="check only the parts of the file that this config reads (default: all parts)",
    )
    add_allow_links(parser)
    parser.add_argument("--json", action="store_true", help="print all faults as one line of JSON")


def run(args: argparse.Namespace) -> None:
    """Prints all faults of a dataset.

    Raises:
        DatasetError: the file cannot be read, or a training would be refused.
    """
    from raymimic.config.base_config import config_from_file, import_modules
    from raymimic.data.curation.validate import Fault, Validation, validate
    from raymimic.training.trainable import demand_of, refusal

    import_modules(args.imports)
    config = None if args.config is None else config_from_file(args.config)
    try:
        demand = None if config is None else demand_of(config, args.path, args.allow_links)
        found = validate(args.path, args.allow_links, demand, Counting("looked at", "demos"))
        if config is not None and not found.errors:
            found = refusal(config, args.path, args.allow_links, found)
    except DatasetError as error:
        if args.json:
            faults = (Fault("file", str(error), True),)
            print(json_text(Validation(Path(args.path), faults).to_dict()), flush=True)
        raise
    if args.json:
        print(json_text(found.to_dict()), flush=True)
    else:
        for line in _lines(found.faults):
            print(printable(line))
    if not found.errors:
        if not args.json:
            print(printable(f"{found.path}: {_count(found)}; it trains"))
        return
    raise DatasetError(
        f"dataset '{found.path}' does not train: {_count(found)}{_remedy(args, found)}"
    )


def _remedy(args: argparse.Namespace, found: Validation) -> str:
    """The command that repairs a file; empty where the config is at fault alone."""
    if all(fault.kind == "config" for fault in found.errors):
        return ""
    target = f"{found.path.stem}_repaired.hdf5"
    if not is_uri(args.path):
        target = str(Path(args.path).with_name(target))
    return "; try " + shlex.join(["raymimic", "dataset", "repair", args.path, "--out", target])


def _count(found: Validation) -> str:
    errors = len(found.errors)
    warnings = len(found.faults) - errors
    demos = counted(len(found.demos), "demo")
    return f"{demos}, {counted(errors, 'error')}, {counted(warnings, 'warning')}"


def _lines(faults: tuple[Fault, ...]) -> Iterator[str]:
    """A line for each kind of fault of each array, with all demos that have it; errors first."""
    groups: dict[tuple[bool, str, str], list[Fault]] = {}
    for fault in sorted(faults, key=lambda fault: not fault.is_error):
        own = fault.key or ("" if fault.demo else fault.text)
        groups.setdefault((fault.is_error, fault.kind, own), []).append(fault)
    for (is_error, _, _), alike in groups.items():
        first = alike[0]
        line = "error: " if is_error else "warning: "
        line += f"demo '{first.demo}': {first.text}" if first.demo else first.text
        if others := [fault.demo for fault in alike[1:]]:
            line += f"; the same in {', '.join(others)}"
        yield line
