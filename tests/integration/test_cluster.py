"""Placement on a cluster, and how a training on Ray ends when something goes wrong."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import h5py
import pytest
import ray
from ray._private.state import state
from ray._raylet import GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, GCS_AUTOSCALER_STATE_NAMESPACE, GcsClient
from ray.core.generated.autoscaler_pb2 import ClusterConfig
from tiny import Ran, start_ray, train_args, write_hopper
from waiting import DEADLINE_S

from raymimic.cluster.placement import Reservation, reserve
from raymimic.cluster.watch import ClusterWatch
from raymimic.config import config_factory
from raymimic.errors import ClusterError
from raymimic.rollout.actors import RolloutPool
from raymimic.rollout.evaluation import EvalJob
from raymimic.sweep.trials.placement import PlacementWatch

pytestmark = pytest.mark.ray

ALGORITHMS = """
from raymimic.algo import BC, register_algo_factory_func
from raymimic.config.bc_config import BCConfig


class RaisingConfig(BCConfig):
    ALGO_NAME = "raising"


class Raising(BC):
    def train_on_batch(self, batch, epoch, validate=False):
        raise ZeroDivisionError("nothing can be divided by zero")


class FillingConfig(BCConfig):
    ALGO_NAME = "filling"


class Filling(BC):
    def train_on_batch(self, batch, epoch, validate=False):
        with open("/dev/full", "w") as cache:
            cache.write("a batch")


register_algo_factory_func("raising")(lambda algo_config: (Raising, {}))
register_algo_factory_func("filling")(lambda algo_config: (Filling, {}))
"""
ENVIRONMENTS = """
import gymnasium
import numpy as np


class Breaking(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array"]}
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (11,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (3,))

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        return np.zeros(11, np.float32), {}

    def step(self, action):
        raise ValueError("the simulator has broken")


gymnasium.register("Breaking-v0", Breaking)
"""


@pytest.fixture(scope="module", autouse=True)
def _ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two CPUs, and modules of a user in the folder where Ray is started."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "algorithms.py").write_text(ALGORITHMS)
    (folder / "environments.py").write_text(ENVIRONMENTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        start_ray()
        yield
        ray.shutdown()


@pytest.fixture
def declare() -> Iterator[Callable[..., None]]:
    """Declares to Ray that there may be so many nodes (-1: any number) of two CPUs each."""
    gcs = GcsClient(ray.get_runtime_context().gcs_address)
    place = GCS_AUTOSCALER_CLUSTER_CONFIG_KEY.encode(), GCS_AUTOSCALER_STATE_NAMESPACE.encode()

    def put(max_count: int, **max_resources: int) -> None:
        config = ClusterConfig(max_resources=max_resources)
        config.node_group_configs.add(resources={"CPU": 2}, min_count=1, max_count=max_count)
        gcs.internal_kv_put(place[0], config.SerializeToString(), True, place[1])

    yield put
    gcs.internal_kv_del(place[0], False, place[1])
    assert state.get_cluster_config() is None


def planned(workers: int, **settings: float) -> Reservation:
    config = config_factory("bc")
    with config.values_unlocked():
        config.train.cuda = False
        config.ray.num_workers = workers
        for key, value in settings.items():
            config.ray[key] = value
    return reserve(config)


def ray_train_args(dataset: Path, number: int, *settings: str, algo: str = "bc") -> list[str]:
    return [*train_args(dataset, *settings, algo=algo), "--workers", str(number)]


# -- placement --


def test_requests_shrink_to_fit_side_by_side() -> None:
    assert planned(2) == Reservation(2, 0.5, 0.0, 2, 0.5)
    assert planned(1, rollout_actors=2) == Reservation(1, 0.666, 0.0, 2, 0.666)
    assert planned(2, rollout_actors=0) == Reservation(2, 1.0, 0.0, 0, 1.0)
    assert planned(1, cpus_per_worker=1.5, cpus_per_actor=0.25) == Reservation(1, 1.5, 0.0, 2, 0.25)


def test_more_workers_than_the_live_cluster_holds_are_refused_at_once(
    cli: Callable[..., Ran], hopper: Path, tmp_path: Path
) -> None:
    begin = time.monotonic()
    ran = cli(*ray_train_args(hopper, 3))
    assert time.monotonic() - begin < 150  # half of ray.placement_timeout_s
    assert ran.status == 2
    assert ran.err.count("\n") == 1
    assert "never place 3 workers (ray.num_workers)" in ran.err
    assert "--workers 2" in ran.err
    ran = cli(*ray_train_args(hopper, 3, "ray.cpus_per_worker=9999"))
    assert ran.status == 2
    assert "9999 CPU" in ran.err
    assert "ray.cpus_per_worker" in ran.err
    assert not list(tmp_path.iterdir())
    with pytest.raises(
        ClusterError, match=r"1 workers .* of 3 CPU each, as it has room for 0; lower"
    ):
        planned(1, cpus_per_worker=3)


def test_a_declared_maximum_is_the_limit(declare: Callable[..., None]) -> None:
    declare(3)
    assert planned(4) == Reservation(4, 1.0, 0.0, 2, 1.0)
    assert planned(6, rollout_actors=0).num_workers == 6
    with pytest.raises(ClusterError, match="autoscaler may add nodes for 6; use --workers 6"):
        planned(7)
    declare(3, CPU=5)
    with pytest.raises(ClusterError, match="autoscaler may add nodes for 5"):
        planned(6)


def test_without_a_declared_maximum_waiting_ends(
    declare: Callable[..., None],
    cli: Callable[..., Ran],
    hopper: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    declare(-1)
    with caplog.at_level(logging.WARNING, "raymimic"):
        ran = cli(*ray_train_args(hopper, 3, "ray.placement_timeout_s=3"))
    warnings = [r.getMessage() for r in caplog.records if "declares no maximum" in r.getMessage()]
    assert len(warnings) == 1
    assert "3 workers of 1 CPU each" in warnings[0]
    assert ran.status == 2
    assert "the cluster placed no workers within 3 s (ray.placement_timeout_s)" in ran.err


def test_resources_held_by_another_job_end_the_waiting(
    cli: Callable[..., Ran], hopper: Path
) -> None:
    other = ray.util.placement_group([{"CPU": 2}])
    assert other.wait(int(DEADLINE_S))
    try:
        ran = cli(*ray_train_args(hopper, 2, "ray.placement_timeout_s=3"))
    finally:
        ray.util.remove_placement_group(other)
    assert ran.status == 2
    assert "within 3 s (ray.placement_timeout_s): other jobs hold its resources" in ran.err


def test_waiting_for_a_node_with_room_ends() -> None:
    said: list[str] = []
    bundle = {"CPU": 2.0}
    watch = PlacementWatch(ClusterWatch(patience_s=0.2), bundle, said.append)

    def look(status: str = "PENDING") -> None:
        time.sleep(0.25)
        watch.on_step_begin(0, [SimpleNamespace(status=status)])

    look()
    bundle["CPU"] = 3.0  # as if a node were lost
    look("RUNNING")
    assert not said
    look()
    assert said == ["a node was lost; waiting for 1 × 3 CPU, at most 0.2 s"]
    bundle["CPU"] = 2.0  # and another came
    look()
    bundle["CPU"] = 3.0
    look()
    with pytest.raises(ClusterError, match="a node was lost and none came with room for a trial"):
        look()
    pool = RolloutPool(1, 1, cpus_per_actor=3, cluster=ClusterWatch(patience_s=0.2))
    pool.submit(EvalJob("none.pth", {}, [1], horizon=1))
    pool.poll()
    time.sleep(0.25)
    with pytest.raises(ClusterError, match="no node came with room for a rollout actor within"):
        pool.poll()
    pool.close()


# -- trainings --


def test_evaluations_run_beside_training(cli: Callable[..., Ran], hopper: Path) -> None:
    # At most two evaluations may wait, so a fourth epoch proves that the first were played while
    # the workers held their CPUs.
    ran = cli(
        *ray_train_args(
            hopper,
            2,
            "train.num_epochs=4",
            "experiment.rollout.enabled=true",
            "experiment.rollout.rate=1",
            "experiment.rollout.warmstart=0",
            "experiment.rollout.n=2",
            "experiment.rollout.horizon=5",
            "experiment.render_video=false",
        ),
        "--json",
    )
    assert ran.status == 0, ran.err
    log = (Path(ran.result["run_dir"]) / "logs" / "log.txt").read_text()
    assert log.index("evaluated epoch 1") < log.index("epoch 4/4")
    assert all(f"evaluated epoch {n}" in log for n in (1, 2, 3, 4))


def test_an_exception_of_an_algorithm_ends_the_run_after_its_restarts(
    cli: Callable[..., Ran], hopper: Path, tmp_path: Path
) -> None:
    args = ray_train_args(hopper, 1, "ray.max_failures=1", "train.output_dir=out")
    args[args.index("bc")] = "raising"
    ran = cli(*args, "--import", "algorithms")
    assert ran.status == 2
    assert ran.err.count("\n") == 1
    assert "ZeroDivisionError: nothing can be divided by zero" in ran.err
    (story,) = tmp_path.rglob("error.txt")
    assert str(story) in ran.err
    assert "algorithms.py" in story.read_text()


def test_a_disk_that_is_full_for_a_worker_ends_the_run_at_once(
    cli: Callable[..., Ran], hopper: Path
) -> None:
    args = ray_train_args(hopper, 1)
    args[args.index("bc")] = "filling"
    ran = cli(*args, "--import", "algorithms")
    assert ran.status == 2
    assert ran.err.count("\n") == 1
    assert "error: the disk is full: " in ran.err
    assert "No space left on device" in ran.err
    assert "waiting for" not in ran.out


def test_a_worker_says_of_its_data_what_this_process_would(
    cli: Callable[..., Ran], tmp_path: Path
) -> None:
    dataset = write_hopper(tmp_path / "mine.hdf5")
    with h5py.File(dataset, "a") as file:
        file["data/demo_2/actions"][7, 1] = float("nan")
    ran = cli(*ray_train_args(dataset, 1), "--traceback")
    assert ran.status == 2
    *trace, line = ran.err.splitlines()
    assert line.startswith("raymimic: error: ")
    assert "'demo_2'" in line
    assert "_complain_if_not_finite" in "\n".join(trace)  # which ran in the worker
    assert [path.name for path in tmp_path.iterdir()] == ["mine.hdf5"]


def test_an_error_that_a_worker_explains_ends_the_run_without_restarts(
    cli: Callable[..., Ran], hopper: Path
) -> None:
    rate = "algo.optim_params.policy.learning_rate.initial=1e30"
    ran = cli(*ray_train_args(hopper, 2, rate))
    assert ran.status == 2
    assert ran.err.count("\n") == 1
    assert "error: the loss is not a number in epoch" in ran.err
    assert "restarted" not in ran.out


def test_a_broken_environment_ends_the_run(cli: Callable[..., Ran], tmp_path: Path) -> None:
    dataset = write_hopper(tmp_path / "breaking.hdf5")
    with h5py.File(dataset, "a") as file:
        file["data"].attrs["env_args"] = json.dumps({"env_name": "Breaking-v0", "type": 2})
    ran = cli(
        *ray_train_args(
            dataset,
            1,
            "experiment.rollout.enabled=true",
            "experiment.rollout.rate=1",
            "experiment.rollout.warmstart=0",
            "experiment.render_video=false",
        ),
        *("--import", "environments"),
    )
    assert ran.status == 2
    assert ran.err.count("\n") == 1
    assert "the simulator has broken" in ran.err
    assert "Breaking-v0" in ran.err
    # Beside a Ray that is shut down, such a thread would take a whole core for good.
    assert "ray-train-fit" not in [thread.name for thread in threading.enumerate()]
