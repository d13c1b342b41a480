"""Time and size of a commit after many epochs: `python benchmarks/commits.py [--epochs 7700]`.

Commits checkpoints of a small TD3-BC, as a run of that many epochs does at its end: with the epochs
in `epochs.jsonl`, and in the layout of 0.1.0, where each checkpoint holds them all.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from raymimic.checkpoints.content import CheckpointContent, TrainingSection
from raymimic.checkpoints.records import EpochRecord
from raymimic.checkpoints.store import CheckpointStore
from raymimic.config import config_factory

METRICS = 20
COMMITS = 30


def record(epoch: int) -> EpochRecord:
    """An epoch with as many metrics as TD3-BC has."""
    values = torch.rand(METRICS, dtype=torch.float64).tolist()
    names = [f"Train/Some_Metric_{i}" for i in range(METRICS)]
    return EpochRecord(epoch, 100 * epoch, dict(zip(names, values, strict=True)), time.time())


def content(weights: int) -> CheckpointContent:
    """A checkpoint of that many weights."""
    return CheckpointContent(
        model={"nets": {"weight": torch.rand(weights)}},
        algo_name="td3_bc",
        config=config_factory("td3_bc").dump(),
        shape_metadata={"ac_dim": 1, "all_shapes": {"flat": [1]}, "all_obs_keys": ["flat"]},
        raymimic=TrainingSection(step=1, arithmetic="", dataset_digest="", training_state={}),
    )


def measure(layout: str, epochs: int, weights: int) -> dict[str, float]:
    """Median seconds of a commit, megabytes of a checkpoint, and of the record of epochs."""
    save = config_factory("td3_bc").experiment.save
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        if layout == "0.1.0":
            (run / "models").mkdir()
            empty = {"checkpoints": [], "outcomes": [], "scores": {}}
            (run / "models" / "checkpoints.json").write_text(json.dumps(empty))
        store = CheckpointStore(folder, save)
        store.commit(content(weights), [record(i + 1) for i in range(epochs)], epochs, [], False)
        seconds = []
        for epoch in range(epochs + 1, epochs + 1 + COMMITS):
            ckpt, new = content(weights), [record(epoch)]
            begin = time.perf_counter()
            entry = store.commit(ckpt, new, epoch, [], False)
            seconds.append(time.perf_counter() - begin)
        log = run / "epochs.jsonl"
        return {
            "commit_s": statistics.median(seconds),
            "checkpoint_MB": Path(store.path(entry)).stat().st_size / 1e6,
            "epochs_MB": log.stat().st_size / 1e6 if log.exists() else 0.0,
        }


def main() -> None:
    """Prints a line for each layout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=7700)
    parser.add_argument("--weights", type=int, default=50_000)
    args = parser.parse_args()
    for layout in ("0.1.0", "today"):
        result = measure(layout, args.epochs, args.weights)
        print(json.dumps({"layout": layout, "epochs": args.epochs, **result}))


if __name__ == "__main__":
    main()
