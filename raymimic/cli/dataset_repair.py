"""`raymimic dataset repair`: writes a copy of a dataset without its faults."""

import argparse
from typing import Literal

from raymimic.cli.shared import add_allow_links, add_import, hdf5_file, json_text
from raymimic.errors import printable
from raymimic.terminal import Counting, counted, shown


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `raymimic dataset repair`."""
    parser.description = (
        "Writes a copy without the demos in which `raymimic dataset validate` finds an error, and "
        "prints each change. The source is not changed."
    )
    add_import(parser)
    parser.add_argument("path", help="HDF5 file, path or URI")
    parser.add_argument(
        "--out", type=hdf5_file, required=True, metavar="NEW.hdf5", help="the file to write"
    )
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--clip-actions", action="store_true", help="clip actions to [-1, 1]")
    actions.add_argument(
        "--rescale-actions",
        action="store_true",
        help="divide each component of the actions that leaves [-1, 1] by its greatest magnitude; "
        "the environment then needs them multiplied again",
    )
    add_allow_links(parser)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")


def run(args: argparse.Namespace) -> None:
    """Writes the new dataset and prints the changes.

    Raises:
        DatasetError: the file cannot be read, or nothing of it trains.
        OutputError: the new file exists, or cannot be written.
    """
    from raymimic.config.base_config import import_modules
    from raymimic.data.curation.repair import repair

    import_modules(args.imports)
    how: Literal["clip", "rescale"] | None = "rescale" if args.rescale_actions else None
    how = "clip" if args.clip_actions else how
    made = repair(args.path, args.out, args.allow_links, how, Counting("looked at", "demos"))
    if args.json:
        found = {
            "path": str(made.path),
            "demos": made.num_demos,
            "transitions": made.num_transitions,
            "changes": list(made.changes),
            "warnings": [vars(fault) for fault in made.left.faults],
        }
        print(json_text(found), flush=True)
        return
    for change in made.changes or ["nothing: the source has no error"]:
        print(printable(f"changed: {change}"))
    demos, steps = counted(made.num_demos, "demo"), counted(made.num_transitions, "step")
    print(f"dataset: {shown(made.path)}, {demos}, {steps}")
