"""A real MLflow server, and the points and warnings that tests compare."""

import logging
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from head import free_port
from mlflow import MlflowClient
from waiting import wait_for


class Server:
    """An MLflow server on loopback that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it unless it runs."""
        if self.process is not None:
            return
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        switches = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **switches, "MLFLOW_DISABLE_TELEMETRY": "true"},
                start_new_session=True,
            )

        def answers() -> bool:
            ended = self.process is None or self.process.poll() is not None
            assert not ended, (self.folder / "server.log").read_text()[-3000:]
            return self.healthy()

        wait_for(answers, "the server to start")

    def healthy(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.uri}/health", timeout=30).status == 200
        except OSError:
            return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def history(server: Server, run_id: str, key: str) -> list[tuple[int, float]]:
    """The points of a metric in the order of their logging."""
    points = MlflowClient(server.uri).get_metric_history(run_id, key)
    points.sort(key=lambda point: point.timestamp)
    return [(point.step, point.value) for point in points]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
