"""Samples the load of workers' machines on other nodes than the driver's, by one worker on each.

The worker sends the numbers to the driver as events, and the driver gives them to its trackers.
"""

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from raymimic.tracking.system_metrics import NODE, Sampling, SystemMonitor
from raymimic.training.link import Link, MachineLoad, Mishap


def sampling_of(wanted: Sampling, node: str, nodes: Sequence[Mapping[str, Any]]) -> Sampling:
    """How a worker samples its machine.

    The machine has the name that `MLFLOW_SYSTEM_METRICS_NODE_ID` gives it there, unless that is the
    driver's; or else its host name, and the beginning of the node's id where several nodes of the
    cluster have that host name.

    Args:
        wanted: as the driver's trackers want it.
        node: Ray's id of this process's node.
        nodes: those of the cluster that are alive, as `ray.nodes()` lists them.
    """
    given = os.environ.get(NODE, "").strip("/")
    if given and given != wanted.node:
        return replace(wanted, node=given)
    host = socket.gethostname()
    others = [other["NodeManagerHostname"] for other in nodes if other["NodeID"] != node]
    return replace(wanted, node=f"{host}-{node[:8]}" if host in others else host)


@contextlib.contextmanager
def sampled(sampling: Sampling | None, link: Link) -> Iterator[None]:
    """Samples this machine within a scope.

    Args:
        sampling: how; None: not at all.
        link: to the driver.
    """
    if sampling is None:
        yield
        return
    monitor = SystemMonitor(
        sampling,
        lambda metrics: link.send(MachineLoad(dict(metrics))),
        lambda text: link.send(Mishap(text)),
    )
    monitor.start()
    try:
        yield
    finally:
        monitor.stop()
