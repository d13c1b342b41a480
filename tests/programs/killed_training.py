"""Logs and kills itself, and its delivery: `killed_training.py RUN_DIR URI alone|together`."""

import os
import signal
import sys
from pathlib import Path

import psutil

from raymimic.tracking.mlflow_tracker import MLflowTracker

run_dir, uri, together = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "together"
tracker = MLflowTracker(uri, "killed")
tracker.start(run_dir, {"a": 1}, {})
for epoch in range(1, 101):
    tracker.log_epoch(epoch, epoch, {"Train/Loss": float(epoch)})
if together:
    (delivery,) = psutil.Process().children()
    delivery.kill()
os.kill(os.getpid(), signal.SIGKILL)
