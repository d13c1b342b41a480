"""Ends robomimic's scripts as the command line ends."""

import contextlib
import sys
from collections.abc import Iterator

from raymimic.cli.shared import leave
from raymimic.errors import RaymimicError
from raymimic.terminal import write_to_nowhere


@contextlib.contextmanager
def explaining() -> Iterator[None]:
    """Ends the process with one line and status 2 at an error that the user can cure."""
    try:
        yield
    except RaymimicError as error:
        leave(2, f"error: {error}")
    except BrokenPipeError:  # the reader of the lines has ended
        write_to_nowhere(sys.stdout.fileno())  # Python would flush to it at exit
        leave(1)
