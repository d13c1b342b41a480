"""System metrics: MLflow's names, sampled by a thread that ends with the run."""

import itertools
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raymimic.errors import ConfigError
from raymimic.tracking.journal import JournalReader, spool_dir_of
from raymimic.tracking.mlflow_tracker import MLflowTracker
from raymimic.tracking.system_metrics import Sampling, SystemMonitor

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
    monitor = SystemMonitor(Sampling(interval_s=60.0, node="node_0"), recorded.append)
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

    monitor = SystemMonitor(Sampling(interval_s=0.001, samples=2), record)
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
    assert trial._sampling is None  # the sweep's own run has the machine's load
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
