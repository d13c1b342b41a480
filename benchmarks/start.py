"""Seconds from a command to the first gradient step, with and without Ray.

Each training runs in a process of its own, on a made-up dataset of Walker2d's sizes. It lasts one
short epoch and is evaluated in Walker2d. The last line of the output is one JSON object.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from load import make_file

SETTINGS = [
    'observation.modalities.obs.low_dim=["flat"]',
    "experiment.env=Walker2d-v5",
    "experiment.epoch_every_n_steps=10",
    "experiment.rollout.rate=1",
    "experiment.rollout.n=2",
    "experiment.rollout.horizon=10",
    "experiment.render_video=false",
    "train.num_epochs=1",
]
# The line that is written when data and networks are loaded, just before the first step.
BEGINS = re.compile(r"^training td3_bc \(")
DEADLINE_S = 300.0


def start(folder: str, dataset: str, workers: int) -> dict[str, float]:
    """Times one training.

    Returns:
        seconds to the first step and to the end of the command.
    """
    command = [sys.executable, "-m", "raymimic", "train", "--algo", "td3_bc"]
    command += ["--dataset", dataset, "--workers", str(workers), "--set", *SETTINGS]
    begin = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    first = None
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if first is None and BEGINS.match(line):
            first = time.perf_counter() - begin
    if process.wait(DEADLINE_S) or first is None:
        sys.exit("".join(said))
    return {"first_step_s": first, "whole_s": time.perf_counter() - begin}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "data.hdf5"
        make_file(dataset, 10_000)
        for workers in args.workers:
            times = [start(folder, str(dataset), workers) for _ in range(args.repeats)]
            found[f"workers_{workers}"] = {
                key: round(statistics.median(t[key] for t in times), 1) for key in times[0]
            } | {"slowest_first_step_s": round(max(t["first_step_s"] for t in times), 1)}
            print(f"{workers} workers: {found[f'workers_{workers}']}", flush=True)
    print(json.dumps({"repeats": args.repeats, **found}))


if __name__ == "__main__":
    main()
