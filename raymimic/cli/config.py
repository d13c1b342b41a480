"""`raymimic config`: prints an algorithm's settings, commented."""

import argparse

from raymimic.cli.shared import add_import


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `raymimic config`."""
    add_import(parser)
    parser.add_argument("algo", help="algorithm or template, such as td3_bc or bc_rnn")


def run(args: argparse.Namespace) -> None:
    """Prints the settings."""
    from raymimic.config.base_config import import_modules
    from raymimic.config.describe import describe

    import_modules(args.imports)
    print(describe(args.algo))
