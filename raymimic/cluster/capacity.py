"""The nodes that a cluster has, and those that its autoscaler may add."""

import logging
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raymimic.cluster.ray_internals import autoscaling_config_path, declared_cluster, has_autoscaler

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeGroup:
    """Identical nodes.

    Attributes:
        resources: of each node; `None` if unknown.
        count: number of nodes; infinite if unlimited or unknown.
    """

    resources: dict[str, float] | None
    count: float = 1

    def fit(self, bundle: dict[str, float]) -> float:
        """The number of bundles that one such node holds."""
        if self.resources is None:
            return math.inf
        # Ray counts in ten-thousandths.
        return min(
            (int(self.resources.get(k, 0) / v + 1e-6) for k, v in bundle.items() if v),
            default=math.inf,
        )

    @property
    def cpus(self) -> float:
        """The CPUs of one such node; infinite if unknown."""
        return math.inf if self.resources is None else self.resources.get("CPU", 0.0)


@dataclass(frozen=True)
class Capacity:
    """The nodes that a cluster may come to have.

    Attributes:
        present: nodes that exist, or that will always exist.
        addable: nodes that an autoscaler may add; none without an autoscaler.
        max_added: the number of nodes that it may add, over all groups.
        max_resources: limits of the cluster's resources, by name.
    """

    present: list[NodeGroup]
    addable: list[NodeGroup] = field(default_factory=list)
    max_added: float = math.inf
    max_resources: dict[str, float] = field(default_factory=dict)

    def room(self, bundle: dict[str, float]) -> float:
        """The greatest number of bundles that can be placed; infinite without a known limit."""
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
        """CPUs and number of the nodes with CPUs, once as many as possible were added."""
        nodes = [(group.cpus, group.count) for group in self.present]
        left = self.max_added
        for cpus, count in sorted(((g.cpus, g.count) for g in self.addable), reverse=True):
            nodes.append((cpus, min(count, left)))
            left -= min(count, left)
        return [(cpus, count) for cpus, count in nodes if cpus and count]


def live_capacity() -> Capacity:
    """The connected cluster's present nodes."""
    return Capacity(
        [NodeGroup({k: float(v) for k, v in node["Resources"].items()}) for node in live_nodes()]
    )


def possible_capacity(live: Capacity) -> Capacity:
    """The connected cluster's present nodes and those that its autoscaler may add.

    Args:
        live: the present nodes.
    """
    return _declared_to_ray() or _declared_in_file() or _undeclared(live) or live


def live_room(bundle: dict[str, float]) -> float:
    """The number of bundles that the present nodes would hold if nothing else ran there."""
    return live_capacity().room(bundle)


def live_nodes() -> list[dict[str, Any]]:
    """The entries of `ray.nodes()` of nodes that are alive."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def describe(bundle: dict[str, float], number: int) -> str:
    """Resources in words, such as `2 × 0.6 CPU`."""
    needs = " and ".join(f"{amount:g} {name}" for name, amount in bundle.items())
    return f"{number} × {needs}" if len(bundle) == 1 else f"{number} × ({needs})"


def memory_for_at_most(count: int) -> float:
    """The memory per process with which the connected cluster holds at most `count` of them.

    Args:
        count: at least 1.

    Returns:
        bytes; see `memory_share`.
    """
    return memory_share([node["Resources"].get("memory", 0.0) for node in live_nodes()], count)


def memory_share(memory: Iterable[float], count: int) -> float:
    """The least share of memory of which the nodes hold at most `count`.

    Args:
        memory: of each node [bytes].
        count: at least 1.

    Returns:
        bytes. If there are more than `count` identical nodes, it is a whole node's memory, and
        each node holds one share.
    """
    amounts = [amount for amount in memory if amount]
    shares = sorted(amount / k for amount in amounts for k in range(1, count + 1))
    fitting = (
        share for share in shares if sum(int(amount / share + 1e-9) for amount in amounts) <= count
    )
    return float(int(next(fitting, max(amounts))))


def _declared_to_ray() -> Capacity | None:
    """The limits that the autoscaler declared to the cluster's control store."""
    config = declared_cluster()
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
    """The limits in the file of a cluster made by `ray up`, if this is its head node."""
    path = autoscaling_config_path()
    return None if path is None else declared_in(path)


def declared_in(path: Path) -> Capacity | None:
    """Reads the limits in the cluster file of `ray up`; `None` if it cannot be understood."""
    import yaml

    try:
        config = yaml.safe_load(path.read_text())
        limit = config.get("max_workers", 2)
        head, added = [], []
        for name, node in config["available_node_types"].items():
            # For hosts listed by address, the file does not state their resources.
            resources = {k: float(v) for k, v in (node.get("resources") or {}).items()} or None
            if name == config.get("head_node_type"):
                head.append(NodeGroup(resources))
            else:
                added.append(NodeGroup(resources, node.get("max_workers", limit)))
        return Capacity(head, added, max_added=limit)
    except (OSError, AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        logger.debug("cannot read the autoscaler's config %s: %s", path, error)
        return None


def _undeclared(live: Capacity) -> Capacity | None:
    """Any nodes may come, if an autoscaler runs that does not state its limits."""
    return replace(live, addable=[NodeGroup(None, math.inf)]) if has_autoscaler() else None
