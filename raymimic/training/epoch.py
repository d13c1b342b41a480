"""One epoch of training or validation on one rank."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from raymimic.training.grad_sync import GradientSync
from raymimic.training.metrics import MetricAccumulator

if TYPE_CHECKING:
    from raymimic.algo import Algo
    from raymimic.data.loader import Loader


def run_epoch(
    algo: "Algo",
    loader: "Loader",
    epoch: int,
    *,
    sync: GradientSync,
    validate: bool = False,
    obs_normalization_stats: dict[str, Any] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> tuple[dict[str, float], dict[str, float]]:
    """Runs the epoch's steps; nothing in a step waits for the device.

    Args:
        algo: the algorithm, updated in place unless `validate`.
        loader: gives this rank's cut of each global batch.
        epoch: the epoch's number, from 1.
        sync: the ranks that train together.
        validate: only compute losses.
        obs_normalization_stats: offset and scale by observation key.
        on_step: called with the number of steps done, after each.

    Returns:
        the metrics, reduced over steps and ranks, and this rank's seconds spent on `data` and on
        `step`. (robomimic's `TrainUtils.run_epoch` averages per-batch means, so its validation
        counts a sample of a smaller batch for more; here each sample counts once.)
    """
    if validate:
        algo.set_eval()
    else:
        algo.set_train()
    metrics = MetricAccumulator(algo.metric_reductions)
    seconds = {"data": 0.0, "step": 0.0}
    clock = time.perf_counter()
    with torch.set_grad_enabled(not validate):
        for step, (batch, count, total) in enumerate(loader.epoch(epoch), 1):
            now = time.perf_counter()
            seconds["data"] += now - clock
            sync.weight = count / total
            inputs = algo.process_batch_for_training(batch)
            inputs = algo.postprocess_batch_for_training(
                inputs, obs_normalization_stats=obs_normalization_stats
            )
            info = algo.train_on_batch(inputs, epoch, validate=validate)
            if not validate:
                algo.on_gradient_step()
            metrics.add(algo.log_info(info), weight=count)
            if on_step is not None:
                on_step(step)
            clock = time.perf_counter()
            seconds["step"] += clock - now
    return metrics.compute(sync.world_size), seconds
