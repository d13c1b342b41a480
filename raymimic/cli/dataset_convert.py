"""`raymimic dataset convert`: a dataset of another format as robomimic's HDF5, and back."""

import argparse

from raymimic.cli.shared import add_import
from raymimic.errors import ConfigError, printable
from raymimic.terminal import Counting, counted, shown


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `raymimic dataset convert`."""
    parser.description = (
        "Writes a dataset of another format as robomimic's HDF5 and says what became of what; with "
        "--to, writes it, or robomimic's HDF5, in another format."
    )
    add_import(parser)
    parser.add_argument("source", help="the dataset: a file, a folder, or an id")
    parser.add_argument("target", help="the HDF5 file to write; with --to the folder")
    parser.add_argument(
        "--format", metavar="NAME", help="the source's format (default: it is recognised)"
    )
    parser.add_argument(
        "--to", metavar="NAME", help="write this format, such as lerobot; another word lists all"
    )


def run(args: argparse.Namespace) -> None:
    """Converts a dataset.

    Raises:
        DatasetError: the source cannot be read, or the format cannot hold it.
        ConfigError: there is no such format, or the arguments contradict each other.
        OutputError: the target is there already, or cannot be written.
    """
    from raymimic.config.base_config import import_modules
    from raymimic.data.convert import convert_dataset, export_dataset
    from raymimic.data.convert.conversion import HDF5_ENDINGS
    from raymimic.data.curation.copying import check_new
    from raymimic.storage import check_writable

    import_modules(args.imports)
    progress = Counting("converted", "episodes")
    try:
        if args.to is not None:
            made = export_dataset(args.source, args.target, args.to, progress, args.format)
        else:
            if not args.target.endswith(HDF5_ENDINGS):
                raise ConfigError(
                    f"'{args.target}' is to be an HDF5 file: end its name in .hdf5, or add --to"
                )
            check_new(args.target)
            check_writable(args.target)
            made = convert_dataset(args.source, args.target, args.format, progress)
    finally:
        progress.clear()
    for line in made.mapping:
        print(printable(line))
    low, high = made.action_range
    print(f"actions: {low:.4g} to {high:.4g}")
    ends = f"{made.terminated:,} end in a done, {made.truncated:,} were truncated"
    print(f"{counted(made.num_demos, 'episode')}, {counted(made.num_transitions, 'step')}; {ends}")
    form = f"a dataset of format '{made.format}'"
    print(f"{form}: {shown(made.path)}" if args.to else f"{form} is now {shown(made.path)}")
