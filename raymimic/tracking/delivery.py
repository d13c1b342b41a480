"""The process that carries a run's spool to MLflow.

`MLflowTracker` starts `python -P -m raymimic.tracking.delivery SPOOL_DIR RUN_DIR --server URI`
beside the training, and `raymimic mlflow sync` after it. A separate process keeps MLflow's import
(3 s), its environment variables for time-outs and its waiting out of the training. It outlives a
killed training, to deliver the rest and to close the run as KILLED. A password reaches it by its
environment alone, and none of its messages holds one.

It reports faults to its parent on standard output, one line each: `LEVEL text`. A line `STATE 1`
means that MLflow accepts no records now, and `STATE 0` that it does again.
"""

import argparse
import contextlib
import errno
import os
import socket
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any, TextIO, cast

from raymimic import storage
from raymimic.credentials import (
    FULL_URI,
    PASSWORD,
    TRACKING_URI,
    USERNAME,
    is_server,
    secrets_in,
    without,
)
from raymimic.storage import open_own
from raymimic.tracking.journal import (
    JournalReader,
    JournalState,
    one_line,
    state_of,
)
from raymimic.tracking.places import sqlite_path

POLL_S = 0.2
MAX_BACKOFF_S = 5.0
EXIT_UNDELIVERED = 1
EXIT_BUSY = 3
STATE = "STATE"


class Reporter:
    """Sends messages to the parent process while it listens."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        self._said: set[tuple[str, str]] = set()
        self._fails = False

    def say(self, level: str, topic: str, text: str) -> None:
        """Prints one line, once for each topic and level.

        Args:
            level: name of a logging level.
            topic: topic of the message.
            text: the message.
        """
        if (level, topic) in self._said:
            return
        self._said.add((level, topic))
        self._print(level, " ".join(text.split()))

    def state(self, fails: bool) -> None:
        """Tells the parent whether MLflow takes records, whenever that changes."""
        if fails != self._fails:
            self._fails = fails
            self._print(STATE, str(int(fails)))

    def _print(self, level: str, text: str) -> None:
        with contextlib.suppress(OSError):  # the parent is gone
            self._out.write(f"{level} {text}\n")
            self._out.flush()


class CleanStream:
    """A text stream that removes passwords from the output of libraries.

    Args:
        stream: gets the rest.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._secrets = secrets_in(os.environ)

    def write(self, text: str) -> int:
        """Writes a text without its passwords."""
        self._stream.write(without(text, self._secrets))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _causes(error: BaseException | None) -> list[BaseException]:
    """An exception and those that led to it."""
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes


def _is_full_disk(error: Exception) -> bool:
    """Whether the cause is a disk of this machine without room."""
    return any(
        (isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT))
        or (isinstance(cause, sqlite3.Error) and cause.sqlite_errorcode == sqlite3.SQLITE_FULL)
        for cause in _causes(error)
    )


def _trouble(error: Exception, server: str) -> str:
    """Why MLflow takes no records now, with the remedy, as a part of a sentence."""
    if _is_full_disk(error):
        return "the disk is full, so MLflow's records cannot be written"
    if getattr(error, "error_code", None) in {"UNAUTHENTICATED", "PERMISSION_DENIED"}:
        answer = "refuses this login" if PASSWORD in os.environ else "wants a login"
        return (
            f"MLflow at {server} {answer}: set {USERNAME} and {PASSWORD} in the environment (and "
            f"{TRACKING_URI} to this server, if it names another one)"
        )
    trouble = f"MLflow at {server} cannot be reached ({one_line(error)})"
    if sqlite_path(server) is None and not is_server(server) and FULL_URI not in os.environ:
        trouble += f"; if it wants a password, give the URI with it in {TRACKING_URI}"
    return trouble


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


class _Courier:
    """Delivers one spool, step by step, until the run is finished or its training is gone.

    Args:
        spool_dir: folder of the journal.
        run_dir: folder of the run.
        server: the store, without the password.
        owner: process id of the training, our parent; None delivers the present records only.
        patience_s: how long to go on trying after the training is gone [s].
        report: tells the parent about mishaps.
    """

    def __init__(
        self,
        spool_dir: Path,
        run_dir: Path,
        server: str,
        owner: int | None,
        patience_s: float,
        report: Reporter,
    ) -> None:
        self._spool_dir, self._run_dir, self._server = spool_dir, run_dir, server
        self._owner, self._patience_s, self._report = owner, patience_s, report
        self._reader = JournalReader(spool_dir)
        self._state = JournalState()
        self._delivered = 0  # the journal's bytes up to the last record that MLflow has got
        self._failures = 0
        self._gone_since: float | None = None

    def run(self) -> int:
        """Delivers; returns the exit status, see `run`."""
        with contextlib.ExitStack() as held:
            if not self._lock(held):
                return EXIT_BUSY
            if not self._open():
                return 0
            while True:
                status = self._step()
                if status is not None:
                    return status
                time.sleep(POLL_S)

    def _owner_lives(self) -> bool:
        return self._owner is not None and os.getppid() == self._owner

    def _lock(self, held: contextlib.ExitStack) -> bool:
        """Waits while the delivery of an earlier, killed training finishes its work.

        Returns:
            whether the spool is ours now; False if another delivery keeps it.
        """
        lock = held.enter_context(open_own(self._spool_dir / "lock", os.O_WRONLY | os.O_CREAT, "w"))
        while True:
            try:
                storage.lock(lock)
                return True
            except BlockingIOError:
                if not self._owner_lives():
                    return False
                time.sleep(POLL_S)

    def _open(self) -> bool:
        """Reads the journal's first records; False if there is nothing to deliver."""
        from raymimic.tracking.mlflow_run import Delivery  # imports MLflow, for seconds

        self._state = state_of(self._reader)
        if self._state.start is None or self._state.key is None:
            return False  # the training was killed while it wrote its first line
        self._start = self._state.start
        if self._owner not in {None, self._start["pid"]}:
            return False  # a resumed training has started its own delivery meanwhile
        self._delivery = Delivery(
            self._spool_dir,
            self._run_dir,
            self._server,
            self._start,
            self._state.key,
            self._report.say,
        )
        return True

    def _step(self) -> int | None:
        """One round: reads, delivers, decides; returns the exit status at the end."""
        if self._gone_since is None and not self._owner_lives():
            self._gone_since = time.monotonic()
        for record in self._reader.stream():
            if record.type == "start":
                return 0  # a resumed training has started its own delivery
            self._state.take(record)
        self._say_damage()
        try:
            self._deliver()
            return self._end()
        except Exception as error:
            return self._fail(error)

    def _say_damage(self) -> None:
        count = self._reader.damaged
        if count:
            lines = "a line" if count == 1 else f"{count} lines"
            left_out = f"{lines} of the journal in {self._spool_dir} cannot be read: left out"
            self._report.say("WARNING", "damage", left_out)

    def _deliver(self) -> None:
        if self._reader.offset == self._delivered:
            return
        self._delivery.deliver(self._reader.offset)
        self._delivered = self._reader.offset
        self._report_state(fails=False)
        if self._failures:
            self._report.say("INFO", "outage", f"MLflow at {self._server} answers again")
        self._failures = 0

    def _end(self) -> int | None:
        """The exit status where every record is delivered and no more will come."""
        if self._state.finished:
            return 0
        if self._gone_since is None:
            return None
        if self._owner is not None or not _is_alive(self._start):
            self._delivery.set_killed(self._state.time)
        return 0

    def _fail(self, error: Exception) -> int | None:
        """Says that a delivery failed, and waits; returns the exit status if patience ends."""
        self._delivery.disconnect()
        self._failures += 1
        full = _is_full_disk(error)
        self._say_failure(error, full)
        # A trial whose sweep's run comes soon is no trouble of MLflow's.
        self._report_state(fails=not _waits_for_parent(error))
        gone_since = self._gone_since
        ending = self._state.finished or gone_since is not None
        impatient = gone_since is not None and time.monotonic() - gone_since >= self._patience_s
        if impatient or (full and ending):
            return EXIT_UNDELIVERED
        # With a full disk, only short waits notice the end of the training soon.
        time.sleep(POLL_S if full else min(2.0 ** (self._failures - 1), MAX_BACKOFF_S))
        return None

    def _report_state(self, fails: bool) -> None:
        if self._owner is not None:  # it waits for this process, and not longer if MLflow fails
            self._report.state(fails)

    def _say_failure(self, error: Exception, full: bool) -> None:
        if _waits_for_parent(error):
            return  # the parent's own delivery says why
        remedy = "free some space there" if full else "it is delivered when MLflow answers"
        kept = f"the missing part is kept in {self._spool_dir}: {remedy}"
        topic = "disk" if full else "outage"
        self._report.say("WARNING", topic, f"{_trouble(error, self._server)}; {kept}")


def _waits_for_parent(error: Exception) -> bool:
    """Whether a trial's run waits for its sweep's run, in a store that answers."""
    from raymimic.tracking.mlflow_run import ParentMissingError

    return isinstance(error, ParentMissingError)


def run(spool_dir: Path, run_dir: Path, server: str, owner: int | None, patience_s: float) -> int:
    """Delivers until the run is finished, or its training is gone and nothing is left.

    Args:
        spool_dir: folder of the journal.
        run_dir: folder of the run.
        server: the store, without the password.
        owner: process id of the training, our parent; None delivers the present records only.
        patience_s: how long to go on trying after the training is gone [s].

    Returns:
        exit status: 0, or `EXIT_UNDELIVERED`, or `EXIT_BUSY` when another process delivers this
        spool.
    """
    report = Reporter()
    # MLflow prints and logs to these streams; our parent reads the original.
    sys.stdout = sys.stderr = cast(TextIO, CleanStream(sys.stderr))
    return _Courier(spool_dir, run_dir, server, owner, patience_s, report).run()


def main() -> int:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(description="Carries a run's spool to MLflow.")
    parser.add_argument("spool_dir", type=Path)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--server", required=True)
    parser.add_argument("--owner", type=int)
    parser.add_argument("--patience", type=float, default=0.0)
    args = parser.parse_args()
    os.nice(5)  # the training comes first
    return run(args.spool_dir, args.run_dir, args.server, args.owner, args.patience)


if __name__ == "__main__":
    sys.exit(main())
