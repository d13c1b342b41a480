"""Notices that a cluster has ended, or never gets room for something."""

import math
import socket
import time
from collections.abc import Callable

from raymimic.cluster.capacity import describe, live_nodes, live_room
from raymimic.cluster.ray_internals import raylet_logs, started_here
from raymimic.errors import ClusterError

# Between two checks of the cluster.
_CHECK_EVERY_S = 1.0
# Without an answer of the control store; after a minute Ray's core ends the driver (see
# `gcs_rpc_server_reconnect_timeout_s`).
_SILENCE_S = 30.0


class ClusterLostError(ClusterError):
    """The cluster ended, or lost a part that the driver needs."""


class ClusterWatch:
    """Notices that the connected cluster has ended.

    Ray does not tell its driver. If the control store is lost, Ray ends the process after a minute,
    without any `finally` clause; if the local raylet is lost, all calls wait or fail.

    Args:
        patience_s: how long to wait for nodes that are missing [s].
    """

    def __init__(self, patience_s: float) -> None:
        import ray

        context = ray.get_runtime_context()
        here = next(node for node in live_nodes() if node["NodeID"] == context.get_node_id())
        self.patience_s = patience_s
        self._started_here = started_here()
        self._address = context.gcs_address
        self._raylet = f"{here['NodeManagerAddress']}:{here['NodeManagerPort']}"
        self._logs = raylet_logs(here)
        self._watched = [a for a in (self._raylet, self._address) if not self._unreachable(a)]
        self._checked = time.monotonic()
        self._silent_since: float | None = None

    def check(self, now: bool = False) -> None:
        """Checks that the cluster is there.

        Args:
            now: check even if less than a second has passed since the last check.

        Raises:
            ClusterLostError: it is not.
        """
        if now or time.monotonic() - self._checked > _CHECK_EVERY_S:
            self._checked = time.monotonic()
            if (reason := self._reason()) is not None:
                raise ClusterLostError(reason)

    def _reason(self) -> str | None:
        """Why the cluster has ended, if it has."""
        if self._raylet in self._watched and self._unreachable(self._raylet) == "refused":
            # A cluster that is shut down ends its processes one after the other.
            time.sleep(_CHECK_EVERY_S)
            if self._started_here or not self._unreachable(self._address):
                return (
                    "the Ray process that serves this machine (raylet) was killed, probably "
                    f"because memory ran out; its log is '{self._logs / 'raylet.out'}'"
                )
            return f"the Ray cluster at '{self._address}' was shut down, or its head node is lost"
        if self._address not in self._watched or not self._unreachable(self._address):
            self._silent_since = None
            return None
        if self._started_here:
            return (
                "Ray's control store (gcs_server) was killed, probably because memory ran out; its "
                f"log is '{self._logs / 'gcs_server.out'}'"
            )
        self._silent_since = self._silent_since or self._checked
        if self._checked - self._silent_since < _SILENCE_S:
            return None
        return (
            f"the Ray cluster at '{self._address}' has not answered for {_SILENCE_S:g} s: it was "
            "shut down, or its head node is lost"
        )

    @staticmethod
    def _unreachable(address: str) -> str | None:
        """Why a port cannot be reached: `refused` if no process listens; `None` if it can."""
        try:
            check_port(address, timeout_s=_CHECK_EVERY_S)
        except ConnectionRefusedError:
            return "refused"
        except OSError:
            return "silent"
        return None


class RoomWatch:
    """Notices that no node of the cluster has room for something; Ray would wait for ever.

    Args:
        bundle: its resources.
        what: its name in messages, such as `a trial`.
        patience_s: how long to wait for a node that has room [s].
        say: prints a message, that this waits.
    """

    def __init__(
        self, bundle: dict[str, float], what: str, patience_s: float, say: Callable[[str], None]
    ) -> None:
        self._bundle, self._what, self._patience_s, self._say = bundle, what, patience_s, say
        self._had_room = False
        self._checked = self._since = -math.inf

    def check(self) -> None:
        """Checks for room, once a second at most. Other users of the nodes do not count.

        Raises:
            ClusterLostError: there has been none for too long.
        """
        now = time.monotonic()
        if now - self._checked < min(_CHECK_EVERY_S, self._patience_s):
            return
        self._checked = now
        if live_room(self._bundle) >= 1:
            self._had_room, self._since = True, -math.inf
        elif self._since == -math.inf:
            self._since = now
            happened = "a node was lost" if self._had_room else f"no node has room for {self._what}"
            needs = describe(self._bundle, 1)
            self._say(f"{happened}; waiting for {needs}, at most {self._patience_s:g} s")
        elif now - self._since > self._patience_s:
            missed = "a node was lost and none" if self._had_room else "no node"
            raise ClusterLostError(
                f"{missed} came with room for {self._what} within {self._patience_s:g} s "
                "(ray.placement_timeout_s)"
            )


def check_port(address: str, timeout_s: float) -> None:
    """Tries the port of a cluster's address, if it has one; Ray itself would try for minutes.

    Args:
        address: such as `10.0.0.1:6379` or `ray://head:10001`; `auto` has no port.
        timeout_s: for the answer [s].

    Raises:
        OSError: it does not answer.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
