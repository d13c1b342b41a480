"""Columns take the memory that they take, and hardly more while they are read."""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from demo_files import write_demos
from waiting import DEADLINE_S

from raymimic.data.columns import ColumnRequest, DemoSource
from raymimic.data.store import DemoStore

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "load.py"


def test_loading_takes_little_more_memory_than_the_columns(tmp_path):
    path = tmp_path / "demos.hdf5"
    with h5py.File(path, "w") as handle:  # of the types and layouts that files come in
        for i in range(50):
            n = 2500
            demo = handle.create_group(f"data/demo_{i}")
            demo.attrs["num_samples"] = n
            demo["obs/flat"] = np.full((n, 60), i, np.float64)
            values = np.full((n, 60), i, np.float32)
            demo.create_dataset("next_obs/flat", data=values, compression="gzip")
            demo["actions"] = np.full((n, 6), 0.5, np.float32)
            demo["rewards"] = np.zeros(n, np.float64)
            demo["dones"] = np.zeros(n, bool)
    # A process of its own: its peak is that of loading (imports are taken off).
    command = [sys.executable, BENCHMARK, "--dataset", path, "--in-this-process", "--batches", "10"]
    output = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=DEADLINE_S
    ).stdout
    found = json.loads(output.splitlines()[-1])
    assert found["column_mb"] == pytest.approx(125_000 * 128 * 4 / 1e6, rel=1e-3)
    assert found["transitions"] == 125_000
    assert found["peak_over_columns"] <= 1.3


def test_a_shard_reads_only_its_own_demos(tmp_path):
    path = write_demos(tmp_path / "demos.hdf5", (9, 4, 5))
    with h5py.File(path, "r+") as handle:
        handle["data/demo_0/actions"][:] = np.nan  # whoever reads it complains
    source, request = [DemoSource(str(path))], ColumnRequest(obs_keys=("flat",))
    store = DemoStore.load(source, request, shard=(1, 2))
    assert [store.layout.demos[i].name for i in store.owned] == ["demo_1", "demo_2"]
    assert store.columns["obs/flat"][:, 0].tolist() == list(range(9, 18))
    assert store.starts.tolist() == [0, 4]
    assert store.num_bytes == 9 * (3 + 3 + 2 + 1 + 1) * 4
    assert {column.device for column in store.columns.values()} == {torch.device("cpu")}
