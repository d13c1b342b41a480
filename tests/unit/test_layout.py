"""Faults of a file are named in one sentence; forms without a fault are read."""

import json
import shlex

import h5py
import numpy as np
import pytest
import torch
from demo_files import write_demos

from raymimic.algo import algo_class
from raymimic.config import config_factory, parse_set
from raymimic.data.columns import ColumnRequest, DemoSource
from raymimic.data.layout import scan, shape_metadata
from raymimic.data.metadata import read_metadata
from raymimic.data.sequence import SequenceDataset
from raymimic.data.store import DemoStore
from raymimic.data.training_data import inspect_data
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


@pytest.mark.parametrize("bad", [7, -1, 1.5])
def test_dones_lie_between_0_and_1(path, bad):
    with h5py.File(path, "r+") as handle:
        handle["data/demo_2/dones"][3] = bad
    message = complaint(path, ColumnRequest(obs_keys=("flat",), needs=frozenset({"dones"})))
    assert f"demo 'demo_2': 'dones' holds {bad} in row 3; each must be 1" in message
    store = DemoStore.load([DemoSource(str(path))], ColumnRequest(obs_keys=("flat",)))
    assert "dones" not in store.columns  # an algorithm that reads none learns from the rest


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


def test_a_missing_embedding_of_an_instruction_is_to_be_written(path):
    message = complaint(path, ColumnRequest(obs_keys=("lang_emb",)))
    assert "has no observation 'lang_emb', the embedding of its instruction: set train" in message


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
    assert read_metadata(uri).path.parent.parent == tmp_path / "cache" / "datasets"
    assert len(list((tmp_path / "cache" / "datasets").glob("*/demos.hdf5"))) == 1
    memory.pipe("/bucket/demos.hdf5", write_demos(tmp_path / "b.hdf5", (4,)).read_bytes())
    assert read_metadata(uri).num_transitions == 4
    with pytest.raises(DatasetError, match=r"'memory://bucket/none\.hdf5' does not exist"):
        read_metadata("memory://bucket/none.hdf5")


# Files as people have them that were refused or mistaken


def change(path, key, values=None, **kwargs):
    """Replaces a dataset in each demo by a function's result for its length."""
    with h5py.File(path, "r+") as handle:
        for demo in handle["data"].values():
            n = demo["actions"].shape[0]
            if key in demo:
                del demo[key]
            demo.create_dataset(key, data=values(n), **kwargs)


def test_one_number_per_step_is_a_row_of_one(path):
    change(path, "obs/height", lambda n: np.arange(n))
    change(path, "next_obs/height", lambda n: np.arange(n)[:, None])
    request = ColumnRequest(obs_keys=("flat", "height"))
    columns = load(path, request).columns
    assert columns["obs/height"].shape == columns["next_obs/height"].shape == (16, 1)
    assert columns["obs/height"][:5, 0].tolist() == [0, 1, 2, 3, 4]
    assert shape_metadata(path, ["height"])["all_shapes"] == {"height": [1]}
    assert read_metadata(path).obs_shapes["height"] == (1,)
    with h5py.File(path, "r+") as handle:  # demos may differ in it
        values = handle["data/demo_2/obs/height"][()]
        del handle["data/demo_2/obs/height"]
        handle["data/demo_2/obs/height"] = values[:, None]
    assert load(path, request).columns["obs/height"].shape == (16, 1)


@pytest.mark.parametrize("key", ["obs/flat", "actions"])
@pytest.mark.parametrize("shape", [(0,), (0, 3)])
def test_rows_of_no_numbers(path, key, shape):
    change(path, key, lambda n: np.zeros((n, *shape)))
    message = complaint(path)
    assert f"demo 'demo_0': '{key}' has shape {[5, *shape]}, so that its rows are empty" in message


@pytest.mark.parametrize("kind", ["array", "float", "uint8"])
def test_attributes_of_one_element(path, kind):
    with h5py.File(path, "r+") as handle:
        data = handle["data"]
        for demo in data.values():
            n = demo.attrs["num_samples"]
            demo.attrs["num_samples"] = {"array": [n], "float": float(n), "uint8": np.uint8(n)}[
                kind
            ]
        data.attrs["total"] = [16]
        data.attrs["env_args"] = [data.attrs["env_args"]]
    meta = read_metadata(path)
    assert (meta.num_transitions, meta.env_meta["env_name"]) == (16, "Walker2d-v5")
    assert load(path).num_transitions == 16


@pytest.mark.parametrize("stated", [2.5, np.nan, np.inf, [1, 2], "5", b"\xff", 1j])
def test_numbers_of_samples_that_are_none(path, stated):
    with h5py.File(path, "r+") as handle:
        handle["data/demo_1"].attrs["num_samples"] = stated
    message = complaint(path)
    assert "demo 'demo_1': attribute 'num_samples' is" in message
    assert "not a whole number" in message


@pytest.mark.parametrize(
    ("stated", "message"),
    [(-3, "has no samples"), (2**62, "lengths differ"), (6, "lengths differ")],
)
def test_absurd_numbers_of_samples(path, stated, message):
    with h5py.File(path, "r+") as handle:
        handle["data/demo_1"].attrs["num_samples"] = stated
    assert message in complaint(path)


def test_names_that_are_not_utf8(path):
    with h5py.File(path, "r+") as handle:
        handle["mask/bytes"] = np.array([b"demo_0", b"caf\xe9_1"])
        handle["mask/text"] = np.array(["demo_1"], dtype=h5py.string_dtype())
        handle["mask/fixed"] = np.array(["demo_2"], dtype=h5py.string_dtype("utf-8", 6))
        handle["mask/one"] = "demo_2"
        handle.move("data/demo_0", b"data/caf\xe9_1")
        handle[b"data/caf\xe9_1/obs/\xff"] = np.zeros((5, 1))
        handle["data"].attrs["notes"] = b"\xff\xfe"
        handle["data"].attrs["many"] = np.array([b"\xff", b"a"])
    assert "names demo 'demo_0', which is not in the file" in complaint(path, filter_key="bytes")
    with h5py.File(path, "r+") as handle:
        handle["mask/bytes"][0] = b"demo_1"
    assert load(path, filter_key="bytes").num_transitions == 12
    assert load(path, filter_key="text").num_transitions == 7
    assert load(path, filter_key="fixed").num_transitions == 4
    assert load(path, filter_key="one").num_transitions == 4
    assert load(path).num_transitions == 16
    assert read_metadata(path).attrs.keys() == {"notes", "many"}
    assert "caf\\udce9_1" in complaint(path, ColumnRequest(obs_keys=("nothing",)))


def test_a_name_cannot_write_to_the_terminal(path):
    with h5py.File(path, "r+") as handle:
        handle.move("data/demo_0", "data/demo_0\n\x1b[31mraymimic: all is well")
    message = complaint(path, ColumnRequest(obs_keys=("flatt",)))
    assert "\x1b" not in message
    assert "demo_0\\n\\x1b[31mraymimic" in message


KINDS = {
    "complex numbers": np.array([[1j]] * 16),
    "texts": np.array([[b"a"]] * 16),
    "records": np.zeros((16, 1), dtype=[("x", "f4")]),
    "opaque values": np.zeros((16, 1), dtype="V3"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", ["obs/flat", "actions"])
def test_arrays_of_no_numbers(path, key, kind):
    change(path, key, lambda n: KINDS[kind][:n])
    assert f"'{key}' is not an array of numbers, but of {kind}" in complaint(path)


def test_arrays_of_references_lists_and_times(path):
    dtypes = [h5py.ref_dtype, h5py.vlen_dtype("f4"), h5py.string_dtype()]
    for dtype, kind in zip(dtypes, ["references", "lists of varying length", "texts"], strict=True):
        with h5py.File(path, "r+") as handle:
            del handle["data/demo_0/obs/flat"]
            handle["data/demo_0/obs"].create_dataset("flat", (5, 3), dtype=dtype)
        assert f"but of {kind}" in complaint(path)
    with h5py.File(path, "r+") as handle:
        obs = handle["data/demo_0/obs"]
        del obs["flat"]
        space = h5py.h5s.create_simple((5, 3))
        h5py.h5d.create(obs.id, b"flat", h5py.h5t.UNIX_D32LE, space)  # which numpy has not got
    assert "'obs/flat' cannot be read" in complaint(path)


@pytest.mark.parametrize("shape", [(), None])
def test_scalars_and_nothing(path, shape):
    with h5py.File(path, "r+") as handle:
        del handle["data/demo_1/actions"]
        handle["data/demo_1/actions"] = 3.0 if shape == () else h5py.Empty("f4")
    assert "with one row per transition, but" in complaint(path)


@pytest.mark.parametrize("dtype", [">f4", ">f8", "f2", "i1", ">u8", "?", np.longdouble, "enum"])
def test_all_kinds_of_numbers(path, dtype):
    if dtype == "enum":
        dtype = h5py.enum_dtype({"OFF": 0, "ON": 1}, basetype=">i2")
    values = np.array([[0, 1, 1], [1, 0, 0]] * 4)
    change(path, "obs/flat", lambda n: values[:n], dtype=dtype)
    assert load(path).columns["obs/flat"][:5].tolist() == values[:5].tolist()


def test_numbers_beyond_float32(path):
    change(path, "obs/flat", lambda n: np.full((n, 3), 1e300))
    assert "holds numbers too large for float32 (first in row 0)" in complaint(path)
    request, source = ColumnRequest(obs_keys=("flat",)), [DemoSource(str(path))]
    columns = DemoStore.load(source, request, torch.float64).columns
    assert columns["obs/flat"][0, 0] == 1e300


def test_images_of_two_types(path):
    for group in ("obs", "next_obs"):
        change(path, f"{group}/camera", lambda n: np.full((n, 4, 4, 3), 200, np.uint8))
    request = ColumnRequest(obs_keys=("camera",))
    assert load(path, request).columns["obs/camera"].max() == 200
    with h5py.File(path, "r+") as handle:
        del handle["data/demo_2/obs/camera"]
        handle["data/demo_2/obs/camera"] = np.full((4, 4, 4, 3), 0.8)  # as uint8 it would be 0
    message = complaint(path, request)
    assert "rows of 'obs/camera' are of another type than uint8, but of uint8" in message


def test_what_was_never_written_is_told(path, caplog):
    with h5py.File(path, "r+") as handle:
        for demo in ("demo_1", "demo_2"):
            shape = handle[f"data/{demo}/actions"].shape
            del handle[f"data/{demo}/actions"]
            handle.create_dataset(f"data/{demo}/actions", shape, "f4")
    assert not load(path).columns["actions"][5:].any()
    assert "demo 'demo_1': 'actions' was never written" in caplog.text


@pytest.mark.parametrize("what", ["num_samples", "rows"])
def test_absurd_shapes(path, what):
    with h5py.File(path, "r+") as handle:
        demo = handle["data/demo_1"]
        n = 2**40 if what == "num_samples" else 7
        shape = (n, 3) if what == "num_samples" else (n, 2**40)
        for key in ("obs/flat", "actions", "next_obs/flat", "rewards", "dones"):
            del demo[key]
            demo.create_dataset(key, shape if "/" in key else (n, 2), "f4", chunks=True)
        demo.attrs["num_samples"] = n
        for other in ("demo_0", "demo_2"):
            del handle[f"data/{other}"]
    assert "that are free on this machine" in complaint(path)


# Only keys that are read count


def test_groups_outside_the_filter_key_do_not_matter(path):
    with h5py.File(path, "r+") as handle:
        handle.create_group("data/empty")
        handle["data/statistics/mean"] = np.zeros(3)
        handle["data/version"] = 3
        handle["mask/broken"] = np.array([1, 2, 3])
        handle["mask/gone"] = np.array(["demo_9"], "S")
        handle["data/demo_1"].attrs["num_samples"] = "many"
        handle["data/demo_0/obs/words"] = np.array([b"a"])
        handle["data/demo_0/obs/poison"] = np.full(2, np.nan)
    assert load(path, filter_key="train").num_transitions == 9
    assert "demo 'empty' has neither" in complaint(path, demo_limit=1)
    assert "'broken' holds numbers, not texts" in complaint(path, filter_key="broken")
    meta = read_metadata(path)
    assert meta.others == ("empty", "statistics")
    assert meta.num_transitions == 9
    assert "attribute 'num_samples' is 'many'" in meta.problems[0]
    assert "'broken' holds numbers" in meta.problems[1]


def test_no_demos_but_other_things(tmp_path):
    other = tmp_path / "demos.hdf5"
    with h5py.File(other, "w") as handle:
        handle["data/actions"] = np.zeros((3, 2))
    assert "nothing in its group 'data' is a group" in complaint(other)
    with h5py.File(other, "w") as handle:
        handle["data"] = np.zeros((3, 2))
        handle["observations"] = np.zeros((3, 2))
    assert "has no group 'data': it is HDF5 (of data, observations)" in complaint(other)


SPOILS = {
    "NaN": lambda n: np.full(n, np.nan),
    "shape": lambda n: np.zeros((n, 2)),
    "rows": lambda n: np.zeros(n + 1),
    "type": lambda n: np.array([b"a"] * n),
    "one number": lambda n: 1.0,
}


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("key", ["rewards", "dones", "next_obs/flat"])
def test_what_an_algorithm_does_not_need_may_be_spoiled(path, caplog, key, spoil):
    with h5py.File(path, "r+") as handle:
        del handle[f"data/demo_1/{key}"]
        handle[f"data/demo_1/{key}"] = SPOILS[spoil](7)
        if key == "next_obs/flat" and spoil in ("NaN", "shape"):
            del handle[f"data/demo_1/{key}"]
            handle[f"data/demo_1/{key}"] = np.full((7, 3 if spoil == "NaN" else 2), np.nan)
    columns = load(path).columns
    assert key not in columns
    assert {"obs/flat", "actions", "rewards", "dones", "next_obs/flat"} - {key} == columns.keys()
    assert caplog.text.count("is left out of the batches") == 1
    assert "demo 'demo_1'" in caplog.text
    assert "demo_1" in complaint(path, OFFLINE_RL)
    request = ColumnRequest(
        obs_keys=("flat",), dataset_keys=("rewards",), needs=frozenset({"dones"})
    )
    if key == "dones":
        assert "demo_1" in complaint(path, request)


@pytest.mark.parametrize(
    ("rows", "difference"),
    [
        (np.zeros((4, 6, 3), np.uint8), "have shape [4, 6, 3], but [8, 8, 3]"),
        (np.zeros((8, 8, 3)), "are of another type than uint8, but of uint8"),
    ],
)
def test_next_obs_are_like_obs(path, caplog, rows, difference):
    """Also where all demos agree; without a modality, whose own check would come first."""
    change(path, "obs/camera", lambda n: np.zeros((n, 8, 8, 3), np.uint8))
    change(path, "next_obs/camera", lambda n: np.broadcast_to(rows, (n, *rows.shape)))
    keys = ("flat", "camera")
    message = complaint(path, ColumnRequest(obs_keys=keys, needs=frozenset({"next_obs"})))
    assert f"demo 'demo_0': rows of 'next_obs/camera' {difference} in 'obs/camera'" in message
    assert not any(key.startswith("next_obs") for key in load(path, ColumnRequest(keys)).columns)
    assert "'next_obs/camera'" in caplog.text


def test_what_a_user_asks_for_by_name_may_not_be_spoiled(path):
    change(path, "labels", lambda n: np.full(n, np.nan))
    request = ColumnRequest(obs_keys=("flat",), dataset_keys=("actions", "labels"))
    assert "'labels' holds NaN" in complaint(path, request)


# Files as other tools leave them


def test_a_recording_of_robosuite_has_no_observations(tmp_path):
    other = tmp_path / "demo.hdf5"
    with h5py.File(other, "w") as handle:
        demo = handle.create_group("data/demo_1")
        demo.attrs["model_file"] = "<mujoco/>"
        demo["states"], demo["actions"] = np.zeros((5, 32)), np.zeros((5, 7))
        handle["data"].attrs["env"] = "Lift"
    message = complaint(other)
    assert "holds simulator states but no observations" in message
    assert "raymimic dataset extract-obs" in message


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull fetches it"),
        (b"\n<!DOCTYPE html><html>quota exceeded</html>", "but a web page"),
    ],
)
def test_downloads_that_went_wrong(tmp_path, start, message):
    (tmp_path / "demos.hdf5").write_bytes(start)
    assert message in complaint(tmp_path / "demos.hdf5")


def test_a_filter_that_is_not_installed(path):
    with h5py.File(path, "r+") as handle:
        obs = handle["data/demo_1/obs"]
        del obs["flat"]
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk((7, 3))
        settings.set_filter(32001, h5py.h5z.FLAG_OPTIONAL)  # Blosc, as hdf5plugin registers it
        space = h5py.h5s.create_simple((7, 3))
        new = h5py.h5d.create(obs.id, b"flat", h5py.h5t.IEEE_F64LE, space, dcpl=settings)
        new.write_direct_chunk((0, 0), b"compressed", 0)
    message = complaint(path)
    assert "'obs/flat' is compressed by HDF5 filter 32001" in message
    assert "pip install hdf5plugin, and add --import hdf5plugin" in message
    assert read_metadata(path).problems == ()  # to look at it needs no filter


def test_paths_that_cannot_be_reached(tmp_path):
    for odd in ("~no_such_user_here/demos.hdf5", "a\0b", f"{tmp_path}/{'x' * 300}", "/dev/null"):
        with pytest.raises(DatasetError):
            load(odd)


ODD_ENV_ARGS = [
    (b"\xff", "is not UTF-8"),
    ("[" * 100_000, "is not JSON"),
    ("1" * 5000, "is not JSON"),
    ("[1]", "is not a JSON object"),
    ('"Lift"', "is not a JSON object"),
    (5, "is 5, not a JSON string"),
    (["{}", "{}"], "not a JSON string"),
    ('{"env_name": "Lift", "env_kwargs": [1]}', "'env_kwargs' that are not a JSON object"),
]


@pytest.mark.parametrize(("env_args", "message"), ODD_ENV_ARGS)
def test_env_args_that_mean_nothing(path, env_args, message):
    with h5py.File(path, "r+", libver="latest") as handle:
        handle["data"].attrs["env_args"] = env_args
    with pytest.raises(DatasetError) as caught:
        read_metadata(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("env_args", ["{}", "", "null", '""', h5py.Empty("S1")])
def test_env_args_that_say_nothing(path, env_args):
    with h5py.File(path, "r+") as handle:
        handle["data"].attrs["env_args"] = env_args
    assert read_metadata(path).env_meta == {}


# Messages that lead on


def inspected(path, algo, *assignments):
    config = config_factory(algo)
    config.experiment.rollout.enabled = False
    config.train.data = str(path)
    for assignment in assignments:
        config.set_path(*parse_set(assignment))
    return inspect_data(config, algo_class(algo, config).reads(config))


@pytest.mark.parametrize(
    ("algo", "given", "settings"),
    [
        ("bc", [], ['observation.modalities.obs.low_dim=["eef","flat"]']),
        (
            "bc",
            ['observation.modalities.obs.low_dim=["flta"]'],
            ['observation.modalities.obs.low_dim=["flat"]'],
        ),
        (
            "bc",
            [
                "observation.modalities.obs.low_dim=[]",
                "observation.modalities.obs.rgb=[agentview_image]",
            ],
            ['observation.modalities.obs.rgb=["it\'s"]'],
        ),
        ("hbc", [], None),
    ],
)
def test_the_argument_that_a_missing_observation_prints_works(path, algo, given, settings):
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            demo["obs/eef"] = demo["obs/flat"][:]
            demo["obs/it's"] = np.zeros((len(demo["actions"]), 4, 4, 3), np.uint8)
            demo["obs/text"] = np.array([b"pick"] * len(demo["actions"]))
            for key in ("eef", "it's"):
                demo[f"next_obs/{key}"] = demo[f"obs/{key}"][:]
    with pytest.raises(DatasetError, match="has no observation") as refused:
        inspected(path, algo, *given)
    message = str(refused.value)
    assert "; it has eef [3], flat [3], it's [4, 4, 3]: --set " in message
    words = shlex.split(message.partition("--set ")[2])
    assert settings is None or words == settings
    assert inspected(path, algo, *given, *words).train.demos


def test_a_mask_that_is_not_there_leads_to_the_fraction(tmp_path):
    path = write_demos(tmp_path / "demos.hdf5")
    assert "train.validation_fraction=0.1" in complaint(path, filter_key="valid")
