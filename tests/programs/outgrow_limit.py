"""Writes a journal beyond the size that files may have: `outgrow_limit.py SPOOL`."""

import resource
import signal
import sys
from pathlib import Path

from raymimic.tracking.journal import JournalWriter

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = JournalWriter(Path(sys.argv[1]))
epoch = {"type": "epoch", "time": 1, "epoch": 1, "step": 5, "metrics": {"x": 0.5}}
writer.append(epoch)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 4000))  # the second record's beginning fits
try:
    writer.append(epoch)
except OSError as error:
    print(error.errno, error.filename)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
writer.append(epoch | {"epoch": 2})
