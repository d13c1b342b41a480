"""Nothing that a training or a sweep leaves holds the password of its tracking server."""

import base64
import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from head import short_folder
from mlflow import MlflowClient
from mlflow_server import Server
from old_layout import to_old_layout
from tiny import SETTINGS, Ran, train_args, write_hopper
from waiting import DEADLINE_S

from raymimic.tracking.journal import JournalReader, pending, spool_dir_of

pytestmark = pytest.mark.mlflow

USER, PASSWORD = "ann", "hunt3r/2@home"  # of which a URI must encode two characters
ENCODED = "hunt3r%2F2%40home"
BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
# All forms of it that a file could hold.
SECRETS = [s.encode() for s in (PASSWORD, ENCODED, BASIC, "hunt3r")]

RUN = ["mlflow.enabled=true", "experiment.logging.log_tb=true", "train.num_epochs=2"]


class Guard(ThreadingHTTPServer):
    """A proxy that lets nobody through without a login, as those before MLflow servers do."""

    daemon_threads = True

    def __init__(self, server: Server) -> None:
        self.server = server
        self.refused = 0
        super().__init__(("127.0.0.1", 0), _Pass)
        self.host = f"127.0.0.1:{self.server_address[1]}"


class _Pass(BaseHTTPRequestHandler):
    server: Guard

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Basic {BASIC}":
            self.server.refused += 1
            self._answer(401, b"who are you?", {"WWW-Authenticate": "Basic"})
            return
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.server.server.port, timeout=30)
        ) as inner:
            headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
            inner.request(self.command, self.path, body, headers)
            answer = inner.getresponse()
            content = answer.read()
        kept = {"Content-Type": answer.getheader("Content-Type") or "text/plain"}
        self._answer(answer.status, content, kept)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def guard(server: Server) -> Iterator[Guard]:
    server.start()
    guard = Guard(server)
    thread = threading.Thread(target=guard.serve_forever, daemon=True)
    thread.start()
    yield guard
    guard.shutdown()
    guard.server_close()


def command(*args: str, cwd: Path, **variables: str) -> Ran:
    """`raymimic` in a process of its own; neither it nor its children show the password to `ps`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "raymimic", *args],
        cwd=cwd,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    shown: set[str] = set()

    def watch() -> None:
        with contextlib.suppress(psutil.Error):
            own = psutil.Process(process.pid)
            while process.poll() is None:
                for one in (own, *own.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        shown.add(" ".join(one.cmdline()))
                time.sleep(0.1)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        out, err = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
    process.wait()
    watcher.join()
    said = "\n".join([out, err, *(line for line in shown if "-m raymimic" not in line)])
    assert not any(secret.decode() in said for secret in SECRETS), said
    # The process replaces itself where the user typed the password.
    assert len([line for line in shown if "-m raymimic" in line and ENCODED in line]) <= 1
    return Ran(process.returncode, out, err)


def leaking(*folders: Path) -> list[Path]:
    """The files that hold the password; checkpoints store their parts as they are."""
    read = {}
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        with contextlib.suppress(FileNotFoundError):  # of a database, or of Ray, which ends
            read[path] = path.read_bytes()
    assert len(read) > 10
    return [p for p, content in read.items() if any(secret in content for secret in SECRETS)]


def test_a_training_keeps_the_password_to_itself(guard: Guard, tmp_path: Path) -> None:
    data = write_hopper(tmp_path / "hopper.hdf5")
    uri = f"http://{USER}:{ENCODED}@{guard.host}"
    args = train_args(data, *RUN, f"mlflow.tracking_uri={uri}", "train.output_dir=out")
    made = command(*args, "--json", "--traceback", cwd=tmp_path)
    assert made.status == 0, made.err
    assert made.result["mlflow_command"] is None
    run_id = made.result["mlflow_run_id"]
    in_store = MlflowClient(guard.server.uri).get_run(run_id).info
    page = f"http://{guard.host}/#/experiments/{in_store.experiment_id}/runs/{run_id}?"
    assert made.result["mlflow_url"].startswith(page)
    run = Path(made.result["run_dir"])
    assert pending(spool_dir_of(run)) == 0
    assert leaking(tmp_path, guard.server.folder) == []

    # Nobody logs in: one sentence, and the training goes on.
    resume = ["train", "--resume", str(run), "--set", "train.num_epochs=3", "--json"]
    resumed = command(*resume, cwd=tmp_path)
    assert resumed.status == 0, resumed.err
    assert resumed.result["metrics"]["epoch"] == 3
    asks = [line for line in resumed.err.splitlines() if "MLFLOW_TRACKING_USERNAME" in line]
    assert len(asks) == 1
    assert f"MLflow at http://{guard.host} wants a login" in asks[0]
    left = pending(spool_dir_of(run))
    assert left > 0
    synced = command("mlflow", "sync", str(run), cwd=tmp_path)
    assert synced.status == 2
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in synced.err
    assert len(synced.err.splitlines()) == 1
    wrong = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": "wrong-one"}
    assert "refuses this login" in command("mlflow", "sync", str(run), cwd=tmp_path, **wrong).err

    right = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    synced = command("mlflow", "sync", str(run), cwd=tmp_path, **right)
    assert synced.status == 0, synced.err
    where = f"MLflow run {made.result['mlflow_run_id']} at http://{guard.host}"
    assert synced.out == f"delivered {left} records to {where}\n"
    found = MlflowClient(guard.server.uri).get_run(made.result["mlflow_run_id"])
    assert found.data.params["mlflow.tracking_uri"] == f"http://{guard.host}"
    assert found.data.metrics["epoch"] == 3
    assert leaking(tmp_path, guard.server.folder) == []


def test_a_run_of_an_older_version_is_cleaned_when_it_is_resumed(
    guard: Guard,
    cli: Callable[..., Ran],
    hopper: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A run whose files hold the password, as those of 0.1.0 do."""
    address, uri = f"http://{guard.host}", f"http://{USER}:{ENCODED}@{guard.host}"
    with monkeypatch.context() as login:
        login.setenv("MLFLOW_TRACKING_USERNAME", USER)
        login.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        made = cli(*train_args(hopper, *RUN, f"mlflow.tracking_uri={address}"), "--json")
    run = Path(made.result["run_dir"])
    told = [run / name for name in ("config.json", "mlflow_run.json", "logs/log.txt")]
    for path in (spool_dir_of(run) / "journal.jsonl", *told):
        path.write_text(path.read_text().replace(address, uri))
    (model,) = run.glob("models/*.pth")
    ckpt = torch.load(model, weights_only=True)
    torch.save(ckpt | {"config": ckpt["config"].replace(address, uri)}, model)
    to_old_layout(run, digests=False)
    assert len(leaking(run)) >= 4

    resumed = cli("train", "--resume", str(run), "--set", "train.num_epochs=3", "--json")
    assert resumed.status == 0, resumed.err
    assert "held the password of its MLflow server" in caplog.text
    assert "change the password" in caplog.text
    assert "hunt3r" not in caplog.text + resumed.out
    assert resumed.result["metrics"]["epoch"] == 3
    # The password that the config held has served once more.
    assert pending(spool_dir_of(run)) == 0
    assert resumed.result["mlflow_run_id"] is not None
    assert leaking(run) == []
    assert len(JournalReader(spool_dir_of(run)).read()) > 6


def test_a_sweep_keeps_the_password_to_itself(guard: Guard, tmp_path: Path) -> None:
    """Neither the sweep's files nor Ray's hold it, and trials are delivered all the same."""
    data = write_hopper(tmp_path / "hopper.hdf5")
    settings = dict(yaml.safe_load(s.replace("=", ": ", 1)).popitem() for s in SETTINGS)
    settings |= {"mlflow.enabled": True, "experiment.validate": True, "train.num_epochs": 1}
    settings |= {"train.hdf5_filter_key": "train", "train.hdf5_validation_filter_key": "valid"}
    sweep = {
        **{"algo": "bc", "dataset": str(data), "metric": "Valid/Loss", "final_episodes": 0},
        "set": settings | {"algo.actor_layer_dims": [8, 8], "train.output_dir": "out"},
        "space": {"train.max_grad_norm": {"grid": [1.0, 2.0]}},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    uri = f"http://{USER}:{ENCODED}@{guard.host}"
    tune = ["tune", "sweep.yaml", "--json", "--set", f"mlflow.tracking_uri={uri}"]
    with short_folder() as ray:
        made = command(*tune, cwd=tmp_path, RAY_TMPDIR=str(ray))
        assert made.status == 0, made.err
        assert leaking(ray) == []
    folder = Path(made.result["sweep_dir"])
    client = MlflowClient(guard.server.uri)
    parent = client.get_run(made.result["mlflow_parent_run_id"])
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    )
    assert [run.info.status for run in children] == ["FINISHED", "FINISHED"]
    assert all("Valid/Loss" in run.data.metrics for run in children)
    assert json.loads((folder / "sweep.json").read_text())["config"]["mlflow"]["tracking_uri"] == (
        f"http://{guard.host}"
    )
    assert leaking(tmp_path, guard.server.folder) == []
