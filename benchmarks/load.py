"""Seconds and peak memory to load a dataset, and milliseconds to serve a batch from it.

The last line of the output is one JSON object. Without ``--dataset`` a file of Walker2d's sizes
(observations 17, actions 6) is made up in a temporary folder. Loading happens in a process of its
own, so that its memory can be told from everything else's.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import torch

from raymimic.config.base_config import config_factory
from raymimic.data.metadata import read_metadata
from raymimic.data.reads import one_step
from raymimic.data.training_data import make_loaders


def make_file(path: Path, transitions: int) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as handle:
        data = handle.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Walker2d-v5", "type": 2})
        for i, start in enumerate(range(0, transitions, 1000)):
            n = min(1000, transitions - start)
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = n
            obs = rng.standard_normal((n + 1, 17), dtype=np.float32)
            demo["obs/flat"], demo["next_obs/flat"] = obs[:-1], obs[1:]
            demo["actions"] = rng.uniform(-1, 1, (n, 6)).astype(np.float32)
            demo["rewards"] = rng.standard_normal(n, dtype=np.float32)
            demo["dones"] = np.zeros(n, dtype=np.float32)


def measure(path: str, batches: int) -> dict[str, object]:
    torch.set_num_threads(1)
    meta = read_metadata(path)
    config = config_factory("td3_bc")
    config.train.data = path
    config.train.batch_size = 256
    config.experiment.epoch_every_n_steps = batches
    config.observation.modalities.obs.low_dim = sorted(meta.obs_shapes)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    data = make_loaders(config, replace(one_step(), next_actions=None), torch.device("cpu"))
    seconds = time.perf_counter() - start
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024

    start = time.perf_counter()
    for _ in data.train.epoch(1):
        pass
    batch_ms = (time.perf_counter() - start) / batches * 1e3
    column_bytes = data.train.dataset.store.num_bytes
    return {
        "transitions": meta.num_transitions,
        "load_s": round(seconds, 3),
        "peak_mb": round(peak / 1e6, 1),
        "column_mb": round(column_bytes / 1e6, 1),
        "peak_over_columns": round(peak / column_bytes, 3),
        "batch_ms": round(batch_ms, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", help="HDF5 file; made up if left out")
    parser.add_argument("--transitions", type=int, default=200_000, help="of the made-up file")
    parser.add_argument("--batches", type=int, default=4000)
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_this_process:
        print(json.dumps(measure(args.dataset, args.batches)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = args.dataset
        if path is None:
            path = str(Path(folder) / "made_up.hdf5")
            make_file(Path(path), args.transitions)
        options = ["--dataset", path, "--batches", str(args.batches), "--in-this-process"]
        subprocess.run([sys.executable, __file__, *options], check=True)


if __name__ == "__main__":
    main()
