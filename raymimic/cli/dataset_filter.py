"""`raymimic dataset filter`: names demos by a filter key."""

import argparse
import math

from raymimic.cli.shared import positive, print_masks, seed_of_32_bits


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `raymimic dataset filter`."""
    parser.description = (
        "Writes filter keys into the file. Demos are drawn as robomimic's filter_dataset_size "
        "does: the same seed names the same demos. A demo must meet all conditions."
    )
    parser.add_argument("path", help="HDF5 file; it is changed in place")
    parser.add_argument(
        "--demos",
        type=positive,
        nargs="+",
        default=[],
        metavar="N",
        help="draw N demos, as filter key N_demos; several numbers make several filter keys",
    )
    parser.add_argument(
        "--success",
        action="store_true",
        help="demos that solved the task: attribute success, or a reward of 1 where all are 0 or 1",
    )
    for name, kind, what in (
        ("return", _number, "undiscounted return"),
        ("length", positive, "number of steps"),
    ):
        parser.add_argument(f"--min-{name}", type=kind, help=f"least {what}")
        parser.add_argument(f"--max-{name}", type=kind, help=f"greatest {what}")
    parser.add_argument(
        "--filter-key", metavar="KEY", help="choose among the demos of this filter key"
    )
    parser.add_argument(
        "--name", help="name of the filter key (default: such as 50_demos or success_min_length_20)"
    )
    parser.add_argument(
        "--seed", type=seed_of_32_bits, default=0, help="seed of the draw (default 0)"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")


def run(args: argparse.Namespace) -> None:
    """Writes the filter keys and prints their sizes.

    Raises:
        ConfigError: the arguments contradict each other.
        DatasetError: the file cannot be read, or too few demos meet the conditions.
        OutputError: the file cannot be written.
    """
    import numpy as np

    from raymimic.data.curation.masks import Conditions, filter_demos

    conditions = Conditions(
        success=args.success,
        min_return=args.min_return,
        max_return=args.max_return,
        min_length=args.min_length,
        max_length=args.max_length,
    )
    shuffle = np.random.RandomState(args.seed).shuffle
    written = filter_demos(args.path, shuffle, args.demos, conditions, args.filter_key, args.name)
    print_masks(written, args.json)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number")
    return value
