"""Waiting for a condition, and finding the processes of a command."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

DEADLINE_S = 600.0


def wait_for(
    condition: Callable[[], object],
    what: str,
    seconds: float = DEADLINE_S,
    interval_s: float = 0.05,
) -> None:
    """Returns once the condition holds; fails with `what` if it does not hold in time.

    Asking takes at most a fifth of a core, which the processes that are waited for need.
    """
    begin = time.monotonic()
    while True:
        asked = time.monotonic()
        if condition():
            return
        now = time.monotonic()
        assert now < begin + seconds, f"waited {seconds} s for {what}"
        time.sleep(max(interval_s, 4 * (now - asked)))


def pids(marker: str, title: str = "", holding: str = "") -> list[int]:
    """Finds processes.

    Args:
        marker: a word in their environment variables, which children inherit.
        title: a word in their command line.
        holding: a folder in which they hold a file open.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (
                marker.encode() in (entry / "environ").read_bytes()
                and title.encode() in (entry / "cmdline").read_bytes()
                and any(str(fd.resolve()).startswith(holding) for fd in (entry / "fd").iterdir())
            ):
                found.append(int(entry.name))
    return found
