"""Each private part of Ray that raymimic uses still exists and behaves.

A failure means that the installed Ray changed the part; `raymimic/cluster/ray_internals.py` holds
the one function to adapt.
"""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray._private.node import Node
from ray._private.worker import print_to_stdstream
from ray._raylet import GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, GCS_AUTOSCALER_STATE_NAMESPACE, GcsClient
from ray.core.generated.autoscaler_pb2 import ClusterConfig
from ray.train import RunConfig, ScalingConfig
from ray.tune.experiment import Trial
from ray.tune.schedulers import MedianStoppingRule, PopulationBasedTraining
from tiny import start_ray
from waiting import DEADLINE_S, wait_for

from raymimic.cluster import ray_internals
from raymimic.cluster.capacity import live_capacity, possible_capacity

pytestmark = pytest.mark.ray


def own_handler(signum: int, frame: Any) -> None:
    """A handler of SIGTERM that Ray must not replace."""
    raise SystemExit(128 + signum)


@pytest.fixture(scope="module", autouse=True)
def sigterm_handler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Starts Ray as `ray_session` does; the handler of SIGTERM that it leaves."""
    before = signal.signal(signal.SIGTERM, own_handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
        patch.chdir(tmp_path_factory.mktemp("current"))
        with ray_internals.own_sigterm_handler():
            start_ray(job_config=ray_internals.job_config())
        yield signal.getsignal(signal.SIGTERM)
        ray.shutdown()
    signal.signal(signal.SIGTERM, before)


def test_ray_leaves_the_handler_of_sigterm(sigterm_handler: Any) -> None:
    assert sigterm_handler is own_handler, (
        "ray.init no longer sets its handler by ray._private.utils.set_sigterm_handler"
    )


def test_workers_do_not_import_from_the_current_folder() -> None:
    @ray.remote(num_cpus=0.1)
    def path() -> list[str]:
        import sys

        return sys.path

    assert str(Path.cwd()) not in ray.get(path.remote(), timeout=DEADLINE_S), (
        "JobConfig(_client_job=True) no longer keeps the driver's folder off the workers' path"
    )


def test_ray_says_who_started_the_cluster() -> None:
    assert ray_internals.started_here(), "ray._private.worker._global_node has no `head` any more"


def test_messages_of_the_cluster_can_be_turned_off(capsys: pytest.CaptureFixture[str]) -> None:
    message = {"pid": "raylet", "ip": "127.0.0.1", "is_err": True}
    with ray_internals.no_driver_messages():
        print_to_stdstream({**message, "lines": ["a node was lost"]}, ignore_prefix=False)
    assert "a node was lost" not in capsys.readouterr().err, (
        "ray._private.worker._worker_logs_enabled no longer turns messages off"
    )
    print_to_stdstream({**message, "lines": ["a raylet was killed"]}, ignore_prefix=False)
    assert "a raylet was killed" in capsys.readouterr().err


def test_logs_lie_beside_the_raylets_socket() -> None:
    (node,) = ray.nodes()
    assert (ray_internals.raylet_logs(node) / "raylet.out").exists(), (
        "the raylet's socket is no longer in <session>/sockets, or its log has another name"
    )


def test_limits_of_an_autoscaler_are_found() -> None:
    assert ray_internals.declared_cluster() is None
    gcs = GcsClient(ray.get_runtime_context().gcs_address)
    key, namespace = (
        name.encode()
        for name in (GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, GCS_AUTOSCALER_STATE_NAMESPACE)
    )
    declared = ClusterConfig(max_resources={"CPU": 5})
    declared.node_group_configs.add(resources={"CPU": 2}, min_count=1, max_count=3)
    gcs.internal_kv_put(key, declared.SerializeToString(), True, namespace)
    try:
        config = ray_internals.declared_cluster()
        assert config == declared, "ray._private.state.state.get_cluster_config has changed"
        assert possible_capacity(live_capacity()).room({"CPU": 2.0}) == 2.5
    finally:
        gcs.internal_kv_del(key, False, namespace)


def programs() -> set[str]:
    """The names of the programs, and of Python's scripts, that this process has started."""
    names: set[str] = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has ended
            names |= {Path(part).name for part in child.cmdline() if "/" in part}
    return names


def test_a_cluster_starts_without_helpers() -> None:
    assert {"raylet", "gcs_server"} <= programs()
    helpers = {"log_monitor.py", "monitor.py", "dashboard.py"}
    assert not helpers & programs(), "a cluster's helpers are no longer started by methods of Node"
    assert ray_internals.monitor_report() == b"{}"
    assert not ray_internals.has_autoscaler()
    starts = [getattr(Node, name) for name in ray_internals._STARTS_OF_HELPERS]
    assert [start.__name__ for start in starts] == list(ray_internals._STARTS_OF_HELPERS)


def test_the_monitor_reports_and_adds_no_nodes_to_a_local_cluster() -> None:
    node = ray_worker._global_node
    assert node is not None
    node.start_monitor()
    assert "monitor.py" in programs()
    assert ray_internals.monitor_arguments(), (
        "no process `monitor.py --gcs-address=…` runs on the head node any more"
    )
    assert ray_internals.autoscaling_config_path() is None
    assert ray_internals._STATUS_KEY.decode() == ray_constants.DEBUG_AUTOSCALING_STATUS
    report: dict[str, Any] = {}

    def reported() -> bool:
        report.update(json.loads(ray_internals.monitor_report() or "{}"))
        return "autoscaler_report" in report

    wait_for(reported, "the monitor to write an `autoscaler_report`, as it did")
    nodes = report["autoscaler_report"]["active_nodes"]
    assert nodes
    assert all(name.startswith("node_") for name in nodes), (
        "a monitor that adds no nodes no longer calls their types node_<id>"
    )
    assert not ray_internals.has_autoscaler()


def stub_trial() -> Trial:
    trial = Trial("a trial", stub=True)
    trial.config["x"] = 1
    return trial


def test_population_based_training_keeps_its_state_of_trials() -> None:
    pbt = PopulationBasedTraining(
        time_attr="step",
        metric="score",
        mode="max",
        perturbation_interval=10,
        burn_in_period=20,
        hyperparam_mutations={"x": [1, 2]},
        synch=True,
    )
    meeting = ray_internals.next_perturbation(pbt)
    assert meeting == 20, "PopulationBasedTraining._next_perturbation_sync has changed"
    trial, controller = stub_trial(), SimpleNamespace(search_alg=None)
    assert ray_internals.population_state(pbt, trial) is None
    pbt.on_trial_add(controller, trial)  # type: ignore[arg-type]
    state = ray_internals.population_state(pbt, trial)
    assert [state.last_train_time, state.last_score, state.last_result] == [0, None, None], (
        "PopulationBasedTraining._trial_state has changed"
    )


def test_the_median_rule_keeps_its_results() -> None:
    rule = MedianStoppingRule(time_attr="step", metric="score", mode="max", grace_period=100)
    trial, controller = stub_trial(), SimpleNamespace()
    assert ray_internals.median_results(rule, trial) == []
    for step in (1, 2):
        rule.on_trial_result(controller, trial, {"step": step, "score": 0.5})  # type: ignore[arg-type]
    assert [result["step"] for result in ray_internals.median_results(rule, trial)] == [1, 2], (
        "MedianStoppingRule._results has changed"
    )


# -- Ray Train --


def test_a_training_starts_no_helpers_that_it_has_no_use_for(tmp_path: Path) -> None:
    def note_siblings() -> None:
        """Writes the titles of the processes that this node has started, in a worker of it."""
        titles = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                if int(parent) == os.getppid():
                    titles.append((entry / "cmdline").read_bytes().strip(b"\0").decode().strip())
        (tmp_path / "titles").write_text("\n".join(titles))

    trainer = ray_internals.torch_trainer(
        train_loop_per_worker=note_siblings,
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(storage_path=str(tmp_path)),
    )
    assert trainer.fit().error is None
    titles = (tmp_path / "titles").read_text().splitlines()
    started = {title.partition(".")[0] for title in titles if title.startswith("ray::")}
    needed = {"TrainController", "RayTrainWorker", "SynchronizationActor"}
    own = {"IDLE", "RuntimeEnvAgent", "DashboardAgent"}  # of Ray itself
    assert {title.removeprefix("ray::") for title in started} - own == needed, (
        "Ray Train starts its helpers in another way"
    )
