"""The Ray cluster: joining it, and whether it can ever place what a run asks for."""

import contextlib
import json
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raymimic.config import BaseConfig
from raymimic.errors import ClusterError

logger = logging.getLogger(__name__)

# A cluster's monitor reports for the first time some seconds after the cluster has started.
_FIRST_REPORT_S = 10.0
# For a cluster's port to answer.
_KNOCK_S = 10.0


@dataclass(frozen=True)
class Resources:
    """What a run reserves.

    Attributes:
        num_workers: training workers.
        cpus_per_worker: CPUs of each.
        gpus_per_worker: GPUs of each.
        num_actors: evaluation actors.
        cpus_per_actor: CPUs of each.
    """

    num_workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    num_actors: int
    cpus_per_actor: float

    @property
    def worker_bundle(self) -> dict[str, float]:
        """One worker's resources, as Ray names them."""
        bundle = {"CPU": self.cpus_per_worker}
        return bundle | ({"GPU": self.gpus_per_worker} if self.gpus_per_worker else {})


@dataclass(frozen=True)
class NodeGroup:
    """Nodes alike.

    Attributes:
        resources: what each has; `None` when nobody says.
        count: how many there may be; infinite when nobody says.
    """

    resources: dict[str, float] | None
    count: float = 1

    def fit(self, bundle: dict[str, float]) -> float:
        """How many bundles one such node holds."""
        if self.resources is None:
            return math.inf
        # Ray counts in ten-thousandths.
        return min(
            (int(self.resources.get(k, 0) / v + 1e-6) for k, v in bundle.items() if v),
            default=math.inf,
        )

    @property
    def cpus(self) -> float:
        """The CPUs of one such node; infinite when nobody says."""
        return math.inf if self.resources is None else self.resources.get("CPU", 0.0)


@dataclass(frozen=True)
class Capacity:
    """The nodes that a cluster may come to have.

    Attributes:
        present: nodes that there are, or will always be.
        addable: nodes that an autoscaler may add; none without an autoscaler.
        max_added: how many it may add, over all groups.
        max_resources: how much of a resource there may be in all.
    """

    present: list[NodeGroup]
    addable: list[NodeGroup] = field(default_factory=list)
    max_added: float = math.inf
    max_resources: dict[str, float] = field(default_factory=dict)

    def room(self, bundle: dict[str, float]) -> float:
        """How many bundles can be placed at most; infinite when no limit is known."""
        room = sum(group.fit(bundle) * group.count for group in self.present)
        left = self.max_added
        for fit, count in sorted(((g.fit(bundle), g.count) for g in self.addable), reverse=True):
            nodes = min(count, left)
            if fit and nodes:
                room += fit * nodes
                left -= nodes
        limits = (self.max_resources.get(k, math.inf) / v for k, v in bundle.items() if v)
        return min([room, *limits])

    def has(self, resource: str) -> bool:
        """Whether a node is known to have the resource, or may come to have it."""
        groups = [*self.present, *self.addable]
        return any((group.resources or {}).get(resource) for group in groups)

    @property
    def nodes(self) -> list[tuple[float, float]]:
        """CPUs and number of the nodes that have any, when as many as possible were added."""
        nodes = [(group.cpus, group.count) for group in self.present]
        left = self.max_added
        for cpus, count in sorted(((g.cpus, g.count) for g in self.addable), reverse=True):
            nodes.append((cpus, min(count, left)))
            left -= min(count, left)
        return [(cpus, count) for cpus, count in nodes if cpus and count]


@contextlib.contextmanager
def ray_session(config: BaseConfig) -> Iterator[None]:
    """Joins the cluster that config or environment name, or starts a local one, and leaves it.

    A Ray that is already connected is used and left alone.

    Raises:
        ClusterError: the named cluster does not answer.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        if address:
            _knock(address)
        with _kept_sigterm_handler():
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
                **options,
            )
    except Exception as error:  # Ray raises all kinds, bare `Exception` among them
        where = f"Ray cluster at '{address}'" if address else "local Ray cluster"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ClusterError(
            f"cannot join the {where}: {reason}; check ray.address and RAY_ADDRESS, or train "
            "without Ray by --workers 0"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _kept_sigterm_handler() -> Iterator[None]:
    """Restores what SIGTERM does: Ray's core would abort the process, its records still open."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _knock(address: str) -> None:
    """Tries the port of a cluster's address, where it has one; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


def plan(config: BaseConfig) -> Resources:
    """Decides what a run reserves on the connected cluster.

    Where training workers and evaluation actors do not fit side by side, all CPU requests shrink
    by one factor, so that evaluation can overlap training on a small machine.

    Raises:
        ClusterError: the workers can never be placed.
    """
    live, possible = _capacities()
    wanted = _wanted(config, live, possible)
    _check_placeable(wanted, live, possible, config.ray.placement_timeout_s)
    factor = _fitting_factor(wanted, possible)
    if factor == 1:
        return wanted
    return replace(
        wanted,
        cpus_per_worker=_round_down(wanted.cpus_per_worker * factor),
        cpus_per_actor=_round_down(wanted.cpus_per_actor * factor),
    )


def at_once(config: BaseConfig) -> tuple[Resources, float]:
    """How many trainings like this one the connected cluster holds side by side.

    As many may run at a time without any waiting for what another one holds. A training without
    workers of its own (`ray.num_workers` 0) is one process that evaluates too.

    Returns:
        what each reserves, and their number, at least 1; infinite when no limit is known.

    Raises:
        ClusterError: the cluster can never place even one.
    """
    live, possible = _capacities()
    wanted = _wanted(config, live, possible)
    if wanted.num_workers == 0:
        wanted = replace(wanted, num_workers=1, num_actors=0)
    room = max(live.room(wanted.worker_bundle), possible.room(wanted.worker_bundle))
    if room < wanted.num_workers:
        needs = " and ".join(f"{v:g} {k}" for k, v in wanted.worker_bundle.items())
        raise ClusterError(
            f"the cluster can never place a trial of {wanted.num_workers} workers of {needs} each, "
            f"as it has room for {int(room)}; lower 'resources', or enlarge the cluster"
        )
    if wanted.num_actors == 0 or room == math.inf:
        return wanted, room // wanted.num_workers
    count = 1
    while room >= (count + 1) * wanted.num_workers and (
        _fitting_factor(_times(wanted, count + 1), possible) == 1
    ):
        count += 1
    return wanted, count


def memory_share(count: int) -> float:
    """The memory [bytes] of which the nodes hold at most so many shares, each on one node.

    Where more nodes than that are alike, it is all of a node's, and each holds one.
    """
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    memory = [node["Resources"].get("memory", 0.0) for node in nodes if node["Alive"]]
    shares = sorted(amount / k for amount in memory if amount for k in range(1, count + 1))
    fitting = (
        share for share in shares if sum(int(amount / share + 1e-9) for amount in memory) <= count
    )
    return float(int(next(fitting, max(memory))))


def _times(wanted: Resources, count: int) -> Resources:
    return replace(
        wanted, num_workers=wanted.num_workers * count, num_actors=wanted.num_actors * count
    )


def _capacities() -> tuple[Capacity, Capacity]:
    """The nodes that there are, and those that there may be."""
    live = _live()
    return live, _declared_to_gcs() or _declared_in_file() or _undeclared(live) or live


def _wanted(config: BaseConfig, live: Capacity, possible: Capacity) -> Resources:
    """What a run asks for, whether or not it fits."""
    settings = config.ray
    gpus = settings.gpus_per_worker
    if gpus is None:
        gpus = 1 if config.train.cuda and (live.has("GPU") or possible.has("GPU")) else 0
    return Resources(
        settings.num_workers,
        settings.cpus_per_worker,
        float(gpus),
        settings.rollout_actors if config.experiment.rollout.enabled else 0,
        settings.cpus_per_actor,
    )


def _check_placeable(
    wanted: Resources, live: Capacity, possible: Capacity, timeout_s: float
) -> None:
    bundle = wanted.worker_bundle
    room = live.room(bundle)
    if room >= wanted.num_workers:
        return
    needs = " and ".join(f"{v:g} {k}" for k, v in bundle.items())
    room = max(room, possible.room(bundle))
    if room == math.inf:
        logger.warning(
            "the cluster's autoscaler declares no maximum, so whether %d workers of %s each can "
            "be placed shows only by waiting, %g s at most (ray.placement_timeout_s)",
            wanted.num_workers,
            needs,
            timeout_s,
        )
    elif room < wanted.num_workers:
        holder = "its autoscaler may add nodes for" if possible.addable else "it has room for"
        remedy = f"use --workers {int(room)}, " if room >= 1 else ""
        raise ClusterError(
            f"the cluster can never place {wanted.num_workers} workers (ray.num_workers) of "
            f"{needs} each, as {holder} {int(room)}; {remedy}lower ray.cpus_per_worker or "
            "ray.gpus_per_worker, or enlarge the cluster"
        )


def _fitting_factor(wanted: Resources, capacity: Capacity) -> float:
    """The factor, at most 1, by which CPU requests must shrink to fit side by side.

    Ray places one request after the other, so a sum that fits all nodes together may be left with
    pieces at their edges that hold nothing. Two conditions exclude that in any order: that the
    nodes have room for as many of the largest request as there are requests, or that what is left
    when each node but one lacks the largest request is enough for all. (A request `m` fails only
    if each node has less than `m` left.)
    """
    requests = [
        (cpus, count)
        for cpus, count in (
            (wanted.cpus_per_worker, wanted.num_workers),
            (wanted.cpus_per_actor, wanted.num_actors),
        )
        if cpus and count
    ]
    nodes = capacity.nodes
    total = sum(cpus * count for cpus, count in nodes)
    if not requests or not nodes or total == math.inf:
        return 1.0
    largest = max(cpus for cpus, _ in requests)
    demand = sum(cpus * count for cpus, count in requests)
    number = sum(count for _, count in requests)
    by_sum = total / (demand + (sum(count for _, count in nodes) - 1) * largest)
    by_count = max(
        size / largest
        for size in (cpus / k for cpus, _ in nodes for k in range(1, number + 1))
        if sum(int(cpus / size + 1e-6) * count for cpus, count in nodes) >= number
    )
    return min(1.0, max(by_sum, by_count))


def _round_down(cpus: float) -> float:
    return max(int(cpus * 1000 + 1e-6) / 1000, 0.001)


def _live() -> Capacity:
    """The nodes that there are."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return Capacity(
        [
            NodeGroup({k: float(v) for k, v in node["Resources"].items()})
            for node in nodes
            if node["Alive"]
        ]
    )


def _declared_to_gcs() -> Capacity | None:
    """What the autoscaler declared to the cluster's control store (as Ray Train itself reads)."""
    from ray._private.state import state

    config = state.get_cluster_config()
    if config is None or not config.node_group_configs:
        return None

    def amount(value: float) -> float:
        return float(sys.maxsize if value == -1 else value)

    return Capacity(
        present=[],
        addable=[
            NodeGroup(
                {k: amount(v) for k, v in group.resources.items()},
                math.inf if group.max_count == -1 else group.max_count,
            )
            for group in config.node_group_configs
        ],
        max_resources={k: float(v) for k, v in config.max_resources.items()},
    )


def _declared_in_file() -> Capacity | None:
    """What the file of a cluster made by `ray up` declares, when this is its head node."""
    import yaml

    path = _autoscaling_config_path()
    if path is None:
        return None
    try:
        config = yaml.safe_load(path.read_text())
        limit = config.get("max_workers", 2)
        head, added = [], []
        for name, node in config["available_node_types"].items():
            # Of hosts that are listed by address, the file does not say what they have.
            resources = {k: float(v) for k, v in (node.get("resources") or {}).items()} or None
            if name == config.get("head_node_type"):
                head.append(NodeGroup(resources))
            else:
                added.append(NodeGroup(resources, node.get("max_workers", limit)))
        return Capacity(head, added, max_added=limit)
    except (OSError, AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        logger.debug("cannot read the autoscaler's config %s: %s", path, error)
        return None


def _autoscaling_config_path() -> Path | None:
    """The `--autoscaling-config` of this cluster's monitor on this node, from /proc."""
    import ray

    ours = f"--gcs-address={ray.get_runtime_context().gcs_address}"
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            arguments = cmdline.read_bytes().decode(errors="replace").split("\0")
            if ours in arguments and any(a.endswith("monitor.py") for a in arguments):
                for argument in arguments:
                    name, _, value = argument.partition("=")
                    if name == "--autoscaling-config" and value:
                        return Path(value).expanduser()
    return None


def _undeclared(live: Capacity) -> Capacity | None:
    """Any nodes may come, if an autoscaler runs that says nothing of its limits."""
    return replace(live, addable=[NodeGroup(None, math.inf)]) if _has_autoscaler() else None


def _has_autoscaler() -> bool:
    """Whether the cluster's monitor manages nodes, rather than only reporting those that joined.

    Nodes that a provider made have a type with a name; a monitor that only reports calls the type
    of each node `node_<id>`.
    """
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    if is_autoscaler_v2(fetch_from_server=True):
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        return any(n.ray_node_type_name for n in (*status.active_nodes, *status.idle_nodes))
    report = json.loads(_monitor_report() or b"{}").get("autoscaler_report") or {}
    types = [*(report.get("node_type_mapping") or {}).values(), *(report.get("active_nodes") or {})]
    return any(not name.startswith("node_") for name in types)


def _monitor_report() -> bytes | None:
    """The cluster's status as its monitor wrote it last; waits for the first one.

    A cluster that this process started itself has no autoscaler, so there it does not wait.
    """
    from ray._private.worker import _global_node
    from ray.experimental.internal_kv import _internal_kv_get

    here = _global_node is not None and _global_node.head
    end = time.monotonic() + (0.0 if here else _FIRST_REPORT_S)
    while True:
        report: bytes | None = _internal_kv_get(b"__autoscaling_status")
        if report is not None or time.monotonic() >= end:
            return report
        time.sleep(0.2)
