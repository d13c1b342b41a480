"""`python -m raymimic.scripts.get_dataset_info --dataset …`: robomimic's name for a summary."""

import argparse
import json
from collections.abc import Iterator

import h5py
import numpy as np

from raymimic.cli.entry import run_script
from raymimic.cli.shared import Parser
from raymimic.data.columns import DemoSource, read_array
from raymimic.data.hdf5 import DemoReader, open_dataset
from raymimic.data.layout import known_length, selected_demos
from raymimic.data.metadata import env_meta_of, filter_keys
from raymimic.errors import DatasetError, printable


def dataset_info(path: str, filter_key: str | None = None, verbose: bool = False) -> Iterator[str]:
    """Describes a dataset: lengths, range of the actions, filter keys, environment, structure.

    Args:
        path: local path or URI.
        filter_key: count the demos of this filter key alone.
        verbose: list the demos of each filter key, and the structure of every demo.

    Yields:
        Lines of text.

    Raises:
        DatasetError: the file cannot be read, or, after all lines, its actions leave [-1, 1].

    Source: robomimic/scripts/get_dataset_info.py.
    """
    with open_dataset(path) as reader:
        names = selected_demos(reader, DemoSource(path, filter_key))
        demos = [reader.known_demo(name) for name in names]
        lengths = [known_length(demo) for demo in demos]
        low, high = _reach(demos)
        if filter_key is not None:
            yield f"NOTE: using filter key {filter_key}"
        yield ""
        yield f"total transitions: {sum(lengths)}"
        yield f"total trajectories: {len(lengths)}"
        yield f"traj length mean: {np.mean(lengths)}"
        yield f"traj length std: {np.std(lengths)}"
        yield f"traj length min: {min(lengths)}"
        yield f"traj length max: {max(lengths)}"
        yield f"action min: {low}"
        yield f"action max: {high}"
        yield from ("", "==== Filter Keys ====")
        problems: list[str] = []
        masks = {} if filter_key is not None else filter_keys(reader, problems)
        yield from (f"filter key {key} with {len(found)} demos" for key, found in masks.items())
        yield from problems if masks or problems else ["no filter keys"]
        if verbose:
            yield from ("", "==== Filter Key Contents ====")
            for key, found in masks.items():
                yield f"filter_key {key} with {len(found)} demos: {found}"
        yield from ("", "==== Env Meta ====")
        yield from json.dumps(env_meta_of(reader), indent=4).splitlines()
        yield from ("", "==== Dataset Structure ====")
        for demo, length in list(zip(demos, lengths, strict=True))[: None if verbose else 1]:
            yield f"episode {demo.name} with {length} transitions"
            yield from _structure(demo)
        yield ""
    if low < -1 or high > 1:
        raise DatasetError(
            f"dataset '{path}' should have actions in [-1, 1], but they reach from {low} to {high}:"
            " raymimic dataset repair --rescale-actions, or"
            " train.action_config.actions.normalization=min_max"
        )


def _reach(demos: list[DemoReader]) -> tuple[float, float]:
    """Least and greatest element of the actions."""
    bounds = []
    for demo in demos:
        actions = read_array(demo, "actions")
        bounds.append((float(actions.min()), float(actions.max())))
    lows, highs = zip(*bounds, strict=True)
    return min(lows), max(highs)


def _structure(demo: DemoReader) -> Iterator[str]:
    """The arrays of a demo, those of observations below their group."""
    group = ""
    for name, item in demo.datasets().items():
        above, _, key = name.partition("/")
        if isinstance(item, h5py.Dataset) and above in ("obs", "next_obs") and key:
            if above != group:
                group = above
                yield f"    key: {above}"
            yield f"        observation key {key} with shape {item.shape}"
        else:
            yield f"    key: {name} with shape {item.shape}"


def main(args: argparse.Namespace) -> None:
    """Prints a summary of the dataset that the arguments name."""
    for line in dataset_info(args.dataset, args.filter_key, args.verbose):
        print(printable(line))


def arguments() -> argparse.ArgumentParser:
    """The parser of robomimic's arguments."""
    parser = Parser(prog="get_dataset_info", description=main.__doc__)
    parser.add_argument("--dataset", required=True, help="HDF5 file, path or URI")
    parser.add_argument("--filter_key", help="count the demos of this filter key alone")
    parser.add_argument("--verbose", action="store_true", help="show all demos")
    return parser


if __name__ == "__main__":
    run_script(arguments(), main)
