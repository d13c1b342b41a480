"""Uses up the hours of a sweep: `use_hours.py SWEEP_FILE`."""

import sys
import time

import raymimic.sweep.trials.folder as folder
from raymimic.sweep.spec.sweep_file import sweep_from_file
from raymimic.sweep.trials.ledger import TrialLedger
from raymimic.sweep.trials.records import SweepRecords

folder._NOTE_EVERY_S = 0.1
spec = sweep_from_file(sys.argv[1])
ledger = TrialLedger(spec, folder.SweepFolder.create(spec), SweepRecords(spec, {}), quiet=True)
for _ in range(1000):
    assert not ledger.budget.stop_all()
    time.sleep(0.05)
    print(".", flush=True)
