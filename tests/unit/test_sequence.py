"""Windows cut by index arithmetic equal windows cut step by step."""

import itertools

import numpy as np
import pytest
import torch
from demo_files import write_demos

from raymimic.data.columns import ColumnRequest, DemoSource
from raymimic.data.sequence import SequenceDataset
from raymimic.data.store import DemoStore
from raymimic.errors import DatasetError

LENGTHS = (5, 7, 4)


@pytest.fixture(scope="module", params=[True, False], ids=["next_obs", "derived"])
def store(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "demos.hdf5"
    write_demos(path, LENGTHS, next_obs=request.param)
    wanted = ColumnRequest(obs_keys=("flat",), needs=frozenset({"next_obs"}))
    return DemoStore.load([DemoSource(str(path))], wanted, torch.float64)


def by_hand(store, seq_length, frame_stack, pad_seq, pad_frames):
    """All samples, each window's steps looked up one by one; rows are numbered by ``flat[0]``."""
    start, derived = 0, store.layout.derive_next_obs
    for length in LENGTHS:
        first = 0 if pad_frames else frame_stack - 1
        end = length - (0 if pad_seq else seq_length - 1)
        for i in range(first, end):
            steps = range(i - frame_stack + 1, i + seq_length)
            rows = [start + min(max(step, 0), length - 1) for step in steps]
            last = start + length - 1
            after = [min(row + 1, last) if derived else row + 1 for row in rows]
            goal = start + end - 1
            yield {
                "rows": rows,
                "next": after,
                "goal": min(goal + 1, last) if derived else goal + 1,
                "pad": [0 <= step < length for step in steps],
            }
        start += length


@pytest.mark.parametrize(
    ("seq_length", "frame_stack", "pad_seq", "pad_frames"),
    [
        *itertools.product((1, 3, 9), (1, 2, 6), (True,), (True,)),
        *itertools.product((1, 3), (1, 2), (True, False), (True, False)),
    ],
)
def test_windows(store, seq_length, frame_stack, pad_seq, pad_frames):
    dataset = SequenceDataset(
        store,
        seq_length=seq_length,
        frame_stack=frame_stack,
        pad_seq_length=pad_seq,
        pad_frame_stack=pad_frames,
        goal_mode="last",
        get_pad_mask=True,
    )
    expected = list(by_hand(store, seq_length, frame_stack, pad_seq, pad_frames))
    assert len(dataset) == len(expected)
    order = torch.from_numpy(np.random.default_rng(1).permutation(len(dataset)))
    batch = dataset.gather(order)
    for i, j in enumerate(order.tolist()):
        want = expected[j]
        assert batch["obs"]["flat"][i, :, 0].tolist() == want["rows"]
        assert batch["next_obs"]["flat"][i, :, 0].tolist() == want["next"]
        assert batch["goal_obs"]["flat"][i, 0] == want["goal"]
        assert batch["pad_mask"][i, :, 0].tolist() == want["pad"]
        assert torch.equal(batch["actions"][i], store.columns["actions"][want["rows"]])
        assert torch.equal(batch["dones"][i], store.columns["dones"][want["rows"]])
        item = dataset[j]
        assert item["index"] == j
        assert torch.equal(item["goal_obs"]["flat"], batch["goal_obs"]["flat"][i])
        assert torch.equal(item["obs"]["flat"], batch["obs"]["flat"][i])


def test_items_by_negative_index_and_beyond(store):
    dataset = SequenceDataset(store)
    assert dataset[-1]["index"] == 15
    with pytest.raises(IndexError):
        dataset[16]


def test_demo_too_short_without_padding(store):
    with pytest.raises(DatasetError, match=r"demo 'demo_2' has 4 samples, too few .* seq_length 5"):
        SequenceDataset(store, seq_length=5, pad_seq_length=False)
