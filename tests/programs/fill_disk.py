"""Logs to a disk that it has filled: `fill_disk.py DISK spool|database`."""

import os
import sys
import time
from pathlib import Path

from raymimic.tracking.mlflow_tracker import MLflowTracker

disk = Path(sys.argv[1])
run = disk / "exp" / "run"
run.mkdir(parents=True)
said = []
uri = f"sqlite:///{disk}/exp/mlflow.db"
tracker = MLflowTracker(uri, say=lambda level, text: said.append(text), finish_deadline_s=600)
tracker.start(run, {}, {})
try:
    with (disk / "ballast").open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
except OSError:
    pass
end = time.monotonic() + 600
while not said and time.monotonic() < end:
    time.sleep(0.1)
begin = time.monotonic()
if sys.argv[2] == "spool":
    try:
        for epoch in range(500):
            tracker.log_epoch(epoch, epoch, {"x": 1.0})
    except OSError as error:
        print("spool:", error)
else:  # there is room for the journal, but none for MLflow's tables
    os.truncate(disk / "ballast", (disk / "ballast").stat().st_size - 8192)
try:
    tracker.finish("FAILED")
except OSError as error:
    print("finish:", error)
print("seconds:", time.monotonic() - begin)
print("said:", " ".join(" ".join(said).split()))
