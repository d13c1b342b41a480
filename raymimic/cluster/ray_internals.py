"""Everything that raymimic uses of Ray beside its public API.

Each function says which private part it needs. `tests/unit/test_ray_internals.py` fails with a
plain sentence when a new Ray changes one.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# The monitor reports for the first time some seconds after its cluster has started.
_FIRST_REPORT_S = 10.0
_STATUS_KEY = b"__autoscaling_status"
# Methods of Ray's node, which starts the processes of a cluster.
_STARTS_OF_HELPERS = ("start_log_monitor", "start_monitor", "start_api_server")


def started_here() -> bool:
    """Whether this process started the connected cluster, which then ends with it."""
    from ray._private.worker import _global_node

    return _global_node is not None and bool(_global_node.head)


def raylet_logs(node: Mapping[str, Any]) -> Path:
    """The folder of the logs of a node's Ray processes, on that node.

    Args:
        node: an entry of `ray.nodes()`. Its socket lies in `<session>/sockets`.
    """
    return Path(node["RayletSocketName"]).parent.parent / "logs"


@contextlib.contextmanager
def no_driver_messages() -> Iterator[None]:
    """Keeps the cluster's messages off the driver's stdout: they stand in Ray's logs.

    `ray.init(log_to_driver=False)` does not cover those on lost nodes and processes.
    """
    import ray._private.worker as ray_worker

    before = ray_worker._worker_logs_enabled
    ray_worker._worker_logs_enabled = False
    try:
        yield
    finally:
        ray_worker._worker_logs_enabled = before


@contextlib.contextmanager
def own_sigterm_handler() -> Iterator[None]:
    """Scope in which `ray.init` leaves the handler of SIGTERM alone.

    Ray would replace it by its own, and its core would put another before that, which dumps a
    trace.
    """
    import ray._private.utils as ray_utils

    before, ray_utils.set_sigterm_handler = ray_utils.set_sigterm_handler, lambda handler: None
    try:
        yield
    finally:
        ray_utils.set_sigterm_handler = before


@contextlib.contextmanager
def no_helpers() -> Iterator[None]:
    """Scope in which `ray.init` starts a cluster without the processes that no command needs.

    The log monitor copies the output of workers to the driver, the monitor asks an autoscaler for
    nodes, and the server of the dashboard runs, and reports usage, even without a dashboard. They
    take four seconds of a core at each start, and `ray.init` waits for the server.
    """
    from ray._private.node import Node
    from ray.experimental.internal_kv import _internal_kv_put

    before = {name: getattr(Node, name) for name in _STARTS_OF_HELPERS}
    for name in _STARTS_OF_HELPERS:
        setattr(Node, name, lambda node, **options: None)
    try:
        yield
        # In the monitor's place: trials of a sweep need not wait for its first report.
        _internal_kv_put(_STATUS_KEY, b"{}")
    finally:
        for name, start in before.items():
            setattr(Node, name, start)


def job_config() -> Any:
    """Settings of `ray.init` that keep the current folder off the import path of Ray's workers.

    Ray puts the driver's current folder first there, except for jobs that a Ray client submits
    (hence the private setting) and jobs with a working directory of their own, as those of
    `ray job submit`.
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return None
    from ray.job_config import JobConfig

    return JobConfig(_client_job=True)


# -- Ray Train --


def torch_trainer(**arguments: Any) -> Any:
    """Makes a `TorchTrainer` without the helper processes that a training has no use for.

    The workers read no Ray datasets. A cluster that this process started adds no nodes, loses none
    to its provider, and ends with this process: nobody has to ask an autoscaler for room, to watch
    for nodes that are taken back, or to free room after a controller. Each of these helpers takes
    seconds to start, and the workers wait for most of them.

    Args:
        arguments: those of `TorchTrainer`.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    alone = started_here()
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0" if alone else "1"
    unused = {"DatasetsCallback"} | ({"PlacementGroupCleanerCallback"} if alone else set())

    class NoRequests(FixedScalingPolicy):
        def after_controller_start(self, train_run_context: Any) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    class Trainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            made = super()._create_default_callbacks()  # type: ignore[misc] # V2 has it
            return [callback for callback in made if type(callback).__name__ not in unused]

        def _initialize_and_run_controller(self, **parts: Any) -> Any:
            if alone:
                parts["scaling_policy"] = NoRequests(self.scaling_config)  # type: ignore[arg-type]
            return super()._initialize_and_run_controller(**parts)  # type: ignore[misc]

    return Trainer(**arguments)


# -- autoscalers --


def declared_cluster() -> Any:
    """The limits that an autoscaler declared to the cluster's control store.

    Ray Train reads them the same way.

    Returns:
        a `ClusterConfig` of `ray.core.generated.autoscaler_pb2`; `None` without a declaration.
    """
    from ray._private.state import state

    return state.get_cluster_config()


def autoscaling_config_path() -> Path | None:
    """The `--autoscaling-config` of this cluster's monitor, if the monitor runs on this node."""
    for argument in monitor_arguments():
        name, _, value = argument.partition("=")
        if name == "--autoscaling-config" and value:
            return Path(value).expanduser()
    return None


def monitor_arguments() -> list[str]:
    """The command line of this cluster's monitor, from /proc; empty if it runs elsewhere."""
    import ray

    address = f"--gcs-address={ray.get_runtime_context().gcs_address}"
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            arguments = cmdline.read_bytes().decode(errors="replace").split("\0")
            if address in arguments and any(a.endswith("monitor.py") for a in arguments):
                return arguments
    return []


def has_autoscaler() -> bool:
    """Whether the cluster's monitor adds nodes, rather than only reporting those that joined.

    Nodes that a provider made have a type with a name. A monitor that only reports calls the type
    of each node `node_<id>` (autoscaler v1) or gives it none (v2).
    """
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    if is_autoscaler_v2(fetch_from_server=True):
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        return any(n.ray_node_type_name for n in (*status.active_nodes, *status.idle_nodes))
    report = json.loads(monitor_report() or b"{}").get("autoscaler_report") or {}
    types = [*(report.get("node_type_mapping") or {}).values(), *(report.get("active_nodes") or {})]
    return any(not name.startswith("node_") for name in types)


def monitor_report() -> bytes | None:
    """The newest report of the cluster's monitor, as JSON; waits for the first one.

    A cluster that this process started itself has no autoscaler, so there it does not wait.
    """
    from ray.experimental.internal_kv import _internal_kv_get

    end = time.monotonic() + (0.0 if started_here() else _FIRST_REPORT_S)
    while True:
        report: bytes | None = _internal_kv_get(_STATUS_KEY)
        if report is not None or time.monotonic() >= end:
            return report
        time.sleep(0.2)


# -- Ray Tune's schedulers --


def next_perturbation(scheduler: Any) -> int:
    """The time at which the trials of a synchronous `PopulationBasedTraining` meet next."""
    return int(scheduler._next_perturbation_sync)


def population_state(scheduler: Any, trial: Any) -> Any:
    """The state of a trial in `PopulationBasedTraining`; `None` if it does not know the trial.

    Returns:
        an object with `last_train_time`, `last_score` and `last_result`, which may be changed.
    """
    return scheduler._trial_state.get(trial)


def median_results(scheduler: Any, trial: Any) -> list[dict[str, Any]]:
    """The results of a trial that a `MedianStoppingRule` has seen, oldest first."""
    return list(scheduler._results.get(trial, ()))
