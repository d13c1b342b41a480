"""The Ray cluster: joining it, and whether it can ever place what a run asks for."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raymimic.config import BaseConfig
from raymimic.errors import ClusterError

logger = logging.getLogger(__name__)


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
    """Nodes alike: what each has, and how many there may be (`None`: no limit declared)."""

    resources: dict[str, float]
    count: int | None


@contextlib.contextmanager
def ray_session(config: BaseConfig) -> Iterator[None]:
    """Joins the cluster that config or environment name, or starts a local one, and leaves it.

    A Ray that is already connected is used and left alone.

    Raises:
        ClusterError: the named cluster does not answer.
    """
    # Idle workers must see the driver's modules, not a copy of its folder.
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    import ray

    if ray.is_initialized():
        yield
        return
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
            **options,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
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


def plan(config: BaseConfig) -> Resources:
    """Decides what a run reserves on the connected cluster.

    Where training workers and evaluation actors do not fit side by side, all CPU requests shrink
    by one factor, so that evaluation can overlap training on a small machine.

    Raises:
        ClusterError: the workers can never be placed.
    """
    import ray

    settings = config.ray
    gpus = settings.gpus_per_worker
    groups, declared = _node_groups()
    if gpus is None:
        gpus = 1 if config.train.cuda and any(g.resources.get("GPU") for g in groups) else 0
    wanted = Resources(
        settings.num_workers,
        settings.cpus_per_worker,
        float(gpus),
        settings.rollout_actors if config.experiment.rollout.enabled else 0,
        settings.cpus_per_actor,
    )
    _check_placeable(wanted, groups, declared, settings.placement_timeout_s)
    total = ray.cluster_resources().get("CPU", 0.0)
    workers = wanted.num_workers * wanted.cpus_per_worker
    demand = workers + wanted.num_actors * wanted.cpus_per_actor
    if declared or demand <= total or demand == 0:
        return wanted
    factor = total / demand
    # Rounded down to Ray's resolution, so that the sum still fits.
    return replace(
        wanted,
        cpus_per_worker=_round_down(wanted.cpus_per_worker * factor),
        cpus_per_actor=_round_down(wanted.cpus_per_actor * factor),
    )


def _round_down(cpus: float) -> float:
    return max(int(cpus * 1000) / 1000, 0.001)


def _check_placeable(
    wanted: Resources, groups: list[NodeGroup], declared: bool, timeout_s: float
) -> None:
    capacity, unlimited = 0, False
    for group in groups:
        fit = min(
            (int(group.resources.get(k, 0) / v + 1e-9) for k, v in wanted.worker_bundle.items() if v),
            default=wanted.num_workers,
        )
        if fit and group.count is None:
            unlimited = True
        capacity += fit * (group.count or 0)
    if capacity >= wanted.num_workers:
        return
    needs = " and ".join(f"{v:g} {k}" for k, v in wanted.worker_bundle.items())
    if unlimited:
        logger.warning(
            "the cluster's autoscaler declares no maximum, so whether %d workers of %s each can "
            "be placed shows only by waiting, %g s at most (ray.placement_timeout_s)",
            wanted.num_workers,
            needs,
            timeout_s,
        )
        return
    holder = "the cluster's autoscaler may add nodes for" if declared else "the cluster has room for"
    raise ClusterError(
        f"ray.num_workers asks for {wanted.num_workers} workers of {needs} each, but {holder} "
        f"only {capacity}; use --workers {max(capacity, 1)}, lower ray.cpus_per_worker or "
        "ray.gpus_per_worker, or enlarge the cluster"
    )


def _node_groups() -> tuple[list[NodeGroup], bool]:
    """The nodes that there are or, where an autoscaler runs, that there may be.

    Returns:
        groups of nodes, and whether they come from an autoscaler.
    """
    import ray

    live = [
        NodeGroup({k: float(v) for k, v in node["Resources"].items()}, 1)
        for node in ray.nodes()
        if node["Alive"]
    ]
    declared = _declared_to_gcs() or _declared_in_file()
    if declared:
        return declared, True
    if _has_autoscaler():
        # It says nothing of its limits: more nodes like the present ones may come, and others.
        return [*live, *(replace(group, count=None) for group in live)], True
    return live, False


def _declared_to_gcs() -> list[NodeGroup]:
    """What the autoscaler declared to the cluster's control store (as Ray Train itself reads)."""
    from ray._private.state import state

    config = state.get_cluster_config()
    if config is None:
        return []
    return [
        NodeGroup(
            {k: float("inf") if v == -1 else float(v) for k, v in group.resources.items()},
            None if group.max_count == -1 else group.max_count,
        )
        for group in config.node_group_configs
    ]


def _declared_in_file() -> list[NodeGroup]:
    """What the file of a cluster made by `ray up` declares, when this is its head node."""
    import yaml

    path = _autoscaling_config_path()
    if path is None:
        return []
    try:
        config = yaml.safe_load(path.read_text())
        types, head = config["available_node_types"], config.get("head_node_type")
        limit = config.get("max_workers", 2)
        groups = []
        for name, node in types.items():
            resources = {k: float(v) for k, v in (node.get("resources") or {}).items()}
            count = 1 if name == head else min(node.get("max_workers", limit), limit)
            groups.append(NodeGroup(resources, count))
        return groups
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        logger.debug("cannot read the autoscaler's config %s: %s", path, error)
        return []


def _autoscaling_config_path() -> Path | None:
    """The `--autoscaling-config` of the Ray monitor on this node, from /proc."""
    if not sys.platform.startswith("linux"):
        return None
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            arguments = cmdline.read_bytes().decode(errors="replace").split("\0")
            if any(a.endswith("monitor.py") for a in arguments):
                for argument in arguments:
                    name, _, value = argument.partition("=")
                    if name == "--autoscaling-config" and value:
                        return Path(value).expanduser()
    return None


def _has_autoscaler() -> bool:
    """Whether the cluster's monitor manages nodes, rather than only reporting those that joined.

    A monitor that only reports names each node's type `node_<id>`.
    """
    from ray.experimental.internal_kv import _internal_kv_get

    report = _internal_kv_get(b"__autoscaling_status")
    if not report:
        return False
    with contextlib.suppress(ValueError, KeyError, TypeError):
        types = json.loads(report)["autoscaler_report"]["active_nodes"]
        return any(not name.startswith("node_") for name in types)
    return False
