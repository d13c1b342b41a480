"""System metrics of the machines of a training, under MLflow's names and by MLflow's variables.

MLflow samples only in a process that logs to it. raymimic's driver never imports MLflow, so it
samples here, and so does a worker on each other machine; the numbers go the way of all records.
Without `MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING` there is neither a thread nor an import of psutil.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymimic.errors import ConfigError

ENABLED = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
INTERVAL = "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"
SAMPLES = "MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING"
NODE = "MLFLOW_SYSTEM_METRICS_NODE_ID"

# The thread that samples waits for nothing longer than a driver's answer.
_STOP_S = 5.0

# Reads some metrics, by MLflow's name without `system/`.
Source = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class Sampling:
    """How often the machine is looked at.

    Attributes:
        interval_s: time between two samples [s].
        samples: number of samples that are averaged into one point.
        node: name of the machine in the metrics; empty: none.
    """

    interval_s: float = 10.0
    samples: int = 1
    node: str = ""

    @classmethod
    def of_environment(cls) -> Sampling | None:
        """The sampling that MLflow's variables ask for; None where they ask for none.

        Raises:
            ConfigError: a variable has an impossible value.
        """
        wanted = os.environ.get(ENABLED, "").strip().lower()
        if wanted not in {"", "true", "1", "false", "0"}:
            raise ConfigError(f"{ENABLED} is '{wanted}': set it to true or false")
        if wanted not in {"true", "1"}:
            return None
        interval_s = _number(INTERVAL, cls.interval_s)
        samples = _number(SAMPLES, cls.samples)
        if samples != int(samples):
            raise ConfigError(f"{SAMPLES} is '{os.environ[SAMPLES]}': set it to a whole number")
        return cls(interval_s, int(samples), os.environ.get(NODE, "").strip("/"))


def _number(variable: str, default: float) -> float:
    """A variable's number above 0."""
    text = os.environ.get(variable, "")
    if not text:
        return default
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < threading.TIMEOUT_MAX:
            return value
    raise ConfigError(f"{variable} is '{text}': set it to a number above 0")


class SystemMonitor:
    """Samples in a thread of its own, from `start` to `stop`.

    Args:
        sampling: how often.
        record: gets each point, metrics by full name; called by the thread.
        warn: gets the sentence of an error, with which the thread ends.
    """

    def __init__(
        self,
        sampling: Sampling,
        record: Callable[[Mapping[str, float]], None],
        warn: Callable[[str], None],
    ) -> None:
        self._sampling, self._record, self._warn = sampling, record, warn
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)

    def start(self) -> None:
        """Begins to sample."""
        self._thread.start()

    def stop(self) -> None:
        """Records the samples since the last point, and ends the thread."""
        self._ends.set()
        self._thread.join(_STOP_S)

    def _run(self) -> None:
        try:
            self._sample()
        except Exception as error:  # no number about a machine is worth the run
            machine = self._sampling.node or "this machine"
            with contextlib.suppress(Exception):  # of a worker whose driver is gone
                self._warn(
                    f"the system metrics of {machine} end here, as they cannot be read or recorded "
                    f"({type(error).__name__}: {error}); the run goes on"
                )

    def _sample(self) -> None:
        with contextlib.ExitStack() as opened:
            sources = [*_machine(), *_gpus(opened)]
            ended = False
            while not ended:
                taken: list[dict[str, float]] = []
                while len(taken) < self._sampling.samples and not ended:
                    taken.append({k: v for source in sources for k, v in source().items()})
                    ended = self._ends.wait(self._sampling.interval_s)
                self._record(_point(taken, self._sampling.node))


def _point(taken: Sequence[Mapping[str, float]], node: str) -> dict[str, float]:
    """The mean of some samples; traffic, which only grows, is that of the last."""
    prefix = f"system/{node}/" if node else "system/"
    point = {}
    for name in {name: None for sample in taken for name in sample}:
        values = [sample[name] for sample in taken if name in sample]
        mean = values[-1] if name.startswith("network_") else sum(values) / len(values)
        point[f"{prefix}{name}"] = round(mean, 1)
    return point


def _machine() -> Iterator[Source]:
    """Processor, memory, disk and network."""
    import psutil

    psutil.cpu_percent()  # the next call tells of the time since this one
    before = psutil.net_io_counters()

    def processor_and_memory() -> dict[str, float]:
        memory = psutil.virtual_memory()
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.used / memory.total * 100,
        }

    def disk() -> dict[str, float]:
        usage = psutil.disk_usage(os.sep)
        return {
            "disk_usage_percentage": usage.percent,
            "disk_usage_megabytes": usage.used / 1e6,
            "disk_available_megabytes": usage.free / 1e6,
        }

    def network() -> dict[str, float]:
        now = psutil.net_io_counters()
        if now is None or before is None:  # a container without devices
            return {}
        return {
            "network_receive_megabytes": (now.bytes_recv - before.bytes_recv) / 1e6,
            "network_transmit_megabytes": (now.bytes_sent - before.bytes_sent) / 1e6,
        }

    yield from (processor_and_memory, disk, network)


def _gpus(opened: contextlib.ExitStack) -> Iterator[Source]:
    """NVIDIA's GPUs, where `nvidia-ml-py` is installed and finds some.

    Args:
        opened: closes the library.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # not installed, or no driver
        return
    opened.callback(pynvml.nvmlShutdown)
    for index in range(pynvml.nvmlDeviceGetCount()):
        yield from _gpu(pynvml, index)


def _gpu(nvml: Any, index: int) -> Iterator[Source]:
    """One GPU; a part that it cannot tell is left out."""
    handle, name = nvml.nvmlDeviceGetHandleByIndex(index), f"gpu_{index}"

    def memory() -> dict[str, float]:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        return {
            f"{name}_memory_usage_percentage": memory.used / memory.total * 100,
            f"{name}_memory_usage_megabytes": memory.used / 1e6,
        }

    def utilization() -> dict[str, float]:
        rates = nvml.nvmlDeviceGetUtilizationRates(handle)
        return {f"{name}_utilization_percentage": float(rates.gpu)}

    def power() -> dict[str, float]:
        used = nvml.nvmlDeviceGetPowerUsage(handle)  # milliwatts
        limit = nvml.nvmlDeviceGetEnforcedPowerLimit(handle)
        return {
            f"{name}_power_usage_watts": used / 1000,
            f"{name}_power_usage_percentage": used / limit * 100,
        }

    def read(part: Source) -> Source:
        def safely() -> Mapping[str, float]:
            try:
                return part()
            except nvml.NVMLError:
                return {}

        return safely

    yield from map(read, (memory, utilization, power))
