"""System metrics: MLflow's names, sampled by threads that end with the run or with a worker."""

import itertools
import logging
import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from waiting import wait_for

from raymimic.errors import ConfigError
from raymimic.tracking.journal import JournalReader, spool_dir_of
from raymimic.tracking.mlflow_tracker import MLflowTracker
from raymimic.tracking.system_metrics import Sampling, SystemMonitor
from raymimic.tracking.tracker import Tracker, TrackerGroup
from raymimic.training.link import Event, LocalLink, MachineLoad, Mishap
from raymimic.training.machines import sampled, sampling_of

ENABLED = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
OF_SAMPLING = "MLFLOW_SYSTEM_METRICS_"


class NVMLError(Exception):
    """As the library's."""


def one_gpu() -> SimpleNamespace:
    """The library `pynvml` with one GPU, which does not tell its power."""

    def no_power(handle: Any) -> int:
        raise NVMLError("not supported")

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=3e6, total=12e6),
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=40),
        nvmlDeviceGetPowerUsage=no_power,
        nvmlDeviceGetEnforcedPowerLimit=no_power,
    )


def sampling_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "system-metrics"]


def test_points_have_mlflows_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    names: set[str] = set()
    for monitor in (CPUMonitor(), DiskMonitor(), NetworkMonitor()):
        monitor.collect_metrics()
        names |= set(monitor.metrics)
    names |= {f"gpu_0_memory_usage_{unit}" for unit in ("percentage", "megabytes")}
    names.add("gpu_0_utilization_percentage")
    monkeypatch.setitem(sys.modules, "pynvml", one_gpu())
    recorded: list[Any] = []
    monitor = SystemMonitor(Sampling(interval_s=60.0, node="node_0"), recorded.append, pytest.fail)
    monitor.start()
    monitor.stop()  # a short run has a point too
    (point,) = recorded
    assert set(point) == {f"system/node_0/{name}" for name in names}
    assert point["system/node_0/gpu_0_memory_usage_percentage"] == 25.0
    assert point["system/node_0/gpu_0_memory_usage_megabytes"] == 3.0
    assert 0 < point["system/node_0/system_memory_usage_percentage"] <= 100


def test_a_point_is_the_mean_of_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    used = itertools.chain([2, 4, 6, 7], itertools.repeat(7))
    memory = (SimpleNamespace(used=1e6 * megabytes, total=10e6) for megabytes in used)
    monkeypatch.setattr("psutil.virtual_memory", lambda: next(memory))
    recorded: list[Any] = []
    twice = threading.Event()

    def record(point: Any) -> None:
        recorded.append(point["system/system_memory_usage_megabytes"])
        if len(recorded) == 2:
            twice.set()

    monitor = SystemMonitor(Sampling(interval_s=0.001, samples=2), record, pytest.fail)
    monitor.start()
    assert twice.wait(60)
    monitor.stop()
    assert recorded[:2] == [3.0, 6.5]


def systems(run_dir: Path) -> list[Any]:
    records = JournalReader(spool_dir_of(run_dir)).read()
    return [record.data for record in records if record.type == "system"]


def test_a_run_is_sampled_until_its_end_and_goes_on_counting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MLflowTracker, "_spawn", lambda self: None)  # nothing is delivered here
    monkeypatch.setenv(ENABLED, "True")
    monkeypatch.setenv(f"{OF_SAMPLING}SAMPLING_INTERVAL", "0.01")
    trial = MLflowTracker(kind="trial")
    assert trial.sampling is None  # the sweep's own run has the machine's load
    for _ in range(2):
        before = len(systems(tmp_path)) if spool_dir_of(tmp_path).exists() else 0
        tracker = MLflowTracker()
        tracker.start(tmp_path, {}, {})
        deadline = time.monotonic() + 60
        while len(systems(tmp_path)) < before + 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert sampling_threads()
        tracker.finish("FINISHED")
        assert sampling_threads() == []
    steps = [data["step"] for data in systems(tmp_path)]
    assert len(steps) >= 4
    assert steps == list(range(len(steps)))


def test_each_machine_counts_its_own_steps_and_goes_on_counting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MLflowTracker, "_spawn", lambda self: None)
    monkeypatch.setenv(ENABLED, "true")
    monkeypatch.setenv(f"{OF_SAMPLING}SAMPLING_INTERVAL", "600")
    for _ in range(2):
        tracker = MLflowTracker()
        assert TrackerGroup([Tracker(), tracker]).sampling == Sampling(600.0)
        tracker.start(tmp_path, {}, {})
        for machine in ("a", "b", "a"):
            tracker.log_system({f"system/{machine}/cpu_utilization_percentage": 50.0})
        tracker.finish("FINISHED")
    steps: dict[str, list[int]] = {}
    for data in systems(tmp_path):
        (name,) = {metric.rpartition("/")[0] for metric in data["metrics"]}
        steps.setdefault(name, []).append(data["step"])
    assert steps == {"system": [0, 1], "system/a": [0, 1, 2, 3], "system/b": [0, 1]}


# -- workers --


def cluster(*hosts: str) -> list[dict[str, Any]]:
    """Nodes `n0`, `n1`, ... as `ray.nodes()` lists them."""
    return [{"NodeID": f"n{i}", "NodeManagerHostname": host} for i, host in enumerate(hosts)]


def test_a_workers_machine_has_a_name_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(f"{OF_SAMPLING}NODE_ID", raising=False)
    monkeypatch.setattr(socket, "gethostname", lambda: "two")
    wanted = Sampling(5.0, 3, "head")

    def name(*hosts: str) -> str:
        sampling = sampling_of(wanted, "n1", cluster(*hosts))
        assert (sampling.interval_s, sampling.samples) == (5.0, 3)
        return sampling.node

    assert name("one", "two", "three") == "two"
    assert name("one", "two", "two") == "two-n1"  # several nodes on one machine
    monkeypatch.setenv(f"{OF_SAMPLING}NODE_ID", "rack_7")
    assert name("one", "two", "two") == "rack_7"
    monkeypatch.setenv(f"{OF_SAMPLING}NODE_ID", "head")  # the driver's, set for the whole job
    assert name("one", "two") == "two"


def test_a_workers_machine_is_sampled_within_its_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", one_gpu())
    events: list[Event] = []
    with sampled(Sampling(600.0, node="two"), LocalLink(events.append)):
        assert sampling_threads()
    assert sampling_threads() == []
    (load,) = events
    assert isinstance(load, MachineLoad)
    assert load.metrics["system/two/gpu_0_utilization_percentage"] == 40.0
    assert "system/two/cpu_utilization_percentage" in load.metrics
    with sampled(None, LocalLink(pytest.fail)):
        assert sampling_threads() == []


def test_an_error_of_the_sampler_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> Any:
        raise RuntimeError("no such file: /proc/meminfo")

    monkeypatch.setattr("psutil.virtual_memory", gone)
    events: list[Event] = []
    with sampled(Sampling(0.001, node="two"), LocalLink(events.append)):
        wait_for(lambda: not sampling_threads(), "the thread ends by itself")
    (mishap,) = events
    assert isinstance(mishap, Mishap)
    assert mishap.message == (
        "the system metrics of two end here, as they cannot be read or recorded (RuntimeError: no "
        "such file: /proc/meminfo); the run goes on"
    )


def test_a_worker_whose_driver_is_gone_ends_its_sampler(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    died: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", died.append)

    def lost(event: Event) -> None:
        raise ConnectionError("the mailbox is lost")

    with caplog.at_level(logging.WARNING), sampled(Sampling(0.001, node="two"), LocalLink(lost)):
        pass
    assert sampling_threads() == []
    assert (died, caplog.messages) == ([], [])


def test_nothing_is_sampled_unless_the_user_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MLflowTracker, "_spawn", lambda self: None)
    for value in (None, "", "false", "0"):
        if value is None:
            monkeypatch.delenv(ENABLED, raising=False)
        else:
            monkeypatch.setenv(ENABLED, value)
        tracker = MLflowTracker()
        tracker.start(tmp_path, {}, {})
        assert sampling_threads() == []
    assert systems(tmp_path) == []


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        (ENABLED, "yes", "set it to true or false"),
        (f"{OF_SAMPLING}SAMPLING_INTERVAL", "0", "number above 0"),
        (f"{OF_SAMPLING}SAMPLING_INTERVAL", "often", "number above 0"),
        (f"{OF_SAMPLING}SAMPLES_BEFORE_LOGGING", "1.5", "whole number"),
    ],
)
def test_impossible_variables_are_refused(
    variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENABLED, "true")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"^{variable} is '{value}': .*{said}"):
        MLflowTracker()
