"""A lease on a folder behind a URI, which one driver at a time holds.

A lock of the operating system ends with its process but works on one machine only. A lease is a
small object in the store that its holder rewrites every few seconds. Another process may take it
if it was not rewritten for 60 s, or if its holder provably died on this machine. A holder that
reads another name in it has lost it and must write nothing more.

The store must show a written object to all readers at once (S3, Google Cloud Storage and Azure do).
Clocks are compared only to shorten the wait for a dead holder. They may differ by up to an hour, as
no process takes a lease that changes while it watches.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Self

from raymimic import storage
from raymimic.errors import ConfigError, LeaseLostError, OutputError

logger = logging.getLogger(__name__)

LEASE = ".lease"

# A lease that nobody has renewed for so long is free [s].
STALE_S = 60.0
# Between two renewals [s]; and the time for which a lease must be watched unchanged, by any clock.
RENEW_S, WATCH_S = 5.0, 12.0
# An older lease needs no watching: clocks do not differ by so much [s].
CLOCKS_AGREE_S = 3600.0
# For the write of another process that took the lease at the same moment to become visible [s].
SETTLE_S = 1.0


class Lease:
    """The right to write in a folder behind a URI.

    Args:
        folder: URI of the folder.
        owner: name of the holder: the driver's; its workers use the same.
    """

    def __init__(self, folder: str, owner: str) -> None:
        self.folder, self.owner = folder, owner
        self._path = storage.join(folder, LEASE)
        self._lost: str | None = None
        self._ended = threading.Event()
        self._keeper: threading.Thread | None = None

    @classmethod
    def take(cls, folder: str, kind: str, patience_s: float, new: bool) -> Self:
        """Takes a lease and renews it until it is released or this process ends.

        Args:
            folder: URI of the folder.
            kind: two words for messages, the folder's kind and the holder's activity, such as
                "run trained".
            patience_s: how long to wait for a living holder [s]. The wait for a dead one is 60 s at
                most in any case.
            new: the folder is new, so nobody else knows it.

        Raises:
            ConfigError: another process holds it.
            OutputError: the store does not answer.
        """
        lease = cls(folder, uuid.uuid4().hex)
        if not new:
            lease._wait(kind, patience_s)
        lease._write({"host": socket.gethostname(), "process": _identity(os.getpid())})
        if not new:
            time.sleep(SETTLE_S)
            content = lease._read() or {}
            if content.get("owner") != lease.owner:
                raise _held(folder, kind, content)
        lease._keeper = threading.Thread(target=lease._keep, name="lease", daemon=True)
        lease._keeper.start()
        return lease

    def check(self) -> dict[str, Any]:
        """Makes sure that this process still holds the lease.

        Returns:
            the content of the lease.

        Raises:
            LeaseLostError: it does not.
            OutputError: the store does not answer.
        """
        self.raise_if_lost()
        content = self._read()
        if content is None or content.get("owner") != self.owner:
            where = "somewhere" if content is None else f"on {content.get('host', 'some machine')}"
            self._lost = (
                f"another process, {where}, has taken over '{self.folder}', whose lease this one "
                "could not renew in time; this one stops and writes nothing more there"
            )
            self.raise_if_lost()
        return content or {}

    def renew(self) -> None:
        """Rewrites the lease and reads it back.

        Raises:
            LeaseLostError: another process has taken it.
            OutputError: the store does not answer.
        """
        self._write(self.check())
        self.check()

    def raise_if_lost(self) -> None:
        """Like `check`, by the result of the last renewal, without asking the store.

        Raises:
            LeaseLostError: another process has taken it.
        """
        if self._lost is not None:
            raise LeaseLostError(self._lost)

    def release(self) -> None:
        """Frees the lease, unless another process has taken it."""
        self._ended.set()
        if self._keeper is not None:
            self._keeper.join()
            self._keeper = None
        with contextlib.suppress(LeaseLostError, OutputError):
            self.check()
            storage.remove(self._path)

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_S):
            try:
                self.renew()
            except LeaseLostError:
                return
            except OutputError as error:  # the store may answer next time
                logger.info("cannot renew the lease of '%s': %s", self.folder, error)

    def _wait(self, kind: str, patience_s: float) -> None:
        """Returns when the lease is free; logs a warning if that takes long."""
        begin = time.monotonic()
        seen: dict[str, Any] | None = None
        free_at = begin
        while (content := self._read()) is not None and not _is_dead(content.get("process")):
            now = time.monotonic()
            if content != seen:
                if seen is not None and now - begin >= patience_s:
                    raise _held(self.folder, kind, content)
                renewed = content.get("renewed")
                age = time.time() - renewed if isinstance(renewed, int | float) else 0.0
                if age > CLOCKS_AGREE_S:
                    return
                free_at = now + min(max(STALE_S - age, WATCH_S), STALE_S)
                if seen is None:
                    logger.warning(
                        "the %s '%s' was not released by the process on %s that held it last: "
                        "waiting up to %.0f s to see whether that still lives",
                        kind.split()[0],
                        self.folder,
                        content.get("host", "another machine"),
                        free_at - now,
                    )
                seen = content
            elif now >= free_at:
                return
            time.sleep(min(1.0, STALE_S / 10))

    def _read(self) -> dict[str, Any] | None:
        """The content of the lease; `None` without one, empty if it cannot be understood."""
        for _ in range(20):
            try:
                content = json.loads(storage.read_bytes(self._path))
            except FileNotFoundError:
                return None
            except ValueError:  # half written, as some stores write in place
                time.sleep(0.1)
            else:
                return content if isinstance(content, dict) else {}
        return {}

    def _write(self, content: dict[str, Any]) -> None:
        content = {**content, "owner": self.owner, "renewed": time.time()}
        storage.write_bytes(self._path, json.dumps(content).encode())


def _held(folder: str, kind: str, content: dict[str, Any]) -> ConfigError:
    noun, activity = kind.split()
    return ConfigError(
        f"the {noun} '{folder}' is being {activity} by another process (on "
        f"{content.get('host', 'another machine')}); wait for it or end it"
    )


def _identity(pid: int) -> str | None:
    """Identifies a process among all processes of this machine, past and future.

    Returns:
        the boot, the namespace of process ids, the id and the time of start; `None` if the system
        does not state them, or there is no such process.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The name of the program, in parentheses, may hold spaces.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if state in "ZX":  # it is dead, but its parent has not noticed
            return None
        return f"{boot} {Path('/proc/self/ns/pid').readlink()} {pid} {fields[18]}"
    except (OSError, IndexError):
        return None


def _is_dead(identity: Any) -> bool:
    """Whether a process ran on this machine and is gone; `False` if that is unknown."""
    this_process = _identity(os.getpid())
    if not isinstance(identity, str) or this_process is None:
        return False
    *place, pid, _ = identity.split(" ")
    if place != this_process.split(" ")[:2] or not pid.isdigit():
        return False
    return _identity(int(pid)) != identity
