"""`raymimic dataset convert`: a dataset of another format as robomimic's HDF5, and back."""

import argparse

from raymimic.cli.shared import add_import
from raymimic.errors import ConfigError, printable
from raymimic.terminal import Counting, counted, shown


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `raymimic dataset convert`."""
    parser.description = (
        "Writes a dataset of another format as robomimic's HDF5 and prints the source of each "
        "array; with --to, writes the dataset, or robomimic's HDF5, in another format. An unknown "
        "format is an error that lists the known ones."
    )
    add_import(parser)
    parser.add_argument("source", help="the dataset: a file, a folder, or an id")
    parser.add_argument("target", help="HDF5 file to write; with --to, the folder")
    parser.add_argument(
        "--format", metavar="NAME", help="format of the source (default: recognised by its files)"
    )
    parser.add_argument(
        "--to",
        metavar="NAME",
        help="write this format, such as lerobot (default: robomimic's HDF5)",
    )


def run(args: argparse.Namespace) -> None:
    """Converts a dataset.

    Raises:
        DatasetError: the source cannot be read, or the format cannot hold it.
        ConfigError: there is no such format, or the arguments contradict each other.
        OutputError: the target is there already, or cannot be written.
    """
    from raymimic.config.base_config import import_modules
    from raymimic.data.hdf5 import HDF5_ENDINGS

    import_modules(args.imports)
    if args.to is None and not args.target.endswith(HDF5_ENDINGS):
        raise ConfigError(
            f"'{args.target}' must be an HDF5 file: end its name in .hdf5, or add --to"
        )
    convert(args.source, args.target, args.format, args.to)


def convert(
    source: str, target: str, source_format: str | None = None, target_format: str | None = None
) -> None:
    """Converts a dataset, and prints the source of each part.

    Args:
        source: the dataset: a file, a folder, or an id.
        target: the HDF5 file or, with `target_format`, the folder.
        source_format: None: it is recognised.
        target_format: None: robomimic's HDF5.

    Raises:
        DatasetError, ConfigError, OutputError: see `run`.
    """
    from raymimic.data.convert import convert_dataset, export_dataset
    from raymimic.data.curation.copying import check_new

    progress = Counting("converted", "episodes")
    try:
        if target_format is not None:
            made = export_dataset(source, target, target_format, progress, source_format)
        else:
            check_new(target)
            made = convert_dataset(source, target, source_format, progress, replace=False)
    finally:
        progress.clear()
    for line in made.mapping:
        print(printable(line))
    low, high = made.action_range
    print(f"actions: {low:.4g} to {high:.4g}")
    ends = f"{made.terminated:,} end in a done, {made.truncated:,} were truncated"
    print(f"{counted(made.num_demos, 'episode')}, {counted(made.num_transitions, 'step')}; {ends}")
    form = f"a dataset of format '{made.format}'"
    is_export = target_format is not None
    print(f"{form}: {shown(made.path)}" if is_export else f"{form} is now {shown(made.path)}")
