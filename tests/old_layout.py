"""Brings a run into the layout and the records that raymimic 0.1.0 and the next versions wrote."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient
from mlflow.entities import Metric

from raymimic.tracking.journal import CURSOR, JOURNAL, RUN_FILE, spool_dir_of
from raymimic.tracking.metric_names import NAMES_TAG


def to_old_layout(run: Path, *, digests: bool) -> None:
    """Rewrites a run: the manifest lies in `models/`, checkpoints hold all epochs.

    Args:
        run: the run's folder.
        digests: the manifest has a SHA-256 of each checkpoint, and each checkpoint the manifest, as
            in the versions after 0.1.0; otherwise as in 0.1.0.
    """
    epochs = _lines(run / "epochs.jsonl")
    outcomes = [
        {k: v for k, v in line.items() if k not in {"sha256", "step", "played"}}
        for line in _lines(run / "evaluations.jsonl")
    ]
    manifest = json.loads((run / "checkpoints.json").read_text())
    for entry in manifest["checkpoints"]:
        path = run / "models" / entry["file"]
        ckpt = torch.load(path, weights_only=True)
        section = ckpt["raymimic"]
        del section["epochs"]
        section["history"] = json.dumps([e for e in epochs if e["epoch"] <= entry["epoch"]])
        carried = json.loads(section.pop("checkpoints"))
        if digests:
            section["checkpoints"] = json.dumps(_old_manifest(carried, outcomes, digests))
        torch.save(ckpt, path)
        entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    old = _old_manifest(manifest, outcomes, digests)
    (run / "models" / "checkpoints.json").write_text(json.dumps(old))
    for name in ("checkpoints.json", "epochs.jsonl", "evaluations.jsonl", "last.pth"):
        (run / name).unlink(missing_ok=True)


def to_old_records(run: Path, client: MlflowClient) -> str:
    """Gives a delivered run the records of 0.1.0: journal, and a run of its own in MLflow.

    Args:
        run: the run's folder.
        client: of the store that got its records.

    Returns:
        the id of the new run in MLflow.
    """
    spool, file = spool_dir_of(run), run / RUN_FILE
    known = json.loads(file.read_text())
    made = client.get_run(known["run_id"])
    tags = {k: v for k, v in made.data.tags.items() if k != NAMES_TAG and "Artifacts" not in k}
    old = client.create_run(made.info.experiment_id, tags=tags, run_name=made.info.run_name)
    client.delete_run(made.info.run_id)
    records = _lines(spool / JOURNAL)
    for record in records:
        if record["type"] in {"epoch", "evaluation"}:
            values = dict(record["metrics"])
            if record["type"] == "epoch":  # an evaluation would repeat its epoch's
                values["gradient_steps"] = record["step"]
            record["type"] = "epoch"
            record.pop("episodes", None)
            time, epoch = record["time"], record["epoch"]
            points = [Metric(name, value, time, epoch) for name, value in values.items()]
            client.log_batch(old.info.run_id, metrics=points)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (spool / JOURNAL).write_text(text)
    cursor = {"run_id": old.info.run_id, "offset": len(text), "deferred": []}
    (spool / CURSOR).write_text(json.dumps(cursor))
    file.write_text(json.dumps({**known, "run_id": old.info.run_id}))
    return str(old.info.run_id)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _old_manifest(
    manifest: dict[str, Any], outcomes: list[dict[str, Any]], digests: bool
) -> dict[str, Any]:
    dropped_keys = {"evaluated"} | (set() if digests else {"sha256"})
    pending = [e["epoch"] for e in manifest["checkpoints"] if e["pending"]]
    old: dict[str, Any] = {
        "checkpoints": [
            {k: v for k, v in entry.items() if k not in dropped_keys}
            for entry in manifest["checkpoints"]
        ],
        "outcomes": [
            outcome
            for outcome in outcomes
            if outcome["epoch"] not in pending
            and outcome["epoch"] <= max(e["epoch"] for e in manifest["checkpoints"])
        ],
        "scores": manifest["scores"],
    }
    return old | ({"dropped": []} if digests else {})
