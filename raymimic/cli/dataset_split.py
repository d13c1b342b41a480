"""`raymimic dataset split`: holds demos out for validation, as filter keys."""

import argparse

from raymimic.cli.shared import print_masks, seed_of_32_bits


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `raymimic dataset split`."""
    parser.description = (
        "Writes the filter keys `train` and `valid` into the file, as robomimic's split_train_val "
        "does: the same seed names the same demos."
    )
    parser.add_argument("path", help="HDF5 file; it is changed in place")
    parser.add_argument(
        "--ratio",
        type=float,
        default=0.1,
        help="share of the demos for validation, rounded down (default 0.1)",
    )
    parser.add_argument(
        "--filter-key",
        metavar="KEY",
        help="split the demos of this filter key, into <KEY>_train and <KEY>_valid",
    )
    parser.add_argument(
        "--seed", type=seed_of_32_bits, default=0, help="seed of the draw (default 0)"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")


def run(args: argparse.Namespace) -> None:
    """Writes the filter keys and prints their sizes.

    Raises:
        DatasetError: the file cannot be read, or has too few demos.
        OutputError: the file cannot be written.
    """
    import numpy as np

    from raymimic.data.curation.masks import split_demos

    shuffle = np.random.RandomState(args.seed).shuffle
    print_masks(split_demos(args.path, args.ratio, shuffle, args.filter_key), args.json)
