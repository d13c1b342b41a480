#!/usr/bin/env python3
"""Gradient steps per second of the whole inner loop: sampling, gather, train_on_batch, metrics.

The steps of an epoch of `--workers 0`, with the settings of raymimic/exps/templates, on random data
of Walker2d's sizes (200,000 transitions, observations 17, actions 6). The last line is JSON with
the key `steps_per_s`, the median over the repeats; of `--algo all`, one for each template. For
td3_bc the loop takes turns with `plain_td3_bc.py`, the same update in plain torch with nothing
around it, and `ratio` is the median over the repeats of raymimic's rate over the plain one's. The
goal, on two quiet cores, is a ratio of at least 1.0 over ten pairs of 20 s, 10 s of each loop (one
more warms up):

    train_step.py --algo td3_bc --threads 2 --seconds 220 --repeats 10

usage: train_step.py [--algo td3_bc] [--threads 2] [--seconds 10] [--repeats 5] [--device cpu]
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
from plain_td3_bc import PlainTD3BC, TakingTurns

import raymimic
from raymimic.algo import algo_class, algo_factory
from raymimic.config import BaseConfig, config_from_file
from raymimic.config.base_config import sections_named
from raymimic.data.training_data import make_loaders
from raymimic.training.epoch import EpochRunner
from raymimic.training.grad_sync import GradientSync

DEMOS, LENGTH, OBS, ACTIONS = 200, 1000, 17, 6
TEMPLATES = Path(raymimic.__file__).parent / "exps" / "templates"


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


def benchmark_config(template: str, dataset: Path, steps: int) -> BaseConfig:
    config = config_from_file(TEMPLATES / f"{template}.json")
    with config.values_unlocked():
        config.train.data = str(dataset)
        config.experiment.epoch_every_n_steps = steps
        for _, modalities in sections_named(config.observation, "modalities"):
            for group in modalities.values():
                if group.low_dim:
                    group.low_dim = ["flat"]
        for _, nets in sections_named(config.algo, "optim_params"):
            for params in nets.values():  # as training sets them
                params["num_train_batches"], params["num_epochs"] = steps, 1000
    config.lock()
    return config


def steps_per_second(
    template: str, dataset: Path, steps: int, repeats: int, device: torch.device
) -> tuple[list[float], list[float]]:
    """Trains for so many epochs of so many steps, after one that warms up.

    Returns:
        The rate of each epoch, and that of the plain loop meanwhile (for td3_bc, else none).
    """
    config = benchmark_config(template, dataset, steps)
    data = make_loaders(config, algo_class(config.algo_name, config).reads(config), device=device)
    algo = algo_factory(
        config.algo_name,
        config,
        obs_key_shapes=data.shape_meta["all_shapes"],
        ac_dim=data.shape_meta["ac_dim"],
        device=device,
    )
    plain = PlainTD3BC(DEMOS * LENGTH, device) if template == "td3_bc" else None
    runner, rates, plain_rates = EpochRunner(algo, GradientSync(world_size=1)), [], []
    for epoch in range(1, repeats + 2):
        turns = None if plain is None else TakingTurns(plain, min(steps, 50))
        start = time.perf_counter()
        runner.run(data.train, epoch, on_step=turns)  # ends with a transfer, so it is complete
        seconds = time.perf_counter() - start
        if turns is not None:
            seconds -= turns.seconds
            plain_rates.append(turns.steps / turns.seconds)
        rates.append(steps / seconds)
    return rates[1:], plain_rates[1:]


def main() -> None:
    templates = sorted(path.stem for path in TEMPLATES.glob("*.json"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algo", default="td3_bc", choices=["all", *templates])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10, help="about so long for each template")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    medians, ratio = {}, None
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "benchmark.hdf5"
        write_dataset(dataset)
        for template in templates if args.algo == "all" else [args.algo]:
            [rough], _ = steps_per_second(template, dataset, 2, 1, device)
            steps = max(2, round(rough * args.seconds / (args.repeats + 1)))
            rates, plain = steps_per_second(template, dataset, steps, args.repeats, device)
            medians[template] = float(f"{statistics.median(rates):.4g}")
            print(
                f"{template}: {min(rates):.4g} to {max(rates):.4g} steps/s over {len(rates)} "
                f"repeats of {steps} steps",
                flush=True,
            )
            if plain:
                ratios = [own / other for own, other in zip(rates, plain, strict=True)]
                ratio = float(f"{statistics.median(ratios):.3g}")
                print(
                    f"{template}: {min(ratios):.3g} to {max(ratios):.3g} times a plain torch loop "
                    f"({min(plain):.4g} to {max(plain):.4g} steps/s)",
                    flush=True,
                )
    print(
        json.dumps(
            {
                "algo": args.algo,
                "steps_per_s": medians if args.algo == "all" else medians[args.algo],
                **({} if ratio is None else {"ratio": ratio}),
                "threads": args.threads,
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
                "machine": platform.processor() or platform.machine(),
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
