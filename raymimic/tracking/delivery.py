"""The process that carries a run's spool to MLflow.

``python -m raymimic.tracking.delivery SPOOL_DIR RUN_DIR`` is started by
:class:`~raymimic.tracking.mlflow_tracker.MLflowTracker` beside the training, and by
``raymimic mlflow sync`` after it. A process of its own keeps MLflow's import (3 s), its
environment variables for time-outs and its waiting out of the training; and it outlives
a killed training for long enough to deliver the rest and to close the run as KILLED.

It tells its parent about mishaps on standard output, one line each: ``LEVEL text``.
"""

import argparse
import contextlib
import fcntl
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raymimic.tracking.journal import JournalReader, has_finish, one_line

POLL_S = 0.2
MAX_BACKOFF_S = 5.0
EXIT_UNDELIVERED = 1
EXIT_BUSY = 3


class Reporter:
    """Tells the parent process, as long as it listens."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        self._said: set[tuple[str, str]] = set()

    def say(self, level: str, topic: str, text: str) -> None:
        """Prints one line, unless the same was said about the topic before.

        Args:
            level: name of a logging level.
            topic: what it is about; a level is used once for each topic.
            text: the message, without line breaks.
        """
        if (level, topic) in self._said:
            return
        self._said.add((level, topic))
        with contextlib.suppress(OSError):  # the parent is gone
            self._out.write(f"{level} {text}\n")
            self._out.flush()


def _without_password(text: str, tracking_uri: str) -> str:
    user, at, _ = urlsplit(tracking_uri).netloc.rpartition("@")
    return text.replace(user + at, "") if at else text


def _is_alive(start: dict[str, Any]) -> bool:
    """Whether the training that wrote a start record runs on this machine."""
    if start["host"] != socket.gethostname():
        return False
    try:
        os.kill(start["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def run(spool_dir: Path, run_dir: Path, owner: int | None, patience_s: float) -> int:
    """Delivers until the run is finished, or its training is gone and nothing is left.

    Args:
        spool_dir: folder of the journal.
        run_dir: folder of the training.
        owner: process id of the training, our parent; ``None`` delivers what is there.
        patience_s: how long to go on trying after the training is gone [s].

    Returns:
        exit status: 0, or ``EXIT_UNDELIVERED``, or ``EXIT_BUSY`` when another process
        delivers this spool.
    """
    report = Reporter()
    sys.stdout = sys.stderr  # MLflow prints there; our parent reads the original

    def owner_lives() -> bool:
        return owner is not None and os.getppid() == owner

    lock = (spool_dir / "lock").open("w")
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:  # the process of a training that was killed still works it off
            if not owner_lives():
                return EXIT_BUSY
            time.sleep(POLL_S)

    # Imports MLflow, for seconds.
    from raymimic.tracking.mlflow_run import Delivery, ParentMissingError

    reader = JournalReader(spool_dir)
    records = reader.read()
    starts = [record.data for record in records if record.type == "start"]
    if not starts:
        return 0  # killed while it wrote its first line
    start = starts[-1]
    if owner not in {None, start["pid"]}:
        return 0  # as below: the run was resumed while this process started
    delivery = Delivery(spool_dir, run_dir, start, starts[0]["key"], report.say)
    server = start["tracking_uri"]
    delivered = 0
    failures = 0
    gone_since: float | None = None
    while True:
        if gone_since is None and not owner_lives():
            gone_since = time.monotonic()
        new = reader.read()
        if any(record.type == "start" for record in new):
            return 0  # the run was resumed, by a training with a delivery of its own
        records += new
        try:
            if len(records) > delivered:
                delivery.deliver(records)
                delivered = len(records)
                if failures:
                    back = f"MLflow at {server} answers again"
                    report.say("INFO", "outage", _without_password(back, server))
                failures = 0
            if has_finish(records):
                return 0
            if gone_since is not None:
                if owner is not None or not _is_alive(start):
                    delivery.set_killed(records[-1].data["time"])
                return 0
        except Exception as error:
            delivery.disconnect()
            failures += 1
            down = (
                f"MLflow at {server} cannot be reached ({one_line(error)}); what it misses is "
                f"kept in {spool_dir} and delivered when it answers"
            )
            if not isinstance(error, ParentMissingError):  # its own delivery says why
                report.say("WARNING", "outage", _without_password(down, server))
            if gone_since is not None and time.monotonic() - gone_since >= patience_s:
                return EXIT_UNDELIVERED
            time.sleep(min(2.0 ** (failures - 1), MAX_BACKOFF_S))
        time.sleep(POLL_S)


def main() -> int:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(description="Carries a run's spool to MLflow.")
    parser.add_argument("spool_dir", type=Path)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--owner", type=int)
    parser.add_argument("--patience", type=float, default=0.0)
    args = parser.parse_args()
    os.nice(5)  # the training comes first
    return run(args.spool_dir, args.run_dir, args.owner, args.patience)


if __name__ == "__main__":
    sys.exit(main())
