"""Reservations and trials that fit on nodes, as functions of the nodes alone."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest

from raymimic.cluster.capacity import Capacity, NodeGroup, declared_in, describe, memory_share
from raymimic.cluster.placement import Reservation, reserve_on, trials_on
from raymimic.config import BaseConfig, config_factory
from raymimic.errors import ClusterError


def nodes(*cpus: float, gpus: float = 0, **more: Any) -> Capacity:
    return Capacity([NodeGroup({"CPU": c, "GPU": gpus}) for c in cpus], **more)


def config(workers: int, actors: int = 2, cuda: bool = False, **settings: float) -> BaseConfig:
    made = config_factory("bc")
    with made.values_unlocked():
        made.train.cuda = cuda
        made.ray.num_workers, made.ray.rollout_actors = workers, actors
        for key, value in settings.items():
            made.ray[key] = value
    return made


def reserved(capacity: Capacity, *args: Any, **settings: Any) -> Reservation:
    return reserve_on(capacity, capacity, config(*args, **settings))


def placed_in_worst_order(capacity: Capacity, wanted: Reservation) -> bool:
    """Whether all requests fit, each on the node where it leaves the least room: all orders."""
    requests = [wanted.cpus_per_worker] * wanted.num_workers
    requests += [wanted.cpus_per_actor] * wanted.num_actors
    seen: set[tuple[tuple[float, ...], tuple[float, ...]]] = set()

    def fits(free: tuple[float, ...], left: tuple[float, ...]) -> bool:
        if not left or (free, left) in seen:
            return True
        seen.add((free, left))
        for i, request in enumerate(left):
            if i and request == left[i - 1]:
                continue
            rest = left[:i] + left[i + 1 :]
            places = [k for k, room in enumerate(free) if room >= request - 1e-9]
            if not places:
                return False
            for k in places:
                after = tuple(sorted([*free[:k], round(free[k] - request, 6), *free[k + 1 :]]))
                if not fits(after, rest):
                    return False
        return True

    free = tuple(sorted(cpus for cpus, count in capacity.nodes for _ in range(int(count))))
    return fits(free, tuple(sorted(requests)))


# -- fitting side by side --


def test_requests_that_fit_stay() -> None:
    assert reserved(nodes(4), 2) == Reservation(2, 1.0, 0.0, 2, 1.0)
    assert reserved(nodes(2), 2, 0) == Reservation(2, 1.0, 0.0, 0, 1.0)
    assert reserved(nodes(1, 1, 1, 1), 2) == Reservation(2, 1.0, 0.0, 2, 1.0)


def test_requests_shrink_by_one_factor_and_are_rounded_down() -> None:
    assert reserved(nodes(2), 2) == Reservation(2, 0.5, 0.0, 2, 0.5)
    assert reserved(nodes(2), 1) == Reservation(1, 0.666, 0.0, 2, 0.666)
    # 2 of 2.5 CPUs
    shrunk = reserved(nodes(2), 1, cpus_per_worker=1.5, cpus_per_actor=0.5)
    assert shrunk == Reservation(1, 1.2, 0.0, 2, 0.4)
    # Ray counts nothing smaller than a thousandth here.
    assert reserved(nodes(1), 1, 2, cpus_per_actor=0.001).cpus_per_actor == 0.001


@pytest.mark.parametrize(
    ("cpus", "workers", "actors", "per_worker", "per_actor"),
    [
        ((2, 1), 2, 2, 1.0, 1.0),
        ((3, 2), 2, 3, 1.5, 0.5),
        ((1, 1, 1), 2, 3, 1.0, 0.7),
        ((5, 1), 3, 2, 1.0, 2.0),
        ((2, 2), 1, 4, 2.0, 0.3),
    ],
)
def test_whatever_order_ray_places_in_on_unequal_nodes(
    cpus: tuple[float, ...], workers: int, actors: int, per_worker: float, per_actor: float
) -> None:
    capacity = nodes(*cpus)
    settings = {"cpus_per_worker": per_worker, "cpus_per_actor": per_actor}
    result = reserved(capacity, workers, actors, **settings)
    assert placed_in_worst_order(capacity, result)
    factor = result.cpus_per_worker / per_worker
    assert result.cpus_per_actor == pytest.approx(factor * per_actor, abs=0.002)
    unshrunk = Reservation(workers, per_worker, 0.0, actors, per_actor)
    assert factor == 1 or not placed_in_worst_order(nodes(*cpus), unshrunk) or factor > 0.4


def test_gpus_are_asked_for_if_the_cluster_has_them() -> None:
    assert reserved(nodes(4), 2, cuda=True).gpus_per_worker == 0
    assert reserved(nodes(4, gpus=2), 2, cuda=True).gpus_per_worker == 1
    assert reserved(nodes(4, gpus=2), 2, cuda=False).gpus_per_worker == 0
    assert reserved(nodes(4, gpus=1), 2, cuda=True, gpus_per_worker=0.5).gpus_per_worker == 0.5
    live = nodes(4)
    may_come = Capacity(live.present, [NodeGroup({"CPU": 4.0, "GPU": 4.0}, 1)])
    assert reserve_on(live, may_come, config(2, cuda=True)).worker_bundle == {"CPU": 1, "GPU": 1}


# -- impossible placements --


def test_more_workers_than_fit_are_refused() -> None:
    with pytest.raises(ClusterError) as refused:
        reserved(nodes(2), 3)
    assert str(refused.value) == (
        "the cluster can never place 3 workers (ray.num_workers) of 1 CPU each, as it has room for "
        "2; use --workers 2, lower ray.cpus_per_worker or ray.gpus_per_worker, or enlarge the "
        "cluster"
    )
    with pytest.raises(ClusterError, match="of 3 CPU each, as it has room for 0; lower ray"):
        reserved(nodes(2, 2), 1, cpus_per_worker=3)
    with pytest.raises(ClusterError, match="of 1 CPU and 1 GPU each, as it has room for 1; use"):
        reserved(nodes(8, gpus=1), 2, cuda=True)


def test_an_autoscaler_is_asked_for_what_it_may_add() -> None:
    live, added = nodes(1), [NodeGroup({"CPU": 2.0}, 2), NodeGroup({"CPU": 4.0}, 2)]
    possible = Capacity(live.present, added, max_added=3)
    assert possible.room({"CPU": 1.0}) == 1 + 4 + 4 + 2
    assert reserve_on(live, possible, config(11, 0)).num_workers == 11
    with pytest.raises(ClusterError, match="its autoscaler may add nodes for 11; use --workers 11"):
        reserve_on(live, possible, config(12, 0))
    limited = Capacity(live.present, added, max_resources={"CPU": 5.0})
    with pytest.raises(ClusterError, match="may add nodes for 5"):
        reserve_on(live, limited, config(6, 0))


def test_without_declared_limits_a_warning_says_so(caplog: pytest.LogCaptureFixture) -> None:
    live = nodes(1)
    unlimited = Capacity(live.present, [NodeGroup(None, math.inf)])
    with caplog.at_level(logging.WARNING):
        assert reserve_on(live, unlimited, config(3)) == Reservation(3, 1.0, 0.0, 2, 1.0)
    (record,) = caplog.records
    assert "declares no maximum" in record.getMessage()
    assert "3 workers of 1 CPU each" in record.getMessage()


# -- trials of a sweep --


def test_trials_that_fit_side_by_side() -> None:
    def count(capacity: Capacity, *args: Any, **settings: Any) -> float:
        return trials_on(capacity, capacity, config(*args, **settings))[1]

    assert count(nodes(8), 1, 0) == 8
    assert count(nodes(8), 3, 0) == 2
    assert count(nodes(8), 0) == 8  # one process each, which evaluates too
    assert count(nodes(8), 2, 2) == 2
    assert count(nodes(1), 1, 2) == 1  # shrinks rather than not running
    assert count(Capacity([NodeGroup(None)]), 1) == math.inf
    with pytest.raises(
        ClusterError, match=r"a trial of 3 workers .* room for 2; lower 'resources'"
    ):
        count(nodes(2), 3)


def test_memory_that_admits_so_many_processes() -> None:
    assert memory_share([100.0], 4) == 25
    assert memory_share([100.0, 50.0], 3) == 50
    assert memory_share([100.0, 30.0], 3) == 33  # three and none
    assert memory_share([100.0] * 4, 2) == 100


# -- limits and words --


def test_a_cluster_file_of_ray_up(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "max_workers: 2\nhead_node_type: head\navailable_node_types:\n"
        "  head: {resources: {CPU: 1}}\n  small: {resources: {CPU: 2}, max_workers: 1}\n"
        "  any: {resources: {}}\n"
    )
    capacity = declared_in(path)
    assert capacity == Capacity(
        [NodeGroup({"CPU": 1.0})], [NodeGroup({"CPU": 2.0}, 1), NodeGroup(None, 2)], max_added=2
    )
    assert capacity.room({"CPU": 1.0}) == math.inf  # the file does not state the hosts' resources
    path.write_text("max_workers: 2")
    assert declared_in(path) is None


def test_resources_in_words() -> None:
    assert describe({"CPU": 0.6}, 2) == "2 × 0.6 CPU"
    assert describe({"CPU": 1.0, "GPU": 1.0}, 1) == "1 × (1 CPU and 1 GPU)"
