"""`python -m raymimic.scripts.extract_action_dict --dataset …`: robomimic's name for the parts."""

import argparse

from raymimic.cli.entry import run_script
from raymimic.cli.shared import Parser
from raymimic.data.curation.action_dict import write_action_dict


def extract_action_dict(dataset: str, add_absolute_actions: bool = True) -> None:
    """Takes the actions of a dataset apart, see `write_action_dict`.

    Args:
        dataset: local path, which is changed.
        add_absolute_actions: `actions_abs` too, where demos have it.
    """
    keys = write_action_dict(dataset, add_absolute_actions)
    print(f"action_dict: {', '.join(keys)}")


def main(args: argparse.Namespace) -> None:
    """Writes position, rotation and gripper of the actions into the group action_dict of demos."""
    extract_action_dict(args.dataset)


def arguments() -> argparse.ArgumentParser:
    """The parser of robomimic's arguments."""
    parser = Parser(prog="extract_action_dict", description=main.__doc__)
    parser.add_argument("--dataset", required=True, help="HDF5 file, which is changed")
    return parser


if __name__ == "__main__":
    run_script(arguments(), main)
