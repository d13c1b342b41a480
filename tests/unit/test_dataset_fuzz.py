"""Any HDF5 file is read, or refused in one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "hdf5_fuzz.py"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "files"), [("structure", 150), ("bytes", 40)])
def test_changed_files(tmp_path, kind, files):
    command = [sys.executable, FUZZ, kind, "0", str(files), tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    said = [line.split(" ", 2) for line in done.stdout.splitlines()]
    assert sorted({int(seed) for seed, *_ in said}) == list(range(files))
    outcomes = [json.loads(what) for _, verb, what in said if verb == "said"]
    # HDF5 2.0.0 itself crashes on about one in 400 files of changed bytes.
    assert len(outcomes) >= (files if kind == "structure" else files - 5)
    assert outcomes.count("READ") > files / 5
    assert sum(outcome != "READ" for outcome in outcomes) > files / 5
    assert all(str(tmp_path) in outcome for outcome in outcomes if outcome != "READ")
