"""Decides the resources of a run on a cluster, and refuses a run that it can never place."""

import logging
import math
from dataclasses import dataclass, replace

from raymimic.cluster.capacity import Capacity, live_capacity, possible_capacity
from raymimic.config import BaseConfig
from raymimic.errors import ClusterError

logger = logging.getLogger(__name__)

_LEAST_CPUS = 0.001


@dataclass(frozen=True)
class Reservation:
    """The resources that a run reserves.

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


def reserve(config: BaseConfig) -> Reservation:
    """Decides the resources that a run reserves on the connected cluster; see `reserve_on`."""
    live = live_capacity()
    return reserve_on(live, possible_capacity(live), config)


def reserve_on(live: Capacity, possible: Capacity, config: BaseConfig) -> Reservation:
    """Decides the resources that a run reserves on a cluster.

    If training workers and evaluation actors do not fit side by side, all CPU requests shrink by
    one factor, so that evaluation can overlap training on a small machine.

    Args:
        live: the present nodes.
        possible: the nodes that there may be.
        config: of the run.

    Raises:
        ClusterError: the workers can never be placed.
    """
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


def trials_that_fit(config: BaseConfig) -> tuple[Reservation, float]:
    """The number of trainings that the connected cluster holds at a time; see `trials_on`."""
    live = live_capacity()
    return trials_on(live, possible_capacity(live), config)


def trials_on(live: Capacity, possible: Capacity, config: BaseConfig) -> tuple[Reservation, float]:
    """The number of trainings with this config that a cluster holds at a time.

    None of them has to wait for resources that another one holds. A training without workers of
    its own (`ray.num_workers` 0) is one process that evaluates too.

    Args:
        live: the present nodes.
        possible: the nodes that there may be.
        config: of each training.

    Returns:
        the resources of each, and their number, at least 1; infinite without a known limit.

    Raises:
        ClusterError: the cluster can never place even one.
    """
    wanted = _wanted(config, live, possible)
    if wanted.num_workers == 0:
        wanted = replace(wanted, num_workers=1, num_actors=0)
    room = max(live.room(wanted.worker_bundle), possible.room(wanted.worker_bundle))
    if room < wanted.num_workers:
        raise ClusterError(
            f"the cluster can never place a trial of {wanted.num_workers} workers of "
            f"{_needs(wanted)} each, as it has room for {int(room)}; lower 'resources', or enlarge "
            "the cluster"
        )
    if room == math.inf:
        return wanted, room
    if wanted.num_actors == 0:
        return wanted, room // wanted.num_workers
    count = 1
    while room >= (count + 1) * wanted.num_workers and (
        _fitting_factor(_times(wanted, count + 1), possible) == 1
    ):
        count += 1
    return wanted, count


def _times(wanted: Reservation, count: int) -> Reservation:
    return replace(
        wanted, num_workers=wanted.num_workers * count, num_actors=wanted.num_actors * count
    )


def _needs(wanted: Reservation) -> str:
    """A worker's resources in words, such as `1 CPU and 1 GPU`."""
    return " and ".join(f"{v:g} {k}" for k, v in wanted.worker_bundle.items())


def _wanted(config: BaseConfig, live: Capacity, possible: Capacity) -> Reservation:
    """The resources that a run asks for, whether or not they fit."""
    settings = config.ray
    gpus = settings.gpus_per_worker
    if gpus is None:
        gpus = 1 if config.train.cuda and (live.has("GPU") or possible.has("GPU")) else 0
    return Reservation(
        settings.num_workers,
        settings.cpus_per_worker,
        float(gpus),
        settings.rollout_actors if config.experiment.rollout.enabled else 0,
        settings.cpus_per_actor,
    )


def _check_placeable(
    wanted: Reservation, live: Capacity, possible: Capacity, timeout_s: float
) -> None:
    bundle = wanted.worker_bundle
    room = live.room(bundle)
    if room >= wanted.num_workers:
        return
    room = max(room, possible.room(bundle))
    if room == math.inf:
        logger.warning(
            "the cluster's autoscaler declares no maximum, so only waiting (%g s at most, "
            "ray.placement_timeout_s) shows whether %d workers of %s each can be placed",
            timeout_s,
            wanted.num_workers,
            _needs(wanted),
        )
    elif room < wanted.num_workers:
        holder = "its autoscaler may add nodes for" if possible.addable else "it has room for"
        remedy = f"use --workers {int(room)}, " if room >= 1 else ""
        raise ClusterError(
            f"the cluster can never place {wanted.num_workers} workers (ray.num_workers) of "
            f"{_needs(wanted)} each, as {holder} {int(room)}; {remedy}lower ray.cpus_per_worker or "
            "ray.gpus_per_worker, or enlarge the cluster"
        )


def _fitting_factor(wanted: Reservation, capacity: Capacity) -> float:
    """The factor, at most 1, by which CPU requests must shrink to fit side by side.

    Ray places one request after the other, so a sum that fits all nodes together may leave pieces
    at their edges that hold nothing. Either of two conditions excludes that in any order: the nodes
    have room for as many of the largest request as there are requests; or enough is left for all
    when each node but one lacks the largest request. (A request `m` fails only if each node has
    less than `m` left.)
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


def share_of_cpus(cpus: float, number: int) -> float:
    """The CPUs of each of some actors: one, or an equal part of all.

    Args:
        cpus: of the cluster.
        number: of actors.

    Raises:
        ClusterError: Ray cannot count so small a part.
    """
    if cpus / number < _LEAST_CPUS:
        raise ClusterError(f"{number:,} actors are too many for {cpus:g} CPUs: lower --actors")
    return min(1.0, cpus / number)


def _round_down(cpus: float) -> float:
    """Rounds down to thousandths, which Ray can count; at least one of them."""
    return max(int(cpus * 1000 + 1e-6) / 1000, _LEAST_CPUS)
