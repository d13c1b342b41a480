"""Metrics of an epoch: collected on the device, reduced over steps and ranks, copied once."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

Reduction = Literal["mean", "sum", "max"]

# Partial sums are folded after this many steps, so that an epoch of a million steps does not keep
# a million scalars alive.
_FOLD_EVERY = 256


class MetricAccumulator:
    """Reduces the metrics of many steps without reading any of them from the device.

    A mean weights each step by its number of samples on this rank. So, over all ranks, each
    training step counts the same, and a validation batch counts for its number of samples.

    Args:
        reductions: how each metric is reduced; other metrics become means.
    """

    def __init__(self, reductions: Mapping[str, Reduction] | None = None) -> None:
        self._reductions = dict(reductions or {})
        self._pending: dict[str, list[Tensor | float]] = {}
        self._weights: dict[str, list[float]] = {}
        self._folded: dict[str, tuple[Tensor | float, float]] = {}

    def add(self, metrics: Mapping[str, Tensor | float], weight: float) -> None:
        """Adds one step's metrics (0-d tensors or numbers).

        Args:
            metrics: values by name.
            weight: number of samples on this rank over which the values are means; a step
                without samples does not count.
        """
        if weight == 0:
            return
        for key, value in metrics.items():
            if isinstance(value, Tensor) and value.requires_grad:
                value = value.detach()
            values = self._pending.setdefault(key, [])
            values.append(value)
            self._weights.setdefault(key, []).append(weight)
            if len(values) >= _FOLD_EVERY:
                self._fold(key)

    def _fold(self, key: str) -> None:
        values, weights = self._pending.pop(key), self._weights.pop(key)
        device = next((v.device for v in values if isinstance(v, Tensor)), torch.device("cpu"))
        if all(isinstance(v, Tensor) for v in values):
            stacked = torch.stack([v for v in values if isinstance(v, Tensor)]).double()
        else:
            stacked = torch.tensor([float(v) for v in values], dtype=torch.float64, device=device)
        reduction = self._reductions.get(key, "mean")
        if reduction == "mean":
            stacked = stacked * torch.tensor(weights, dtype=torch.float64, device=device)
        folded = stacked.max() if reduction == "max" else stacked.sum()
        if key in self._folded:
            before, before_weight = self._folded[key]
            if reduction == "max":
                folded = torch.maximum(folded, torch.as_tensor(before, device=device))
            else:
                folded = folded + before
            weights = [*weights, before_weight]
        self._folded[key] = (folded, math.fsum(weights))

    def compute(self, world_size: int = 1) -> dict[str, float]:
        """Reduces over all steps and ranks; every rank receives the same result.

        Returns:
            one number per metric.
        """
        for key in list(self._pending):
            self._fold(key)
        keys = list(self._folded)
        tensors = [torch.as_tensor(self._folded[k][0], dtype=torch.float64) for k in keys]
        device = next((t.device for t in tensors if t.device.type != "cpu"), torch.device("cpu"))
        values = torch.stack([t.to(device) for t in tensors]).tolist() if tensors else []
        local = {k: (v, self._folded[k][1]) for k, v in zip(keys, values, strict=True)}
        ranks: list[dict[str, tuple[float, float]]] = [local]
        if world_size > 1:
            ranks = [{}] * world_size
            dist.all_gather_object(ranks, local)
        names = dict.fromkeys(name for rank in ranks for name in rank)
        return {name: self._over_ranks(name, ranks) for name in names}

    def _over_ranks(self, key: str, ranks: list[dict[str, tuple[float, float]]]) -> float:
        parts = [r[key] for r in ranks if key in r]
        match self._reductions.get(key, "mean"):
            case "max":
                return max(value for value, _ in parts)
            case "sum":
                return math.fsum(value for value, _ in parts)
            case "mean":
                return math.fsum(v for v, _ in parts) / math.fsum(w for _, w in parts)
