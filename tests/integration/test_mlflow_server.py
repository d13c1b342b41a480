"""Logging to a real MLflow server that is not always there."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from image_files import write_cameras
from mlflow import MlflowClient
from mlflow_server import Server, history, warnings_in
from PIL import Image
from tiny import PROGRAMS, small_config
from waiting import DEADLINE_S, wait_for

from raymimic.errors import OutputError
from raymimic.tracking.journal import pending, spool_dir_of
from raymimic.tracking.mlflow_tracker import WORKING_DEADLINE_S, MLflowTracker, sync
from raymimic.training.trainer import train

pytestmark = pytest.mark.mlflow


def hang_up_on_one(port: int) -> None:
    """Accepts a connection in the place of a server that is not there, and closes it."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            listener = socket.create_server(("127.0.0.1", port))
            break
        except OSError:  # the killed server's processes still hold the port
            assert time.monotonic() < deadline
            time.sleep(0.1)
    with listener:
        listener.settimeout(DEADLINE_S)
        listener.accept()[0].close()


def test_what_a_dead_server_missed_is_synced(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.kill()
    tracker = MLflowTracker(server.uri, "synced", finish_deadline_s=1)
    tracker.start(tmp_path, {"a": 1}, {})
    tracker.log_epoch(1, 10, {"Train/Loss": 0.5})
    before = time.monotonic()
    tracker.finish("FINISHED")
    assert time.monotonic() - before < WORKING_DEADLINE_S
    (said,) = [text for text in warnings_in(caplog) if "mlflow sync" in text]
    assert said.endswith(f"raymimic mlflow sync {tmp_path}")

    report = sync(tmp_path)
    assert (report.run_id, report.delivered, report.left) == (None, 0, 4)
    assert "cannot be reached" in report.reason
    server.start()
    report = sync(tmp_path)
    assert (report.delivered, report.left, report.reason) == (4, 0, "")
    assert report.run_id is not None
    assert MlflowClient(server.uri).get_run(report.run_id).info.status == "FINISHED"
    assert history(server, report.run_id, "Train/Loss") == [(10, 0.5)]
    assert sync(tmp_path).delivered == 0


def test_outages_cost_one_warning_and_no_point(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="raymimic")
    server.kill()
    environment = dict(os.environ)
    tracker = MLflowTracker(
        server.uri, "outages", "kept", {"who": "user"}, finish_deadline_s=DEADLINE_S
    )
    config = {"algo": {"alpha": 2.5, "layers": [256, 256]}, "long": "x" * 7000}
    config |= {f"many{i}": i for i in range(120)}

    def log(epochs: range) -> None:
        for epoch in epochs:
            metrics = {"Train/Loss": 1 / epoch, "critic/critic1_loss": float(epoch)}
            tracker.log_epoch(epoch, 100 * epoch, metrics)

    before = time.monotonic()
    assert tracker.start(tmp_path, config, {"algo": "td3_bc", "who": "run"}) is None
    log(range(1, 11))
    assert time.monotonic() - before < 60  # nobody has waited for the server
    wait_for(lambda: warnings_in(caplog), "the warning")
    assert tracker.run_id is None
    server.start()
    wait_for(lambda: pending(spool_dir_of(tmp_path)) == 0, "the first delivery")
    run_id = tracker.run_id
    assert run_id is not None
    assert [step for step, _ in history(server, run_id, "Train/Loss")] == list(
        range(100, 1001, 100)
    )

    with pytest.raises(OutputError, match="which still runs"):
        sync(tmp_path)

    server.kill()
    log(range(11, 41))
    picture = tmp_path / "curve.png"
    for content in ("old", "new"):
        picture.write_text(content)
        tracker.log_artifact(picture, "figures")
    picture.unlink()
    hang_up_on_one(server.port)  # proves that the delivery goes on asking
    assert pending(spool_dir_of(tmp_path)) == 32
    server.start()
    log(range(41, 51))
    tracker.log_epoch(7, 700, {"Rollout/Return/Walker2d-v5": float("nan"), "odd (name)": 1e400})
    tracker.finish("FINISHED")

    assert pending(spool_dir_of(tmp_path)) == 0
    assert dict(os.environ) == environment
    said = warnings_in(caplog)
    assert len(said) == 1
    assert server.uri in said[0]
    assert "cannot be reached" in said[0]
    client = MlflowClient(server.uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "kept"
    assert run.data.tags["who"] == "user"
    assert run.data.tags["algo"] == "td3_bc"
    assert run.data.params["algo.layers"] == "[256, 256]"
    assert run.data.params["many119"] == "119"
    assert run.data.params["long"] == "x" * 6000
    assert history(server, run_id, "Train/Loss") == [(100 * e, 1 / e) for e in range(1, 51)]
    assert history(server, run_id, "critic/critic1_loss") == [(100 * e, e) for e in range(1, 51)]
    assert history(server, run_id, "epoch") == [(100 * e, e) for e in range(1, 51)]
    ((step, value),) = history(server, run_id, "Rollout/Walker2d-v5/Return")
    assert step == 700
    assert value != value
    assert [step for step, _ in history(server, run_id, "odd _name_")] == [700]
    local = client.download_artifacts(run_id, "figures/curve.png", str(tmp_path))
    assert Path(local).read_text() == "new"
    assert len(client.search_runs([run.info.experiment_id])) == 1


def test_an_image_run_shows_its_images(server: Server, tmp_path: Path) -> None:
    server.start()
    path = write_cameras(tmp_path / "cameras.hdf5", lengths=[2, 3], sizes=[(16, 16)])
    core = {"backbone_class": "ShallowConv", "pool_class": None, "feature_dimension": 4}
    config = small_config("bc")
    config.train.data, config.train.output_dir = str(path), str(tmp_path)
    config.train.num_epochs, config.train.batch_size, config.ray.num_workers = 1, 2, 0
    config.experiment.rollout.enabled = config.experiment.logging.log_tb = False
    config.mlflow.tracking_uri = server.uri
    config.observation.modalities.obs.rgb = ["camera_0"]
    config.observation.encoder.rgb.core_kwargs = core
    config.observation.encoder.rgb.obs_randomizer_class = "RandomShift"
    result = train(config, quiet=True)
    kept = MlflowClient(server.uri).download_artifacts(
        str(result.mlflow_run_id), "figures/images.png", str(tmp_path)
    )
    drawn = Path(result.run_dir, "logs", "images.png")
    assert Path(kept).read_bytes() == drawn.read_bytes()
    page = np.asarray(Image.open(kept))
    with h5py.File(path) as file:
        frame = file["data/demo_1/obs/camera_0"][1]  # the middle one
    large = np.lib.stride_tricks.sliding_window_view(page, (192, 192, 3))[:, :, 0]
    corners = (page[:-191, :-191] == frame[0, 0]).all(axis=-1)
    found = [
        place
        for place in np.argwhere(corners)
        if (large[tuple(place)] == frame.repeat(12, 0).repeat(12, 1)).all()
    ]
    assert len(found) == 1


def test_resume_continues_the_run(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.start()
    first = MLflowTracker(server.uri, "resume", finish_deadline_s=DEADLINE_S)
    first.start(tmp_path, {"train": {"num_epochs": 3, "seed": 1}}, {})
    for epoch in range(1, 4):
        first.log_epoch(epoch, epoch, {"Train/Loss": float(epoch)})
    first.finish("FAILED")
    client = MlflowClient(server.uri)
    assert first.run_id is not None
    assert client.get_run(first.run_id).info.status == "FAILED"

    # The cursor of a process that crashed between sending and storing it.
    (spool_dir_of(tmp_path) / "cursor.json").unlink()
    second = MLflowTracker(server.uri, "resume", finish_deadline_s=DEADLINE_S)
    assert second.start(tmp_path, {"train": {"num_epochs": 5, "seed": 1}}, {}) == first.run_id
    for epoch in range(2, 6):
        second.log_epoch(epoch, epoch, {"Train/Loss": float(epoch)})
    wait_for(lambda: client.get_run(first.run_id or "").info.status == "RUNNING", "RUNNING")
    second.finish("KILLED")

    run = client.get_run(first.run_id)
    assert run.info.status == "KILLED"
    assert run.data.params == {"train.num_epochs": "3", "train.seed": "1"}
    resumed = {k: v for k, v in run.data.tags.items() if k.startswith("resume.")}
    assert resumed == {"resume.train.num_epochs": "5"}
    assert history(server, first.run_id, "Train/Loss") == [(e, e) for e in range(1, 6)]
    assert len(client.search_runs([run.info.experiment_id])) == 1
    assert warnings_in(caplog) == []


@pytest.mark.parametrize("together", ["alone", "together"])
def test_killed_training(server: Server, tmp_path: Path, together: str) -> None:
    server.start()
    command = [sys.executable, PROGRAMS / "killed_training.py", str(tmp_path), server.uri, together]
    assert subprocess.run(command, check=False, timeout=DEADLINE_S).returncode == -signal.SIGKILL
    if together == "together":  # nobody is left to deliver
        assert pending(spool_dir_of(tmp_path)) == 102
        report = sync(tmp_path)
        assert (report.delivered, report.left, report.reason) == (102, 0, "")
    else:  # the delivery outlives its training
        wait_for(lambda: pending(spool_dir_of(tmp_path)) == 0, "the delivery")
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("killed")
    assert experiment is not None
    (run, *_) = client.search_runs([experiment.experiment_id], order_by=["start_time DESC"])
    wait_for(lambda: client.get_run(run.info.run_id).info.status == "KILLED", "KILLED")
    assert history(server, run.info.run_id, "Train/Loss") == [(e, e) for e in range(1, 101)]
