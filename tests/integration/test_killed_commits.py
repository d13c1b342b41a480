"""A training is killed between its two writes: the epochs, then the checkpoint that holds them."""

import json
import shutil
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from run_records import epochs_of, metrics_of
from tensorboardX.proto.event_pb2 import Event
from tiny import Ran, run_process, train_args

pytestmark = [pytest.mark.mlflow, pytest.mark.usefixtures("evaluations_here")]

EPOCHS = 4
# `raymimic`, which dies when it is about to write the checkpoint of epoch 3.
KILLED = """
import os, signal, sys
from raymimic import storage
from raymimic.cli import main

write = storage.write_bytes

def write_or_die(path, data):
    if str(path).endswith("model_epoch_3.pth"):
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, data)

storage.write_bytes = write_or_die
main(sys.argv[1:])
"""
SETTINGS = [
    *("ray.commit_interval_s=0", f"train.num_epochs={EPOCHS}", "experiment.logging.log_tb=true"),
    *("experiment.rollout.enabled=true", "experiment.rollout.rate=2", "experiment.rollout.n=1"),
    *("experiment.rollout.horizon=5", "experiment.render_video=false"),
]


def tensorboard_points(folder: Path, tag: str) -> list[int]:
    """Epochs at which an event file has a metric."""
    (path,) = folder.iterdir()
    data, epochs = path.read_bytes(), []
    while data:  # TFRecord: length, its checksum, the event, its checksum
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        epochs += [event.step for value in event.summary.value if value.tag == tag]
        data = data[16 + length :]
    return epochs


@pytest.mark.parametrize("place", ["disk", "URI"])
def test_each_epoch_stands_once_in_each_record(
    cli: Callable[..., Ran],
    hopper: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    database = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    base = "td3_bc_trained_models/test"
    settings = [*SETTINGS, "mlflow.enabled=true"]
    if place == "URI":
        base = "store/test"
        settings.append(f"ray.storage_path=local://{tmp_path}/store")
    killed = run_process("-c", KILLED, *train_args(hopper, *settings), cwd=tmp_path)
    assert killed.status == -signal.SIGKILL, killed.err
    (run,) = (tmp_path / base).iterdir()
    listed = json.loads((run / "checkpoints.json").read_text())["checkpoints"]
    assert [entry["epoch"] for entry in listed] == [1, 2]
    parts = sorted((run / "epochs").iterdir()) if place == "URI" else [run / "epochs.jsonl"]
    written = [json.loads(line)["epoch"] for part in parts for line in part.open()]
    assert written == [1, 2, 3]
    if place == "URI":
        assert [part.name for part in parts] == [f"{n:08d}.jsonl" for n in (1, 2, 3)]

    uri = f"local://{run}" if place == "URI" else str(run)
    ran = cli("train", "--resume", uri, "--json")
    assert ran.status == 0, ran.err
    whole = cli(*train_args(hopper, *SETTINGS), "--name", "whole", "--json")
    newest = f"{uri}/models/model_epoch_{EPOCHS}.pth"
    assert metrics_of(newest) == metrics_of(whole.result["last_checkpoint"])
    assert [epoch["epoch"] for epoch in epochs_of(newest)] == [1, 2, 3, 4]
    client, run_id = MlflowClient(database), ran.result["mlflow_run_id"]
    points = {
        name: [point.step for point in client.get_metric_history(run_id, name)]
        for name in ("Train/Loss", "Rollout/Hopper-v5/Return")
    }
    assert {name: sorted(steps) for name, steps in points.items()} == {
        "Train/Loss": [5, 10, 15, 20],
        "Rollout/Hopper-v5/Return": [10, 20],
    }
    table = client.download_artifacts(run_id, "episodes.json", str(tmp_path))
    rows = json.loads(Path(table).read_text())["data"]
    assert [row[:3] for row in rows] == [[2, 10, "Hopper-v5"], [4, 20, "Hopper-v5"]]
    logs = Path(shutil.copytree(run / "logs" / "tb", tmp_path / "tb"))
    assert tensorboard_points(logs, "Train/Loss") == [1, 2, 3, 4]
    assert tensorboard_points(logs, "Rollout/Return/Hopper-v5") == [2, 4]
