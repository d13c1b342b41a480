"""`python -m raymimic.scripts.dataset_states_to_obs_mp`: robomimic's name for several processes.

`dataset_states_to_obs` itself takes several; this is the same with `--num_procs`.
"""

import argparse

from raymimic.cli.entry import run_script
from raymimic.cli.shared import positive
from raymimic.scripts.dataset_states_to_obs import arguments as arguments_of_one
from raymimic.scripts.dataset_states_to_obs import dataset_states_to_obs


def arguments() -> argparse.ArgumentParser:
    """The parser of `dataset_states_to_obs`, and `--num_procs`."""
    parser = arguments_of_one()
    parser.prog = "dataset_states_to_obs_mp"
    parser.add_argument(
        "--num_procs", dest="actors", type=positive, help="processes (default: one per CPU)"
    )
    return parser


if __name__ == "__main__":
    run_script(arguments(), dataset_states_to_obs)
