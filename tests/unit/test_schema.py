"""What is wrong with a file is said in one sentence; what can be understood is understood."""

import json

import h5py
import numpy as np
import pytest
import torch
from demo_files import write_demos

from raymimic.data.schema import ColumnRequest, DemoSource, read_metadata, scan, shape_metadata
from raymimic.data.sequence import SequenceDataset
from raymimic.data.store import DemoStore
from raymimic.errors import DatasetError

FLAT = ColumnRequest(obs_keys=("flat",))
OFFLINE_RL = ColumnRequest(obs_keys=("flat",), needs=frozenset({"next_obs", "rewards", "dones"}))


@pytest.fixture
def path(tmp_path):
    return write_demos(tmp_path / "demos.hdf5", masks={"train": ["demo_0", "demo_2"]})


def load(path, request=FLAT, filter_key=None, **kwargs):
    return DemoStore.load([DemoSource(str(path), filter_key, **kwargs)], request)


def complaint(path, request=FLAT, filter_key=None, **kwargs):
    with pytest.raises(DatasetError) as caught:
        load(path, request, filter_key, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# Files that cannot be read


def test_missing(tmp_path):
    assert "does not exist" in complaint(tmp_path / "none.hdf5")


def test_empty(tmp_path):
    (tmp_path / "empty.hdf5").touch()
    assert "is empty (0 bytes)" in complaint(tmp_path / "empty.hdf5")


def test_folder(tmp_path):
    assert "is a folder" in complaint(tmp_path)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "is truncated" in complaint(path)


def test_not_hdf5(tmp_path):
    other = tmp_path / "demos.hdf5"
    other.write_text("obs,actions\n1,2\n")
    assert "is not an HDF5 file" in complaint(other)


def test_other_hdf5(tmp_path):
    other = tmp_path / "demos.hdf5"
    with h5py.File(other, "w") as handle:
        handle["observations"] = np.zeros(3)
    assert "has no group 'data'" in complaint(other)


def test_no_demos(tmp_path):
    other = tmp_path / "demos.hdf5"
    with h5py.File(other, "w") as handle:
        handle.create_group("data")
    assert "holds no demos" in complaint(other)


def test_damaged_inside(path):
    with h5py.File(path, "r+") as handle:
        del handle["data/demo_1/obs/flat"]
        values = np.arange(21.0).reshape(7, 3)
        chunked = handle["data/demo_1/obs"].create_dataset("flat", data=values, compression="gzip")
        chunk = chunked.id.get_chunk_info(0)
    with path.open("r+b") as stream:
        stream.seek(chunk.byte_offset)
        stream.write(b"\xff" * chunk.size)
    assert "cannot be read" in complaint(path)


# Demos that contradict themselves


@pytest.mark.parametrize("key", ["obs/flat", "next_obs/flat", "actions", "rewards", "dones"])
def test_lengths_differ(path, key):
    with h5py.File(path, "r+") as handle:
        values = handle[f"data/demo_1/{key}"][:-1]
        del handle[f"data/demo_1/{key}"]
        handle[f"data/demo_1/{key}"] = values
    message = complaint(path, OFFLINE_RL)
    assert f"lengths differ in demo 'demo_1': '{key}' has 6 rows, the demo 7 samples" in message


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("key", ["actions", "obs/flat"])
def test_not_finite(path, key, bad):
    with h5py.File(path, "r+") as handle:
        handle[f"data/demo_2/{key}"][3, 1] = bad
    message = complaint(path)
    assert f"demo 'demo_2': '{key}' holds NaN or infinity (first in row 3)" in message
    assert load(path, filter_key=None, demo_limit=2).num_transitions == 12  # others are fine


def test_huge_finite_values_are_not_mistaken_for_nan(path):
    with h5py.File(path, "r+") as handle:
        handle["data/demo_0/obs/flat"][:] = 3e38  # their sum overflows in float32
    assert load(path).columns["obs/flat"][0, 0] == np.float32(3e38)


def test_no_samples(path):
    with h5py.File(path, "r+") as handle:
        handle["data/demo_1"].attrs["num_samples"] = 0
    assert "demo 'demo_1' has no samples" in complaint(path)


def test_shapes_differ_between_demos(path):
    with h5py.File(path, "r+") as handle:
        del handle["data/demo_2/obs/flat"]
        handle["data/demo_2/obs/flat"] = np.zeros((4, 5))
    message = complaint(path)
    assert "demo 'demo_2'" in message
    assert "rows of 'obs/flat' have shape [5], but [3] in demo 'demo_0'" in message


# Keys that are not there


def test_missing_observation_names_the_nearest(path):
    message = complaint(path, ColumnRequest(obs_keys=("flatt",)))
    assert "demo 'demo_0' has no observation 'flatt'; did you mean 'flat'?" in message


def test_missing_observation_in_one_demo_only(path):
    with h5py.File(path, "r+") as handle:
        handle.move("data/demo_2/obs/flat", "data/demo_2/obs/other")
    assert "demo 'demo_2' has no observation 'flat'" in complaint(path)


def test_missing_action_key_names_the_nearest(path):
    message = complaint(path, ColumnRequest(obs_keys=("flat",), action_keys=("action",)))
    assert "has no 'action'; did you mean 'actions'?" in message


def test_missing_dataset_key(path):
    message = complaint(path, ColumnRequest(obs_keys=("flat",), dataset_keys=("reward",)))
    assert "has no 'reward'; did you mean 'rewards'?" in message


def test_group_instead_of_dataset(path):
    with h5py.File(path, "r+") as handle:
        handle["data/demo_0/obs/robot/eef"] = np.zeros((5, 3))
    message = complaint(path, ColumnRequest(obs_keys=("robot",)))
    assert "'obs/robot' is a group: name its members, such as robot/eef" in message


def test_text_instead_of_numbers(path):
    with h5py.File(path, "r+") as handle:
        handle["data/demo_0/obs/words"] = np.array([b"a"] * 5)
    assert "not an array of numbers" in complaint(path, ColumnRequest(obs_keys=("words",)))


def test_unknown_filter_key(path):
    message = complaint(path, filter_key="trian")
    assert "has no filter key 'trian'; did you mean 'train'?" in message


def test_filter_key_without_mask(tmp_path):
    path = write_demos(tmp_path / "demos.hdf5")
    assert "has no filter keys (no group 'mask')" in complaint(path, filter_key="train")


def test_filter_key_names_a_demo_that_is_not_there(tmp_path):
    path = write_demos(tmp_path / "demos.hdf5", masks={"train": ["demo_0", "demo_9"]})
    assert "names demo 'demo_9', which is not in the file" in complaint(path, filter_key="train")


def test_filter_key_of_no_demos(tmp_path):
    path = write_demos(tmp_path / "demos.hdf5", masks={"none": [], "all": ["demo_0"]})
    assert "filter key 'none' holds no demos" in complaint(path, filter_key="none")


def test_env_args_that_are_not_json(path):
    with h5py.File(path, "r+") as handle:
        handle["data"].attrs["env_args"] = "Walker2d-v5"
    with pytest.raises(DatasetError, match=r"'env_args'.* is not JSON"):
        read_metadata(path)


# Files as people have them


@pytest.mark.parametrize("key", ["rewards", "dones"])
def test_rewards_or_dones_absent(path, key):
    with h5py.File(path, "r+") as handle:
        del handle[f"data/demo_1/{key}"]
    columns = load(path).columns  # nothing needs it: no batch has it
    assert key not in columns
    assert {"rewards", "dones"} - {key} <= columns.keys()
    message = complaint(path, OFFLINE_RL)
    assert (
        f"demo 'demo_1' of dataset '{path}' has no '{key}', which this algorithm needs" in message
    )


def test_next_obs_absent_is_derived_only_when_needed(tmp_path, caplog):
    path = write_demos(tmp_path / "demos.hdf5", next_obs=False)
    assert "next_obs" not in SequenceDataset(load(path))[0]
    assert not caplog.records

    derived = SequenceDataset(load(path, OFFLINE_RL)).gather(torch.arange(16))
    assert "is taken from the next row of obs" in caplog.text
    real = write_demos(tmp_path / "real.hdf5", next_obs=True)
    expected = SequenceDataset(load(real, OFFLINE_RL)).gather(torch.arange(16))
    last = torch.tensor([4, 11, 15])
    inner = torch.ones(16, dtype=torch.bool).index_fill(0, last, False)
    assert torch.equal(derived["next_obs"]["flat"][inner], expected["next_obs"]["flat"][inner])
    assert torch.equal(derived["next_obs"]["flat"][last], derived["obs"]["flat"][last])


def test_next_obs_absent_from_one_demo_is_derived_for_all(path):
    with h5py.File(path, "r+") as handle:
        del handle["data/demo_1/next_obs"]
    store = load(path, OFFLINE_RL)
    assert store.layout.derive_next_obs
    assert "next_obs/flat" not in store.columns


def test_float64_and_other_types(path):
    with h5py.File(path, "r+") as handle:
        for name, n in [("demo_0", 5), ("demo_1", 7), ("demo_2", 4)]:
            demo = handle["data"][name]
            assert demo["obs/flat"].dtype == np.float64
            del demo["dones"], demo["rewards"]
            demo["dones"] = np.arange(n) == n - 1  # bool
            demo["rewards"] = np.arange(n, dtype=np.int32)[:, None]  # [N, 1]
            demo["obs/image"] = np.full((n, 4, 4, 3), 200, dtype=np.uint8)
            demo["obs/half"] = np.full((n, 2), 0.5, dtype=np.float16)
    request = ColumnRequest(obs_keys=("flat", "image", "half"))
    columns = load(path, request).columns
    assert columns["obs/flat"].dtype == columns["obs/half"].dtype == torch.float32
    assert columns["obs/image"].dtype == torch.uint8
    assert columns["rewards"].tolist() == [*range(5), *range(7), *range(4)]
    assert columns["dones"].nonzero().flatten().tolist() == [4, 11, 15]
    double = DemoStore.load([DemoSource(str(path))], request, torch.float64).columns
    with h5py.File(path) as handle:
        actions = np.concatenate([handle[f"data/demo_{i}/actions"][()] for i in range(3)])
    np.testing.assert_array_equal(double["actions"].numpy(), actions)
    np.testing.assert_array_equal(columns["actions"].numpy(), actions.astype(np.float32))


def test_demo_numbers_with_gaps_are_ordered_by_number(tmp_path):
    names = ["demo_10", "demo_2", "demo_33"]
    path = write_demos(tmp_path / "demos.hdf5", names=names, masks={"some": ["demo_33", "demo_2"]})
    assert [demo.name for demo in load(path).layout.demos] == ["demo_2", "demo_10", "demo_33"]
    store = load(path, filter_key="some")
    assert [demo.name for demo in store.layout.demos] == ["demo_2", "demo_33"]
    assert store.columns["obs/flat"][:, 0].tolist() == [*range(5, 12), *range(12, 16)]


def test_demo_limit(path):
    assert [demo.name for demo in load(path, demo_limit=2).layout.demos] == ["demo_0", "demo_1"]
    assert "demo_limit is 0" in complaint(path, demo_limit=0)


def test_wrong_total_is_counted_again(path, caplog):
    with h5py.File(path, "r+") as handle:
        handle["data"].attrs["total"] = 999
    assert read_metadata(path).num_transitions == 16
    assert "says 999" in caplog.text
    assert load(path).num_transitions == 16


def test_nested_observation_groups(path):
    with h5py.File(path, "r+") as handle:
        for name, n in [("demo_0", 5), ("demo_1", 7), ("demo_2", 4)]:
            handle[f"data/{name}/obs/robot/arm/eef"] = np.full((n, 2), n)
            handle[f"data/{name}/next_obs/robot/arm/eef"] = np.full((n, 2), n + 1)
    item = SequenceDataset(load(path, ColumnRequest(obs_keys=("robot/arm/eef", "flat"))))[5]
    assert item["obs"]["robot/arm/eef"].tolist() == [[7, 7]]
    assert item["next_obs"]["robot/arm/eef"].tolist() == [[8, 8]]
    assert read_metadata(path).obs_shapes == {"flat": (3,), "robot/arm/eef": (2,)}


def test_several_action_keys_side_by_side(path):
    with h5py.File(path, "r+") as handle:
        for name, n in [("demo_0", 5), ("demo_1", 7), ("demo_2", 4)]:
            handle[f"data/{name}/action_dict/gripper"] = np.full(n, 0.5)  # one number a row
    keys = ("action_dict/gripper", "actions")
    item = SequenceDataset(load(path, ColumnRequest(obs_keys=("flat",), action_keys=keys)))[0]
    plain = SequenceDataset(load(path))[0]
    assert item["actions"].tolist() == [[0.5, *plain["actions"][0].tolist()]]
    assert shape_metadata(path, ["flat"], keys)["ac_dim"] == 3


def test_several_files_follow_one_another(tmp_path):
    a = write_demos(tmp_path / "a.hdf5", (2, 3))
    b = write_demos(tmp_path / "b.hdf5", (4,))
    layout = scan([DemoSource(str(p)) for p in (a, b, a)], FLAT)
    assert layout.source_sizes == (2, 1, 2)
    store = DemoStore.read(layout)
    assert store.columns["obs/flat"][:, 0].tolist() == [*range(5), *range(4), *range(5)]


def test_metadata(path):
    meta = read_metadata(path)
    assert meta.env_meta == {"env_name": "Walker2d-v5", "type": 2, "env_kwargs": {}}
    assert (meta.num_demos, meta.num_transitions) == (3, 16)
    assert meta.filter_keys == {"train": ["demo_0", "demo_2"]}
    before = meta.digest
    with h5py.File(path, "r+") as handle:
        handle["data/demo_0/actions"][0, 0] = 0.123
    assert before.startswith("sha256:")
    assert read_metadata(path).digest != before


def test_metadata_without_env_args_or_mask(tmp_path):
    path = write_demos(tmp_path / "demos.hdf5")
    with h5py.File(path, "r+") as handle:
        del handle["data"].attrs["env_args"]
    meta = read_metadata(path)
    assert (meta.env_meta, meta.filter_keys) == ({}, {})


def test_shape_metadata(path):
    with h5py.File(path, "r+") as handle:
        handle["data/demo_0/obs/camera"] = np.zeros((5, 8, 6, 3), dtype=np.uint8)
    meta = shape_metadata(path, ["flat", "camera"], modalities={"camera": "rgb"})
    assert json.dumps(meta) == json.dumps(
        {
            "ac_dim": 2,
            "all_shapes": {"camera": [3, 8, 6], "flat": [3]},
            "all_obs_keys": ["camera", "flat"],
            "use_images": True,
            "use_depths": False,
        }
    )


def test_uri_is_fetched_once_and_again_when_it_changes(tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("RAYMIMIC_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    uri = "memory://bucket/demos.hdf5"
    memory.pipe("/bucket/demos.hdf5", write_demos(tmp_path / "a.hdf5", (2, 3)).read_bytes())
    assert read_metadata(uri).num_transitions == 5
    assert read_metadata(uri).path.parent == tmp_path / "cache" / "datasets"
    assert len(list((tmp_path / "cache" / "datasets").glob("*.hdf5"))) == 1
    memory.pipe("/bucket/demos.hdf5", write_demos(tmp_path / "b.hdf5", (4,)).read_bytes())
    assert read_metadata(uri).num_transitions == 4
    with pytest.raises(DatasetError, match=r"'memory://bucket/none\.hdf5' does not exist"):
        read_metadata("memory://bucket/none.hdf5")
