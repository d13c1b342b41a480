"""`raymimic dataset merge`: joins datasets into one file."""

import argparse

from raymimic.cli.shared import add_allow_links, add_import, hdf5_file, json_text
from raymimic.errors import printable
from raymimic.terminal import Counting, counted, shown


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `raymimic dataset merge`."""
    parser.description = (
        "Joins datasets whose demos have the same arrays. For each file, a filter key of its name "
        "has its demos; the file's own filter keys are kept, with that name before them."
    )
    add_import(parser)
    parser.add_argument("paths", nargs="+", metavar="FILE", help="HDF5 files, paths or URIs")
    parser.add_argument(
        "--out", type=hdf5_file, required=True, metavar="NEW.hdf5", help="the file to write"
    )
    parser.add_argument(
        "--env-from",
        metavar="FILE",
        help="the one of the files whose environment is kept where they differ",
    )
    add_allow_links(parser)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")


def run(args: argparse.Namespace) -> None:
    """Writes the new dataset and prints its size and filter keys.

    Raises:
        ConfigError: the arguments contradict each other.
        DatasetError: a file cannot be read, or does not fit the others.
        OutputError: the new file exists, or cannot be written.
    """
    from raymimic.config.base_config import import_modules
    from raymimic.data.curation.merge import merge

    import_modules(args.imports)
    made = merge(args.paths, args.out, args.allow_links, args.env_from, Counting("copied", "demos"))
    if args.json:
        found = {
            "path": str(made.path),
            "demos": made.num_demos,
            "transitions": made.num_transitions,
            "filter_keys": made.filter_keys,
            "notes": list(made.notes),
        }
        print(json_text(found), flush=True)
        return
    for note in made.notes:
        print(printable(note))
    for key, number in made.filter_keys.items():
        print(printable(f"filter key '{key}': {counted(number, 'demo')}"))
    demos, steps = counted(made.num_demos, "demo"), counted(made.num_transitions, "step")
    print(f"dataset: {shown(made.path)}, {demos}, {steps}")
