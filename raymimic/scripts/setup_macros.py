"""`python -m raymimic.scripts.setup_macros`: tells of the replacements of robomimic's macros.

robomimic copies `macros.py` to `macros_private.py`, for accounts and switches of one's own.
raymimic reads no such file: nothing is written.
"""

import argparse

from raymimic.cli.entry import run_script
from raymimic.cli.shared import Parser

_TOLD = """\
raymimic needs no private macros, and nothing was written. In their place:
  DEBUG                        set raymimic.macros.DEBUG = True in your script
  WANDB_API_KEY, WANDB_ENTITY  metrics go to MLflow: MLFLOW_TRACKING_URI names the server
  VISUALIZE_RANDOMIZER         raymimic dataset info FILE --images --config CONFIG.json"""


def main(args: argparse.Namespace) -> None:
    """Tells of the replacements of robomimic's private macros."""
    print(_TOLD)


def arguments() -> argparse.ArgumentParser:
    """The parser; there are no arguments."""
    return Parser(prog="setup_macros", description=main.__doc__)


if __name__ == "__main__":
    run_script(arguments(), main)
