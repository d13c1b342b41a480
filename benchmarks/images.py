#!/usr/bin/env python3
"""Samples per second of training on images, and the memory of its steps, beside plain torch.

Behavioral cloning from two cameras of 84 x 84, cropped to 76 x 76, and a vector, with batches of
64: the whole inner loop of `--workers 0`, on random data. Each encoder is trained in float32 and
under bf16 autocast. After each epoch of raymimic come as many steps of `plain_images.py`: the same
networks in plain torch, nothing around them, with equally many parameters. `ratio` is the median of
plain torch's time over raymimic's: on a CPU that of the process, which other programs hardly slow,
else that of the clock. The goal is at least 0.95.

`peak_mb` is the memory that steps take beside networks, optimizer and data: of the process on a
CPU, of torch's allocator on a GPU. The last line is JSON.

usage: images.py [--encoder all] [--precision all] [--steps 2] [--repeats 3] [--threads 1]
                 [--device cpu]
"""

import argparse
import contextlib
import ctypes
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from plain_images import ACTIONS, BATCH, CAMERAS, CROP, SIDE, VECTOR, PlainImages, run_plain

from raymimic.algo import algo_class, algo_factory, draws
from raymimic.config import BaseConfig, config_factory
from raymimic.data.training_data import make_loaders
from raymimic.training.epoch import EpochRunner
from raymimic.training.grad_sync import GradientSync

DEMOS, LENGTH = 4, 100
ENCODERS = {"resnet18": "ResNet18Conv", "impala": "ImpalaConv"}
PRECISIONS = ("float32", "bf16")


def write_dataset(path: Path) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for i in range(DEMOS):
            demo = file.create_group(f"data/demo_{i}")
            demo.attrs["num_samples"] = LENGTH
            for camera in range(CAMERAS):
                frames = rng.integers(0, 256, (LENGTH, SIDE, SIDE, 3), dtype=np.uint8)
                demo[f"obs/camera_{camera}"] = frames
            demo["obs/vector"] = rng.standard_normal((LENGTH, VECTOR), dtype=np.float32)
            demo["actions"] = rng.uniform(-1, 1, (LENGTH, ACTIONS)).astype(np.float32)


def benchmark_config(encoder: str, dataset: Path, steps: int) -> BaseConfig:
    config = config_factory("bc")
    with config.values_unlocked():
        config.train.data, config.train.batch_size = str(dataset), BATCH
        config.experiment.epoch_every_n_steps = steps
        config.experiment.rollout.enabled = False
        config.observation.modalities.obs.low_dim = ["vector"]
        config.observation.modalities.obs.rgb = [f"camera_{i}" for i in range(CAMERAS)]
        rgb = config.observation.encoder.rgb
        rgb.core_class = "VisualCore"
        rgb.core_kwargs = {
            **{"backbone_class": ENCODERS[encoder], "backbone_kwargs": {}},
            **{"pool_class": "SpatialSoftmax", "pool_kwargs": {"num_kp": 32}},
            **{"flatten": True, "feature_dimension": 64},
        }
        rgb.obs_randomizer_class = "CropRandomizer"
        rgb.obs_randomizer_kwargs = {"crop_height": CROP, "crop_width": CROP, "num_crops": 1}
    config.lock()
    return config


class Training:
    """Raymimic's side: what a worker does in an epoch.

    Args:
        encoder: a key of `ENCODERS`.
        dataset: the file.
        steps: of an epoch.
        device: where networks and data live.
    """

    def __init__(self, encoder: str, dataset: Path, steps: int, device: torch.device) -> None:
        config = benchmark_config(encoder, dataset, steps)
        data = make_loaders(config, algo_class("bc", config).reads(config), device=device)
        algo = algo_factory(
            "bc",
            config,
            obs_key_shapes=data.shape_meta["all_shapes"],
            ac_dim=data.shape_meta["ac_dim"],
            device=device,
        )
        of_samples = draws.SampleDraws(config.train.seed)
        assert draws.share_draws(algo.nets, of_samples)
        self.runner = EpochRunner(algo, GradientSync(world_size=1), draws=of_samples)
        self.num_parameters = sum(p.numel() for p in algo.nets.parameters())
        self._loader, self._epoch = data.train, 0
        self.data_share = 0.0

    def run(self) -> float:
        """Trains for an epoch, which ends with a transfer, and returns its seconds."""
        self._epoch += 1
        start = time.perf_counter()
        _, seconds = self.runner.run(self._loader, self._epoch)
        self.data_share = seconds["data"] / seconds["all"]
        return time.perf_counter() - start


def measured(run: Callable[[], float], device: torch.device) -> tuple[float, float, float]:
    """Runs some steps.

    Returns:
        Seconds of the clock, seconds to compare by, and megabytes beyond those held before.
    """
    reset_peak(device)
    before, cpu = held(device), time.process_time()
    seconds = run()
    compared = time.process_time() - cpu if device.type == "cpu" else seconds
    return seconds, compared, (peak(device) - before) / 1e6


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        ctypes.CDLL(None).malloc_trim(0)  # so that what was freed before does not count as held
        Path("/proc/self/clear_refs").write_text("5")


def held(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("VmRSS")


def peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    """Bytes of this process, as Linux says."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(x.split()[1]) for x in lines if x.startswith(f"{name}:"))


def compare(
    encoder: str, precision: str, dataset: Path, steps: int, repeats: int, device: torch.device
) -> dict[str, Any]:
    """Trains both sides in turns, after one turn that warms up."""
    training = Training(encoder, dataset, steps, device)
    plain = PlainImages(encoder, DEMOS * LENGTH, device)
    assert training.num_parameters == sum(p.numel() for p in plain.parameters)
    autocast: Any = contextlib.nullcontext()
    if precision == "bf16":
        autocast = torch.autocast(device.type, torch.bfloat16)
    turns = []
    with autocast:
        for _ in range(repeats + 1):
            own = measured(training.run, device)
            turns.append((own, measured(lambda: run_plain(plain, steps), device)))
    turns = turns[1:]
    ratios = [other[1] / own[1] for own, other in turns]
    found = {
        "samples_per_s": steps * BATCH / statistics.median(own[0] for own, _ in turns),
        "plain_samples_per_s": steps * BATCH / statistics.median(other[0] for _, other in turns),
        "ratio": statistics.median(ratios),
        "least_ratio": min(ratios),
        "greatest_ratio": max(ratios),
        "peak_mb": max(own[2] for own, _ in turns),
        "plain_peak_mb": max(other[2] for _, other in turns),
        "data_share": training.data_share,
    }
    return {key: float(f"{value:.3g}") for key, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="all", choices=["all", *ENCODERS])
    parser.add_argument("--precision", default="all", choices=["all", *PRECISIONS])
    parser.add_argument("--steps", type=int, default=2, help="of each turn")
    parser.add_argument("--repeats", type=int, default=3, help="turns that count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "cameras.hdf5"
        write_dataset(dataset)
        for encoder in ENCODERS if args.encoder == "all" else [args.encoder]:
            for precision in PRECISIONS if args.precision == "all" else [args.precision]:
                found = compare(encoder, precision, dataset, args.steps, args.repeats, device)
                results[f"{encoder}, {precision}"] = found
                print(
                    f"{encoder:<10}{precision:<9}{found['samples_per_s']:>8g} samples/s, plain"
                    f" {found['plain_samples_per_s']:g}, {found['ratio']:g} times"
                    f" ({found['least_ratio']:g} to {found['greatest_ratio']:g}); steps take"
                    f" {found['peak_mb']:g} MB, plain {found['plain_peak_mb']:g};"
                    f" waits for data {found['data_share']:.1%}",
                    flush=True,
                )
    print(
        json.dumps(
            {
                "results": results,
                "batch": BATCH,
                "threads": args.threads,
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
                "machine": platform.processor() or platform.machine(),
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
