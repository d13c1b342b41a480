"""The command line: one module per command, listed in `commands.py`."""

from raymimic.cli.entry import main

__all__ = ["main"]
