"""One epoch of training or validation on one rank."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from raymimic.algo import Algo
from raymimic.algo.draws import SampleDraws
from raymimic.data.loader import Loader
from raymimic.data.stats import Stats
from raymimic.ranks import synchronized
from raymimic.training.grad_sync import GradientSync
from raymimic.training.metrics import MetricAccumulator


@dataclass(frozen=True)
class EpochRunner:
    """Runs epochs of one algorithm.

    Attributes:
        algo: the algorithm, updated in place.
        sync: the ranks that train together.
        obs_normalization_stats: offset and scale by observation key.
        draws: the random numbers of the algorithm's image randomizers, if it has any.
    """

    algo: Algo
    sync: GradientSync
    obs_normalization_stats: Stats | None = None
    draws: SampleDraws | None = None

    def run(
        self,
        loader: Loader,
        epoch: int,
        *,
        validate: bool = False,
        on_step: Callable[[int], None] | None = None,
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Runs the steps of an epoch without waiting for the device within a step.

        Args:
            loader: yields this rank's part of each global batch.
            epoch: the epoch's number, from 1.
            validate: only compute losses.
            on_step: called with the number of steps done, after each.

        Returns:
            the metrics, reduced over steps and ranks, and the seconds that this rank spent on
            `data`, on `step` and on `all` of the epoch, the wait for the device at its end
            included. Each sample counts once; in robomimic's `TrainUtils.run_epoch`,
            which averages the means of batches, a sample of a smaller validation batch counts for
            more.
        """
        algo, begin = self.algo, time.perf_counter()
        if validate:
            algo.set_eval()
        else:
            algo.set_train()
        metrics = MetricAccumulator(algo.metric_reductions)
        seconds = {"data": 0.0, "step": 0.0}
        clock = time.perf_counter()
        with torch.set_grad_enabled(not validate), synchronized(algo.grad_sync):
            for step, (batch, count, total) in enumerate(loader.epoch(epoch), 1):
                now = time.perf_counter()
                seconds["data"] += now - clock
                self.sync.weight = count / total
                if self.draws is not None:
                    self.draws.begin(epoch, step, batch["position"])
                inputs = algo.process_batch_for_training(batch)
                inputs = algo.postprocess_batch_for_training(
                    inputs, obs_normalization_stats=self.obs_normalization_stats
                )
                info = algo.train_on_batch(inputs, epoch, validate=validate)
                if not validate:
                    algo.on_gradient_step()
                metrics.add(algo.log_info(info), weight=count)
                if on_step is not None:
                    on_step(step)
                clock = time.perf_counter()
                seconds["step"] += clock - now
        computed = metrics.compute(self.sync.world_size)
        seconds["all"] = time.perf_counter() - begin
        return computed, seconds
