"""A second Python process, for simulators that may crash or hang."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from raymimic.errors import RaymimicError


class ChildProcess:
    """Calls functions in a new process, one after the other; it ends with this one.

    It is not a fork: a process that has rendered cannot be forked.

    Args:
        niceness: of the process, from its start on; 19 is the lowest priority.

    Attributes:
        records: records of the current call so far.
        crashed: whether the process ended during the current call.
    """

    def __init__(self, niceness: int = 0) -> None:
        self.records: list[Any] = []
        self.crashed = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 # it lives as long as this
        folders = [folder or str(Path.cwd()) for folder in sys.path]
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(theirs.fileno())],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C ends this process, which then ends that one
            )
        if niceness:
            os.setpriority(os.PRIO_PROCESS, self._process.pid, niceness)

    def call(self, function: Callable[..., Iterator[Any]], *args: Any) -> None:
        """Begins to call a function.

        Args:
            function: of a module, so that the other process finds it; yields records that can be
                pickled, or raises a `RaymimicError`.
            args: for the function.
        """
        self.records = []
        with suppress(OSError):  # the process has ended, which `finished` reports
            self._connection.send((function, args))

    def finished(self, timeout: float | None = 0.0) -> bool:
        """Whether the current call has ended, be it by the end of the process.

        Args:
            timeout: how long to wait for the next record [s]; None waits for the end of the call.

        Raises:
            RaymimicError: the function raised it.
        """
        while not self.crashed and self._connection.poll(timeout):
            try:
                kind, value = self._connection.recv()
            except (EOFError, OSError):  # OSError: in the middle of a record
                self._process.wait()
                self.crashed = True
                break
            if kind == "record":
                self.records.append(value)
            elif kind == "error":
                raise value
            else:
                return True
        return self.crashed

    def story(self) -> str:
        """How the process ended, in one line."""
        status = self._process.returncode
        if status < 0:
            return signal.Signals(-status).name
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"status {status}" + (f", {lines[-1]:.300}" if lines else "")

    def close(self) -> None:
        """Ends the process, if it still runs."""
        self._process.kill()
        self._process.wait()
        self._connection.close()
        self._errors.close()


def _main() -> None:
    connection = Connection(int(sys.argv[1]))
    calls: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_receive, args=(connection, calls), daemon=True).start()
    try:
        while True:
            function, args = pickle.loads(calls.get())
            try:
                for record in function(*args):
                    connection.send(("record", record))
            except RaymimicError as error:
                connection.send(("error", error))
            else:
                connection.send(("end", None))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(1)  # some simulators hang at the end of their process


def _receive(connection: Connection, calls: SimpleQueue[bytes]) -> None:
    """Queues the calls of the parent process, and ends this one with it."""
    with suppress(EOFError, OSError):
        while True:
            calls.put(connection.recv_bytes())
    os._exit(1)


if __name__ == "__main__":
    _main()
