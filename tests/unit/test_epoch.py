"""One epoch: the algorithm's inputs, its mode, and its metrics."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from raymimic.training import epoch as epoch_module
from raymimic.training.epoch import EpochRunner
from raymimic.training.grad_sync import GradientSync

# Values of a rank's batches, and how many samples each global batch has.
BATCHES = [([1.0, 2.0, 3.0], 6), ([5.0], 2)]


class Batches:
    """A loader of three samples, then of one."""

    def epoch(self, epoch: int) -> Iterator[tuple[dict[str, Any], int, int]]:
        for values, total in BATCHES:
            yield {"obs": torch.tensor(values) + epoch}, len(values), total


class Recorder:
    """An algorithm that learns nothing and notes how it is used."""

    def __init__(self, sync: GradientSync) -> None:
        self.metric_reductions = {"Samples": "sum"}
        self.grad_sync = self._sync = sync
        self.calls: list[Any] = []

    def set_train(self) -> None:
        self.calls.append("train")

    def set_eval(self) -> None:
        self.calls.append("eval")

    def process_batch_for_training(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch

    def postprocess_batch_for_training(
        self, batch: dict[str, Any], obs_normalization_stats: Any
    ) -> dict[str, Any]:
        return {"obs": batch["obs"] * obs_normalization_stats}

    def train_on_batch(self, batch: dict[str, Any], epoch: int, validate: bool) -> Any:
        self.calls.append((epoch, validate, torch.is_grad_enabled(), self._sync.weight))
        return batch["obs"]

    def on_gradient_step(self) -> None:
        self.calls.append("step")

    def log_info(self, info: torch.Tensor) -> dict[str, Any]:
        return {"Loss": info.mean(), "Samples": info.numel()}


def run(validate: bool) -> tuple[Recorder, dict[str, float], list[int]]:
    sync, steps = GradientSync(1), []
    algo: Any = Recorder(sync)
    loader: Any = Batches()
    stats: Any = 2.0
    runner = EpochRunner(algo, sync, stats)
    metrics, _ = runner.run(loader, 3, validate=validate, on_step=steps.append)
    return algo, metrics, steps


def test_an_epoch_of_training() -> None:
    algo, metrics, steps = run(validate=False)
    # A rank with 3 of 6 samples weights its gradient by 1/2, and so with 1 of 2.
    assert algo.calls == ["train", (3, False, True, 0.5), "step", (3, False, True, 0.5), "step"]
    assert steps == [1, 2]
    # Each sample counts once: 2 * (value + 3), over four samples.
    assert metrics == {"Loss": pytest.approx(2 * (1 + 2 + 3 + 5 + 4 * 3) / 4), "Samples": 4.0}


def test_an_epoch_of_validation_computes_no_gradients() -> None:
    algo, metrics, _ = run(validate=True)
    assert algo.calls == ["eval", (3, True, False, 0.5), (3, True, False, 0.5)]
    assert metrics["Loss"] == pytest.approx(11.5)


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_the_time_that_steps_wait_for_data(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(epoch_module, "time", clock)

    class SlowBatches(Batches):
        def epoch(self, epoch: int) -> Iterator[tuple[dict[str, Any], int, int]]:
            for batch in super().epoch(epoch):
                clock.now += 3.0
                yield batch

    class SlowRecorder(Recorder):
        def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
            clock.now += 0.5
            return super().train_on_batch(*args, **kwargs)

    class SlowMetrics(epoch_module.MetricAccumulator):
        def compute(self, world_size: int = 1) -> dict[str, float]:
            clock.now += 2.0  # the device is not done yet
            return super().compute(world_size)

    monkeypatch.setattr(epoch_module, "MetricAccumulator", SlowMetrics)
    sync = GradientSync(1)
    algo: Any = SlowRecorder(sync)
    loader: Any = SlowBatches()
    stats: Any = 2.0
    _, seconds = EpochRunner(algo, sync, stats).run(loader, 1)
    assert seconds == {"data": 6.0, "step": 1.0, "all": 9.0}
