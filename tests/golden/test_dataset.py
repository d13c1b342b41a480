"""Batches equal robomimic's, for every golden case with low-dimensional observations.

``data/dataset`` holds robomimic 0.5's collated batches (``<case>.npz``), the windows they were cut
with (``cases.json``), the file they were cut from, and its observation statistics.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from raymimic.data.columns import ColumnRequest, DemoSource
from raymimic.data.sequence import SequenceDataset
from raymimic.data.stats import moments, obs_normalization_stats
from raymimic.data.store import DemoStore

DATA = Path(__file__).parent / "data" / "dataset"
CASES = json.loads((DATA / "cases.json").read_text())
SOURCE = DemoSource(str(DATA / "golden_low_dim.hdf5"), "train")


def flatten(batch, prefix=""):
    flat = {}
    for key, value in batch.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[prefix + key] = value.numpy()
    return flat


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_batch_equals_robomimic(case, dtype):
    expected = dict(np.load(DATA / f"{case}.npz"))
    train, indices = CASES[case]["train"], CASES[case]["idx"]
    request = ColumnRequest(
        obs_keys=tuple(key.removeprefix("obs/") for key in expected if key.startswith("obs/")),
        dataset_keys=tuple(train["dataset_keys"]),
        load_next_obs=train["hdf5_load_next_obs"],
    )
    windows = ["seq_length", "frame_stack", "pad_seq_length", "pad_frame_stack", "goal_mode"]
    dataset = SequenceDataset(
        DemoStore.load([SOURCE], request, dtype),
        load_next_obs=train["hdf5_load_next_obs"],
        **{key: train[key] for key in windows},
    )
    gathered = flatten(dataset.gather(torch.tensor(indices)))
    items = flatten(default_collate([dataset[i] for i in indices]))

    assert gathered.keys() == items.keys() == expected.keys()
    for key, value in expected.items():
        for ours in (gathered[key], items[key]):
            assert ours.shape == value.shape, key
            # robomimic serves actions in float32 and observations in the file's float64.
            np.testing.assert_array_equal(ours.astype(np.float32), value.astype(np.float32), key)


def test_dataset_has_robomimics_length():
    store = DemoStore.load([SOURCE], ColumnRequest(obs_keys=("object",)))
    assert store.lengths.tolist() == [23, 17, 20, 15, 20]
    assert len(SequenceDataset(store, seq_length=10)) == 95
    assert len(SequenceDataset(store, seq_length=10, pad_seq_length=False)) == 95 - 5 * 9
    assert len(SequenceDataset(store, frame_stack=4, pad_frame_stack=False)) == 95 - 5 * 3


def test_observation_statistics_equal_robomimics():
    expected = json.loads((DATA / "obs_normalization_stats.json").read_text())
    store = DemoStore.load([SOURCE], ColumnRequest(obs_keys=tuple(expected)))
    ours = obs_normalization_stats({k: moments([store.columns[f"obs/{k}"]]) for k in expected})
    for key, entry in expected.items():
        for name in ("offset", "scale"):
            assert ours[key][name].dtype == np.float32
            np.testing.assert_allclose(ours[key][name], entry[name], rtol=1e-5, atol=1e-6)
