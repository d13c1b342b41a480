"""Holds a lease: `hold_lease.py FOLDER [elsewhere]`."""

import sys
import time

from raymimic import lease

if len(sys.argv) > 2:
    lease._identity = lambda pid: None  # as if on another machine
lease.Lease.take(sys.argv[1], "run trained", 0.0, True)
print("held", flush=True)
time.sleep(1000)
