"""`python -m raymimic.scripts.filter_dataset_size --dataset …`: robomimic's name for subsets."""

import argparse

import numpy as np

from raymimic.cli.entry import run_script
from raymimic.cli.shared import Parser
from raymimic.data.curation.masks import filter_demos


def filter_dataset_size(
    hdf5_path: str,
    num_demos: int,
    input_filter_key: str | None = None,
    output_filter_key: str | None = None,
) -> None:
    """Writes a filter key of some demos, drawn by numpy's global generator.

    Args:
        hdf5_path: local path of the dataset, which is changed.
        num_demos: how many.
        input_filter_key: the demos to choose from; its name stands before the new key's.
        output_filter_key: name of the new key, `<num_demos>_demos` by default.
    """
    written = filter_demos(
        hdf5_path,
        np.random.shuffle,
        [num_demos],
        filter_key=input_filter_key,
        name=output_filter_key,
    )
    if input_filter_key is not None:
        print(f"using filter key: {input_filter_key}")
    (lengths,) = written.lengths.values()
    print(f"Total number of subset samples: {sum(lengths)}")
    print(f"Average number of subset samples {np.mean(lengths)}")


def main(args: argparse.Namespace) -> None:
    """Writes the filter keys that the arguments name."""
    np.random.seed(0)
    for number in args.num_demos:
        filter_dataset_size(args.dataset, number, args.input_filter_key, args.output_filter_key)


def arguments() -> argparse.ArgumentParser:
    """The parser of robomimic's arguments."""
    parser = Parser(prog="filter_dataset_size", description=main.__doc__)
    parser.add_argument("--dataset", required=True, help="HDF5 file, which is changed")
    parser.add_argument("--input_filter_key", help="choose among the demos of this filter key")
    parser.add_argument("--num_demos", type=int, nargs="+", required=True, help="how many")
    parser.add_argument("--output_filter_key", help="name of the new filter key")
    return parser


if __name__ == "__main__":
    run_script(arguments(), main)
