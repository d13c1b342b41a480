"""`python -m raymimic.scripts.conversion.convert_d4rl --env …`: robomimic's name for D4RL's data.

Neither gym nor d4rl is needed: the file is downloaded, and `raymimic dataset convert` reads it.
"""

import argparse

from raymimic import storage
from raymimic.cli.dataset_convert import convert
from raymimic.cli.entry import run_script
from raymimic.cli.shared import Parser
from raymimic.data.convert.d4rl import LOCOMOTION
from raymimic.data.download import download
from raymimic.errors import ConfigError

D4RL_SERVER = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
_VERSIONS = ("1", "2")  # whose files have regular names


def main(args: argparse.Namespace) -> None:
    """Downloads a dataset of D4RL into FOLDER/d4rl, and writes FOLDER/d4rl/converted/ENV.hdf5."""
    folder = storage.expanded(args.folder) / "d4rl"
    named = LOCOMOTION.fullmatch(args.env)
    name = f"{named[1]}_{named[2].replace('-', '_')}-v{named[3]}" if named else args.env
    raw = folder / f"{name}.hdf5"
    if not raw.exists():
        if named is None or named[3] not in _VERSIONS:
            raise ConfigError(
                f"--env '{args.env}' is no data set that is downloaded, as hopper-medium-v2 is: "
                f"put D4RL's file at '{raw}', from where it is converted"
            )
        download(f"{D4RL_SERVER}/gym_mujoco_v{named[3]}/{raw.name}", raw)
    convert(str(raw), str(folder / "converted" / f"{args.env.replace('-', '_')}.hdf5"), "d4rl")


def arguments() -> argparse.ArgumentParser:
    """The parser of robomimic's arguments."""
    parser = Parser(prog="convert_d4rl", description=main.__doc__)
    parser.add_argument("--env", required=True, help="such as walker2d-medium-expert-v2")
    parser.add_argument("--folder", default="datasets", help="folder of d4rl (datasets)")
    return parser


if __name__ == "__main__":
    run_script(arguments(), main)
