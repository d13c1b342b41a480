"""`python -m raymimic.scripts.conversion.convert_robosuite`: robomimic's name for its conversion.

It changes the file itself, as robomimic does; `raymimic dataset convert` writes another.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from raymimic.cli.entry import run_script
from raymimic.cli.shared import Parser, positive
from raymimic.data.columns import DemoSource
from raymimic.data.convert.registry import format_reader
from raymimic.data.curation.masks import local_file, own_group
from raymimic.data.hdf5 import open_dataset
from raymimic.data.in_place import changing, complete_change
from raymimic.data.layout import known_length, selected_demos
from raymimic.data.metadata import read_env_meta
from raymimic.errors import DatasetError
from raymimic.scripts.extract_action_dict import extract_action_dict
from raymimic.scripts.filter_dataset_size import filter_dataset_size
from raymimic.scripts.split_train_val import split_train_val_from_hdf5

_SHARE = 0.1


def write_metadata(dataset: str) -> int:
    """Writes environment and numbers of steps into the attributes of robosuite's `demo.hdf5`.

    Args:
        dataset: local path, which is changed.

    Returns:
        the number of demos.

    Raises:
        DatasetError: the file names no environment, or a demo has no scene.
    """
    place = local_file(dataset)
    complete_change(place)
    lengths = {}
    with open_dataset(place) as reader:
        is_raw = reader.attribute(reader.data, "env", str(reader)) is not None
        for name in selected_demos(reader, DemoSource(dataset)):
            demo = reader.known_demo(name)
            if reader.attribute(demo.group, "model_file", str(demo)) is None:
                raise DatasetError(f"{demo} has no attribute 'model_file', the scene of its states")
            lengths[name] = known_length(demo)
    if is_raw:
        with format_reader("robosuite_raw")(str(place)) as raw:
            env_meta = raw.env_meta
    else:
        env_meta = read_env_meta(place)
    if not env_meta:
        raise DatasetError(
            f"dataset '{dataset}' has neither robosuite's attributes 'env' and 'env_info' of 'data'"
            " nor 'env_args': record it with robosuite's scripts"
        )
    with changing(place) as file:
        data = own_group(file, "data", place)
        data.attrs["env_args"] = json.dumps(env_meta, indent=4)
        data.attrs["total"] = sum(lengths.values())
        for name, length in lengths.items():
            own_group(data, name, place).attrs["num_samples"] = length
    print(f"env_args: {json.dumps(env_meta, indent=4)}")
    return len(lengths)


def main(args: argparse.Namespace) -> None:
    """Makes robosuite's demonstrations a dataset: environment, split, parts of actions, subsets."""
    number = write_metadata(args.dataset)
    np.random.seed(0)
    if int(_SHARE * number):
        split_train_val_from_hdf5(args.dataset, _SHARE)
    else:
        print(f"{number} demos are too few for a split; none is written")
    try:
        extract_action_dict(args.dataset)
    except DatasetError as error:
        print(f"no action_dict: {error}")
    for wanted in args.filter_num_demos:
        filter_dataset_size(args.dataset, wanted)
    print(f"{Path(args.dataset).name} is converted: raymimic dataset extract-obs adds observations")


def arguments() -> argparse.ArgumentParser:
    """The parser of robomimic's arguments, but for absolute actions."""
    parser = Parser(prog="convert_robosuite", description=main.__doc__)
    parser.add_argument("--dataset", required=True, help="robosuite's demo.hdf5, which is changed")
    parser.add_argument(
        "--filter_num_demos", type=positive, nargs="+", default=[], help="sizes of subsets"
    )
    return parser


if __name__ == "__main__":
    run_script(arguments(), main)
