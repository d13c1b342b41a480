#!/usr/bin/env python3
"""Gradient steps per second of the whole inner loop: sampling, gather, train_on_batch, metrics.

What `--workers 0` does in an epoch, on random data of Walker2d's sizes (200,000 transitions,
observations 17, actions 6), batch 256, two hidden layers of 256. The last line is JSON with the key
`steps_per_s`, the median over the repeats.

usage: train_step.py [--algo td3_bc] [--threads 2] [--steps 500] [--repeats 5] [--device cpu]
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch

from raymimic.algo import algo_class, algo_factory
from raymimic.config import BaseConfig, config_factory
from raymimic.data.loader import make_loaders
from raymimic.training.epoch import run_epoch
from raymimic.training.grad_sync import GradientSync

DEMOS, LENGTH, OBS, ACTIONS, BATCH = 200, 1000, 17, 6, 256


def write_dataset(path: Path) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for i in range(DEMOS):
            demo = file.create_group(f"data/demo_{i}")
            demo.attrs["num_samples"] = LENGTH
            demo["obs/flat"] = rng.standard_normal((LENGTH, OBS), dtype=np.float32)
            demo["next_obs/flat"] = rng.standard_normal((LENGTH, OBS), dtype=np.float32)
            demo["actions"] = rng.uniform(-1, 1, (LENGTH, ACTIONS)).astype(np.float32)
            demo["rewards"] = rng.standard_normal(LENGTH, dtype=np.float32)
            demo["dones"] = np.zeros(LENGTH, np.int64)


def benchmark_config(algo: str, dataset: Path, steps: int) -> BaseConfig:
    config = config_factory(algo)
    with config.values_unlocked():
        config.train.data = str(dataset)
        config.train.batch_size = BATCH
        config.experiment.epoch_every_n_steps = steps
        config.observation.modalities.obs.low_dim = ["flat"]
        for net in ("actor", "critic"):
            if net in config.algo:
                config.algo[net].layer_dims = (256, 256)
        if "actor_layer_dims" in config.algo:
            config.algo.actor_layer_dims = (256, 256)
    config.lock()
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algo", default="td3_bc")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "benchmark.hdf5"
        write_dataset(dataset)
        config = benchmark_config(args.algo, dataset, args.steps)
        data = make_loaders(config, algo_class(args.algo, config).needs, device=device)
    algo = algo_factory(
        args.algo,
        config,
        obs_key_shapes=data.shape_meta["all_shapes"],
        ac_dim=data.shape_meta["ac_dim"],
        device=device,
    )
    sync = GradientSync(world_size=1)
    rates = []
    for epoch in range(1, args.repeats + 2):
        start = time.perf_counter()
        run_epoch(algo, data.train, epoch, sync=sync)  # ends with a transfer, so it is complete
        rates.append(args.steps / (time.perf_counter() - start))
    rates = rates[1:]  # the first one warms up
    print(f"{args.algo}: {min(rates):.1f} to {max(rates):.1f} steps/s over {len(rates)} repeats")
    print(
        json.dumps(
            {
                "algo": args.algo,
                "steps_per_s": round(statistics.median(rates), 1),
                "threads": args.threads,
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
                "machine": platform.processor() or platform.machine(),
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
