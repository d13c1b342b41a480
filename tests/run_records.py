"""Reads the records in a run's folder."""

import json
from pathlib import Path
from typing import Any

from raymimic.checkpoints.logs import EpochLog
from raymimic.checkpoints.reading import load_dict_from_checkpoint


def epochs_of(checkpoint: str | Path) -> list[dict[str, Any]]:
    """The epochs until a checkpoint in a run's folder, in the layout of 0.1.0 or today's."""
    section = load_dict_from_checkpoint(str(checkpoint))["raymimic"]
    if "history" in section:
        return list(json.loads(section["history"]))
    log = EpochLog(str(checkpoint).rpartition("/models/")[0]).read_bytes() or b""
    return [json.loads(line) for line in log[: section["epochs"]["length"]].splitlines()]


def metrics_of(checkpoint: str | Path) -> list[dict[str, float]]:
    """Their metrics, but for those that tell the time."""
    return [
        {k: v for k, v in epoch["metrics"].items() if not k.startswith("Timing/")}
        for epoch in epochs_of(checkpoint)
    ]


def evaluations_of(run: Path) -> list[dict[str, Any]]:
    """All evaluations of a local run, but for times and digests."""
    path = run / "evaluations.jsonl"
    if path.exists():
        found = [json.loads(line) for line in path.read_text().splitlines()]
    elif (run / "models" / "checkpoints.json").exists():
        found = json.loads((run / "models" / "checkpoints.json").read_text())["outcomes"]
    else:
        found = []
    for evaluation in found:
        evaluation.pop("sha256", None)
        metrics = evaluation["metrics"].items()
        evaluation["metrics"] = {k: v for k, v in metrics if "tim" not in k.lower()}
    return found


def manifest_path(run: Path) -> Path:
    """Where a local run's list of checkpoints lies, in the layout of 0.1.0 or today's."""
    old = run / "models" / "checkpoints.json"
    return old if old.exists() else run / "checkpoints.json"
