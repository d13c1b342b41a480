#!/usr/bin/env python3
"""Megabytes and milliseconds of a batch, gathered in one window and in those that are read.

The data are made up: an image of 84 x 84 x 3 bytes at each step, and actions of 7 numbers. The
last line is JSON.

usage: gather.py [--batch 64] [--steps 2000] [--repeats 20]
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch

from raymimic.algo import algo_class
from raymimic.config import config_factory
from raymimic.data.columns import ColumnRequest, DemoSource
from raymimic.data.reads import Reads, Window
from raymimic.data.sequence import Batch, SequenceDataset
from raymimic.data.store import DemoStore

CAMERAS = ("camera",)


def write(path: Path, steps: int) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        demo = file.create_group("data/demo_0")
        demo.attrs["num_samples"] = steps
        for camera in CAMERAS:
            demo[f"obs/{camera}"] = rng.integers(0, 256, (steps, 84, 84, 3), dtype=np.uint8)
        demo["actions"] = rng.uniform(-1, 1, (steps, 7)).astype(np.float32)


def nbytes(batch: Batch) -> int:
    return sum(nbytes(x) if isinstance(x, dict) else x.nbytes for x in batch.values())


def measure(dataset: SequenceDataset, batch: int, repeats: int) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(0)
    size, seconds = 0, []
    for _ in range(repeats + 1):
        indices = torch.randint(len(dataset), (batch,), generator=generator)
        start = time.perf_counter()
        size = nbytes(dataset.gather(indices))
        seconds.append(time.perf_counter() - start)
    return size / 1e6, 1e3 * statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    config = config_factory("diffusion_policy")
    cases = {
        "diffusion_policy": algo_class("diffusion_policy", config).reads(config),
        "chunk of 100 actions": Reads(obs=Window(0, 1), actions=Window(0, 100)),
    }
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "cameras.hdf5"), args.steps)
        source = DemoSource(str(Path(folder, "cameras.hdf5")))
        store = DemoStore.load([source], ColumnRequest(CAMERAS))
        for name, reads in cases.items():
            sizes = {"frame_stack": 1 - reads.span.start, "seq_length": reads.span.stop}
            for kind, windows in (("one window", None), ("as read", reads)):
                dataset = SequenceDataset(store, **sizes, reads=windows)
                mb, ms = measure(dataset, args.batch, args.repeats)
                found[f"{name}, {kind}"] = {"mb": round(mb, 2), "ms": round(ms, 2)}
                print(f"{name:<22}{kind:<12}{mb:>8.1f} MB{ms:>9.2f} ms")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
