"""`python -m raymimic.scripts.split_train_val --dataset …`: robomimic's name for the split."""

import argparse

import numpy as np

from raymimic.cli.entry import run_script
from raymimic.cli.shared import Parser
from raymimic.data.curation.masks import split_demos


def split_train_val_from_hdf5(
    hdf5_path: str, val_ratio: float = 0.1, filter_key: str | None = None
) -> None:
    """Writes the filter keys `train` and `valid`, drawn by numpy's global generator.

    Args:
        hdf5_path: local path of the dataset, which is changed.
        val_ratio: share of the demos for validation, rounded down; it must give at least one.
        filter_key: the demos to split, into `<filter key>_train` and `<filter key>_valid`.
    """
    written = split_demos(hdf5_path, val_ratio, np.random.shuffle, filter_key)
    train, valid = written.lengths.values()
    if filter_key is not None:
        print(f"using filter key: {filter_key}")
    number = len(train) + len(valid)
    print(f"{len(valid)} validation demonstrations out of {number} total demonstrations.")
    for name, lengths in zip(("train", "valid"), (train, valid), strict=True):
        print(f"Total number of {name} samples: {sum(lengths)}")
        print(f"Average number of {name} samples {np.mean(lengths)}")


def main(args: argparse.Namespace) -> None:
    """Splits the dataset that the arguments name."""
    np.random.seed(0)
    split_train_val_from_hdf5(args.dataset, args.ratio, args.filter_key)


def arguments() -> argparse.ArgumentParser:
    """The parser of robomimic's arguments."""
    parser = Parser(prog="split_train_val", description=main.__doc__)
    parser.add_argument("--dataset", required=True, help="HDF5 file, which is changed")
    parser.add_argument("--filter_key", help="split the demos of this filter key")
    parser.add_argument("--ratio", type=float, default=0.1, help="share for validation")
    return parser


if __name__ == "__main__":
    run_script(arguments(), main)
