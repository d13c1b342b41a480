"""Ends robomimic's scripts as the command line ends."""

import contextlib
from collections.abc import Iterator

from raymimic.cli.shared import leave
from raymimic.errors import RaymimicError


@contextlib.contextmanager
def explaining() -> Iterator[None]:
    """Ends the process with one line and status 2 at an error that the user can cure."""
    try:
        yield
    except RaymimicError as error:
        leave(2, f"error: {error}")
