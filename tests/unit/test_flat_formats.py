"""OGBench's files, folders of .npz files, and diffusion_policy's Zarr buffers become demos."""

import io
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import imagecodecs.numcodecs
import numcodecs
import numpy as np
import pytest
import zarr

from raymimic.data.convert import convert_dataset, recognised_format
from raymimic.data.metadata import read_metadata
from raymimic.errors import DatasetError

RNG = np.random.default_rng(0)


class Evil:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/raymimic-was-here"),))


# -- OGBench --


def write_ogbench(path: Path, lengths: tuple[int, ...], pixels: bool = False) -> dict[str, Any]:
    """As OGBench's scripts write their data: rows of all trajectories, compressed."""
    total = sum(lengths)
    terminals = np.zeros(total, bool)
    terminals[np.cumsum(lengths) - 1] = True
    obs = RNG.integers(0, 256, (total, 8, 8, 3)) if pixels else RNG.normal(size=(total, 4))
    arrays = {
        "observations": obs.astype(np.uint8 if pixels else np.float32),
        "actions": RNG.uniform(-1, 1, (total, 2)).astype(np.float32),
        "terminals": terminals,
        "qpos": RNG.normal(size=(total, 3)).astype(np.float32),
        "qvel": RNG.normal(size=(total, 3)).astype(np.float32),
    }
    np.savez_compressed(path, **arrays)
    return arrays


@pytest.mark.parametrize("pixels", [False, True])
def test_an_ogbench_file_has_the_steps_of_ogbenchs_own_loader(tmp_path: Path, pixels: bool) -> None:
    loader = pytest.importorskip("ogbench.utils")  # not for Python 3.13
    source = tmp_path / ("visual-cube-single-play-v0.npz" if pixels else "cube-single-play-v0.npz")
    write_ogbench(source, (5, 7), pixels)
    write_ogbench(source.with_name(f"{source.stem}-val.npz"), (4,), pixels)
    made = convert_dataset(source, tmp_path / "made.hdf5")
    assert made.format == "ogbench"
    assert (made.num_demos, made.truncated, made.terminated) == (3, 3, 0)
    meta = read_metadata(made.path)
    assert meta.env_meta["env_name"] == source.stem.replace("-play", "")
    assert meta.filter_keys == {"train": ["demo_0", "demo_1"], "valid": ["demo_2"]}
    parts = [
        loader.load_dataset(str(path), ob_dtype=np.uint8 if pixels else np.float32, add_info=True)
        for path in (source, source.with_name(f"{source.stem}-val.npz"))
    ]
    expected = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    with h5py.File(made.path) as file:
        demos = [file[f"data/demo_{i}"] for i in range(3)]

        def joined(name: str) -> Any:
            return np.concatenate([demo[name][()] for demo in demos])

        for ours, theirs in (
            ("obs/flat", "observations"),
            ("next_obs/flat", "next_observations"),
            ("actions", "actions"),
            ("qpos", "qpos"),
            ("qvel", "qvel"),
            ("truncated", "terminals"),
        ):
            np.testing.assert_array_equal(joined(ours), expected[theirs])
        assert joined("obs/flat").dtype == expected["observations"].dtype
        assert not joined("dones").any()


@pytest.mark.parametrize("compact", [False, True])
def test_what_ogbenchs_loader_returns_is_read_as_well(tmp_path: Path, compact: bool) -> None:
    loader = pytest.importorskip("ogbench.utils")
    raw = tmp_path / "raw.npz"
    write_ogbench(raw, (5, 7))
    loaded = loader.load_dataset(str(raw), compact_dataset=compact)
    np.savez(tmp_path / "loaded.npz", **loaded)
    convert_dataset(raw, tmp_path / "raw.hdf5")
    convert_dataset(tmp_path / "loaded.npz", tmp_path / "loaded.hdf5")
    with h5py.File(tmp_path / "raw.hdf5") as a, h5py.File(tmp_path / "loaded.hdf5") as b:
        assert a["data"].keys() == b["data"].keys()
        for name in ("demo_0", "demo_1"):
            for key in ("obs/flat", "next_obs/flat", "actions", "truncated", "dones"):
                np.testing.assert_array_equal(a["data"][name][key], b["data"][name][key])


def test_rewards_and_masks_of_a_single_task_are_kept(tmp_path: Path) -> None:
    source = tmp_path / "cube-single-play-v0.npz"
    arrays = write_ogbench(source, (4,))
    np.savez(source, **arrays, rewards=np.float32([-1, -1, 0, 0]), masks=np.float32([1, 1, 0, 0]))
    made = convert_dataset(source, tmp_path / "made.hdf5")
    with h5py.File(made.path) as file:
        demo = file["data/demo_0"]
        assert demo["rewards"][()].tolist() == [-1, -1, 0]
        assert demo["dones"][()].tolist() == [0, 0, 1]
        assert demo["truncated"][()].tolist() == [0, 0, 1]


def test_the_validation_file_may_not_be_a_link_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    source = tmp_path / "data" / "cube-single-play-v0.npz"
    write_ogbench(source, (4,))
    write_ogbench(tmp_path / "other.npz", (4,))
    source.with_name("cube-single-play-v0-val.npz").symlink_to(tmp_path / "other.npz")
    with pytest.raises(DatasetError, match="leads out of its folder"):
        convert_dataset(source, tmp_path / "made.hdf5")


# -- a folder of .npz files --


def write_episode(path: Path, steps: int = 4, **changes: Any) -> dict[str, Any]:
    arrays = {
        "actions": RNG.uniform(-1, 1, (steps, 2)),
        "obs/eef_pos": RNG.normal(size=(steps, 3)),
        "obs/front_image": RNG.integers(0, 256, (steps, 8, 8, 3), np.uint8),
        "rewards": np.arange(steps, dtype=np.float32),
    } | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{key: x for key, x in arrays.items() if x is not None})
    return arrays


def test_a_folder_of_episodes_becomes_demos_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "episodes"
    for i in (10, 2):
        write_episode(
            folder / f"episode_{i}.npz",
            steps=i,
            done=np.eye(1, i, i - 1)[0],
            truncated=np.full(i, i == 10) * np.eye(1, i, i - 1)[0],
            instruction=np.array(f"lift {i}"),
            camera_intrinsics=np.eye(3),
            robot=np.array("panda"),
            force=np.ones((i, 6), ">f4"),
        )
    made = convert_dataset(folder, tmp_path / "made.hdf5")
    assert (made.format, made.num_transitions) == ("npz", 12)
    assert (made.terminated, made.truncated) == (1, 1)
    assert "camera_intrinsics -> left out: it has no row for each step" in made.mapping
    assert "obs/front_image -> obs/front_image, uint8 [8, 8, 3]" in made.mapping
    with h5py.File(made.path) as file, np.load(folder / "episode_10.npz") as written:
        assert file["data/demo_0"].attrs["lang"] == "lift 2"
        assert file["data/demo_0/dones"][()].tolist() == [0, 1]
        demo = file["data/demo_1"]
        assert not demo["dones"][()].any()
        assert demo["truncated"][-1] == 1
        assert "next_obs" not in demo
        for key in ("obs/eef_pos", "obs/front_image", "actions", "rewards", "force"):
            np.testing.assert_array_equal(demo[key], written[key])


def test_one_observation_more_than_actions_makes_next_obs(tmp_path: Path) -> None:
    x = RNG.normal(size=(5, 3))
    np.savez(tmp_path / "0.npz", observations=np.asfortranarray(x), action=np.ones((4, 1)))
    convert_dataset(tmp_path, tmp_path / "made.hdf5", "npz")
    with h5py.File(tmp_path / "made.hdf5") as file:
        np.testing.assert_array_equal(file["data/demo_0/obs/flat"], x[:-1])
        np.testing.assert_array_equal(file["data/demo_0/next_obs/flat"], x[1:])


def overlap(path: Path) -> None:
    """Makes a second entry of the first one's bytes."""
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")
    end = content.index(b"PK\x05\x06")
    directory = content[start:end]
    trailer = bytearray(content[end:])
    count = 200
    trailer[8:12] = 2 * int(count * (directory.count(b"PK\x01\x02"))).to_bytes(2, "little")
    trailer[12:16] = (len(directory) * count).to_bytes(4, "little")
    path.write_bytes(content[:start] + directory * count + bytes(trailer))


def outward(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        buffer = io.BytesIO()
        np.save(buffer, np.ones(4))
        archive.writestr("../../evil.npy", buffer.getvalue())


def lying(path: Path) -> None:
    """A header that promises 8 TB."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f8", "fortran_order": False, "shape": (1_000_000, 1_000_000)}
    )
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("obs/huge.npy", buffer.getvalue() + bytes(64))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: write_episode(path, info=np.array([Evil()] * 4)), "holds pickled Python"),
        (lambda path: np.savez(path, obs=np.ones(3)), "has no 'actions', it holds obs"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "it is damaged or truncated"),
        (lambda path: path.write_bytes(b""), "it is damaged or truncated"),
        (lambda path: write_episode(path, rewards=np.ones(3)), "'rewards' is float64 \\[3\\], but"),
        (lambda path: write_episode(path, done=np.array([1, 0, 0, 1])), "holds several episodes"),
        (lambda path: (path.unlink(), path.symlink_to("/etc/passwd")), "leads out of its folder"),
        (lambda path: path.with_name("x.hdf5").touch(), "files of two formats"),
        (overlap, "members overlap"),
        (outward, "leads out of the file"),
        (lying, "another size than its header says"),
        (
            lambda path: write_episode(path, action=np.ones((4, 2))),
            "holds 'action' and 'actions', and both would be 'actions'",
        ),
        (
            lambda path: write_episode(path.with_name("episode_1.npz"), actions=np.ones((4, 9))),
            r"episode 1 \(counted from 0\): rows of 'actions' have shape \[9\]",
        ),
        (
            lambda path: np.savez(path, obs=np.ones((0, 3)), actions=np.ones((0, 2))),
            r"'.*episodes': episode 0 \(counted from 0\) has no steps",
        ),
    ],
)
def test_an_episode_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    path = tmp_path / "episodes" / "episode_0.npz"
    write_episode(path)
    spoil(path)
    with pytest.raises(DatasetError, match=message):
        convert_dataset(path.parent, tmp_path / "made.hdf5", "npz")
    assert [p.name for p in tmp_path.iterdir()] == ["episodes"]
    assert not Path("/tmp/raymimic-was-here").exists()


# -- Zarr --


def write_zarr(
    path: Path,
    ends: tuple[int, ...] = (4, 10),
    version: int = 2,
    image_codec: Any = None,
    **changes: Any,
) -> dict[str, Any]:
    """As diffusion_policy's `ReplayBuffer.save_to_store`, by zarr itself."""
    total = ends[-1]
    arrays: dict[str, Any] = {
        "action": RNG.uniform(-1, 1, (total, 2)).astype(np.float32),
        "state": RNG.normal(size=(total, 5)).astype(np.float32),
        "img": RNG.integers(0, 256, (total, 16, 16, 3)).astype(np.float32),
        "camera0_rgb": RNG.integers(0, 256, (total, 16, 16, 3), np.uint8),
        "keypoint": RNG.normal(size=(total, 9, 2)),
    } | changes
    store: Any
    if path.suffix == ".zip":
        store = zarr.storage.ZipStore(path, mode="w")
    else:
        store = zarr.storage.LocalStore(path)
    root = zarr.open_group(store, mode="w", zarr_format=version)
    data, meta = root.require_group("data"), root.require_group("meta")
    options: Any = {"compressors": numcodecs.Blosc("zstd", 5, numcodecs.Blosc.BITSHUFFLE)}
    for key, x in arrays.items():
        image = key == "camera0_rgb"
        codecs = {"compressors": image_codec} if image and image_codec is not None else options
        data.create_array(
            key,
            data=x,
            chunks=((1 if image else 3), *x.shape[1:]),
            **(codecs if version == 2 else {}),
        )
    meta.create_array("episode_ends", data=np.array(ends))
    store.close()
    return arrays


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("name", ["pusht.zarr", "pusht.zarr.zip"])
def test_a_replay_buffer_that_zarr_wrote_becomes_demos(
    tmp_path: Path, name: str, version: int
) -> None:
    arrays = write_zarr(tmp_path / name, version=version)
    made = convert_dataset(tmp_path / name, tmp_path / "made.hdf5")
    assert (made.format, made.num_demos, made.num_transitions) == ("zarr", 2, 10)
    assert "data/action -> actions, [2]" in made.mapping
    with h5py.File(made.path) as file:
        source = json.loads(file["data"].attrs["source"])
        assert source["version"] == f"zarr {version}"
        for demo, rows in (("demo_0", slice(0, 4)), ("demo_1", slice(4, 10))):
            for ours, theirs in (
                ("actions", "action"),
                ("obs/state", "state"),
                ("obs/img", "img"),
                ("obs/camera0_rgb", "camera0_rgb"),
                ("obs/keypoint", "keypoint"),
            ):
                np.testing.assert_array_equal(file["data"][demo][ours], arrays[theirs][rows])
            assert file["data"][demo]["obs/img"].dtype == np.uint8
            assert "dones" not in file["data"][demo]


def test_images_of_jpeg_2000_are_those_that_the_codec_gives(tmp_path: Path) -> None:
    imagecodecs.numcodecs.register_codecs()
    path = tmp_path / "umi.zarr.zip"
    arrays = write_zarr(path, image_codec=imagecodecs.numcodecs.Jpeg2k(level=50))
    codec = imagecodecs.numcodecs.Jpeg2k(level=50)
    convert_dataset(path, tmp_path / "made.hdf5")
    with h5py.File(tmp_path / "made.hdf5") as file:
        for i in range(4):
            expected = codec.decode(codec.encode(arrays["camera0_rgb"][i : i + 1]))
            np.testing.assert_array_equal(file["data/demo_0/obs/camera0_rgb"][i], expected)


def test_fractions_become_bytes_and_other_numbers_stay(tmp_path: Path) -> None:
    fractions = RNG.integers(0, 256, (10, 16, 16, 3)).astype(np.float32)
    fractions[4:] = 0  # a black episode
    clouds = RNG.normal(size=(10, 2, 64, 3))
    write_zarr(tmp_path / "a.zarr", img=fractions / 255, clouds=clouds, map=fractions - 300.5)
    made = convert_dataset(tmp_path / "a.zarr", tmp_path / "a.hdf5")
    assert "obs/img is stored as bytes: 255 x, rounded" in made.mapping
    with h5py.File(tmp_path / "a.hdf5") as file:
        for name, rows in (("demo_0", slice(0, 4)), ("demo_1", slice(4, 10))):
            obs = file[f"data/{name}/obs"]
            np.testing.assert_array_equal(obs["img"], fractions[rows].astype(np.uint8), strict=True)
            np.testing.assert_array_equal(obs["clouds"], clouds[rows])
            np.testing.assert_array_equal(obs["map"], fractions[rows] - 300.5)


def test_images_that_change_their_range_are_refused(tmp_path: Path) -> None:
    images = RNG.random((10, 16, 16, 3)).astype(np.float32)
    for i, rest in enumerate((images[4:] * 255, np.rint(images[4:] * 255), images[4:] - 1)):
        source = tmp_path / f"{i}.zarr"
        write_zarr(source, img=np.concatenate([images[:4], rest]))
        with pytest.raises(DatasetError, match="'obs/img' holds images of numbers from"):
            convert_dataset(source, tmp_path / "a.hdf5")


def edited(path: str, **changes: Any) -> Callable[[Path], None]:
    def edit(store: Path) -> None:
        content = json.loads((store / path).read_text())
        (store / path).write_text(json.dumps(content | changes))

    return edit


def consolidated(store: Path) -> None:
    """A second copy of the metadata, which says something else."""
    kept = {
        name: json.loads((store / name).read_text())
        for name in (".zgroup", "data/.zgroup", "meta/.zgroup", "data/action/.zarray")
    }
    kept["data/action/.zarray"] |= {"dtype": "|O", "filters": [{"id": "pickle"}]}
    (store / ".zmetadata").write_text(json.dumps({"zarr_consolidated_format": 1, "metadata": kept}))


def linked(store: Path) -> None:
    chunk = store / "data/action/0.0"
    (store.parent / "outside").write_bytes(chunk.read_bytes())
    chunk.unlink()
    chunk.symlink_to(store.parent / "outside")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (edited("data/action/.zarray", dtype="|O"), "not numbers; objects could run any code"),
        (edited("data/action/.zarray", filters=[{"id": "pickle"}]), "codec 'pickle'"),
        (edited("data/action/.zarray", filters=[{"id": "vlen-utf8"}]), "codec 'vlen-utf8'"),
        (edited("data/action/.zarray", compressor={"id": "pickle"}), "codec 'pickle'"),
        (edited("meta/episode_ends/.zarray", dtype="|O"), "objects could run any code"),
        (edited("data/action/.zarray", dtype=[["a", "<f4"]]), "not numbers"),
        (edited("data/action/.zarray", shape=[7, 2]), "has 7 rows, but meta/episode_ends ends"),
        (lambda store: (store / "data/action/.zarray").write_text("{"), "damaged or truncated"),
        (lambda store: (store / "data/action/0.0").write_bytes(b"xx"), "damaged or truncated"),
        (lambda store: (store / "data/action").rename(store / "data/act"), "no 'data/action'"),
        (
            lambda store: shutil.copytree(store / "data/action", store / "data/actions"),
            "holds 'action' and 'actions', and both would be 'actions'",
        ),
        (linked, "leads out of its folder"),
        (lambda store: (store / "data/more").symlink_to("/etc"), "is a link to a folder"),
    ],
)
def test_a_store_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    write_zarr(tmp_path / "x.zarr")
    spoil(tmp_path / "x.zarr")
    with pytest.raises(DatasetError, match=message):
        convert_dataset(tmp_path / "x.zarr", tmp_path / "made.hdf5", "zarr")
    assert not (tmp_path / "made.hdf5").exists()


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_a_chunk_that_blosc_stored_is_not_read_beyond_its_end(
    tmp_path: Path, version: int, packed: bool
) -> None:
    store = tmp_path / "x.zarr"
    options: dict[str, Any] = {"compressors": numcodecs.Blosc()}
    if version == 3:
        options = {"compressors": zarr.codecs.BloscCodec()}
    root = zarr.open_group(store, mode="w", zarr_format=version)
    actions = RNG.normal(size=(40, 2))  # random numbers, which Blosc stores as they are
    root.create_array("data/action", data=actions, chunks=(40, 2), **options)
    root.create_array("data/state", data=actions, chunks=(40, 2), **options)
    root.create_array("meta/episode_ends", data=np.array([20, 40]), **options)
    convert_dataset(store, tmp_path / "whole.hdf5")
    with h5py.File(tmp_path / "whole.hdf5") as file:
        np.testing.assert_array_equal(file["data/demo_1/actions"][()], actions[20:])
    chunk = store / ("data/action/0.0" if version == 2 else "data/action/c/0/0")
    chunk.write_bytes(chunk.read_bytes()[:200])
    source = store
    if packed:
        source = Path(shutil.make_archive(str(tmp_path / "y.zarr"), "zip", store))
    with pytest.raises(DatasetError, match=f"{chunk.name}' is damaged or truncated"):
        convert_dataset(source, tmp_path / "made.hdf5")


@pytest.mark.parametrize("location", ["start", "end"])
def test_a_chunk_in_a_shard_is_not_read_beyond_its_end(tmp_path: Path, location: str) -> None:
    store = tmp_path / "x.zarr"
    root = zarr.open_group(store, mode="w", zarr_format=3)
    actions = RNG.normal(size=(40, 2))
    actions[10:20] = 0  # a chunk that is not stored
    shards = {"shape": (40, 2), "index_location": location}
    options: dict[str, Any] = {"compressors": zarr.codecs.BloscCodec(), "chunks": (10, 2)}
    root.create_array("data/action", data=actions, shards=shards, **options)
    root.create_array("data/state", data=actions, **options)
    root.create_array("meta/episode_ends", data=np.array([20, 40]))
    convert_dataset(store, tmp_path / "whole.hdf5")
    with h5py.File(tmp_path / "whole.hdf5") as file:
        np.testing.assert_array_equal(file["data/demo_1/actions"][()], actions[20:])
        np.testing.assert_array_equal(file["data/demo_0/actions"][()], actions[:20])
    shard = store / "data/action/c/0/0"
    content = bytearray(shard.read_bytes())
    first = 4 * 16 + 4 if location == "start" else 0  # the index: places, sizes, checksum
    size = int.from_bytes(content[first + 12 : first + 16], "little")
    content[first + 12 : first + 16] = (size + 4096).to_bytes(4, "little")
    for damaged in (content, shard.read_bytes()[:-60]):
        shard.write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"data/action/c/0/0' .*damaged"):
            convert_dataset(store, tmp_path / "made.hdf5")


def test_only_metadata_that_were_checked_are_used(tmp_path: Path) -> None:
    arrays = write_zarr(tmp_path / "x.zarr")
    consolidated(tmp_path / "x.zarr")
    convert_dataset(tmp_path / "x.zarr", tmp_path / "made.hdf5")
    with h5py.File(tmp_path / "made.hdf5") as file:
        np.testing.assert_array_equal(file["data/demo_0/actions"], arrays["action"][:4])


@pytest.mark.parametrize("version", [2, 3])
def test_chunks_that_are_not_there_are_told(
    tmp_path: Path, version: int, caplog: pytest.LogCaptureFixture
) -> None:
    write_zarr(tmp_path / "x.zarr", version=version)
    convert_dataset(tmp_path / "x.zarr", tmp_path / "whole.hdf5")
    assert "chunks" not in caplog.text
    chunks = {2: "data/camera0_rgb/3.0.0.0", 3: "data/camera0_rgb/c/3/0/0/0"}
    (tmp_path / "x.zarr" / chunks[version]).unlink()
    convert_dataset(tmp_path / "x.zarr", tmp_path / "made.hdf5")
    assert "'data/camera0_rgb': 1 of 10 chunks are not there" in caplog.text
    for chunk in (tmp_path / "x.zarr/data/camera0_rgb").rglob("*"):
        if chunk.is_file() and chunk.name not in (".zarray", ".zattrs", "zarr.json"):
            chunk.unlink()
    with pytest.raises(DatasetError, match="'data/camera0_rgb': none of its 10 chunks is there"):
        convert_dataset(tmp_path / "x.zarr", tmp_path / "made.hdf5")


def test_a_reward_that_is_never_given_needs_no_chunk(tmp_path: Path) -> None:
    write_zarr(tmp_path / "x.zarr", version=3, reward=np.zeros(10))
    convert_dataset(tmp_path / "x.zarr", tmp_path / "made.hdf5")
    with h5py.File(tmp_path / "made.hdf5") as file:
        np.testing.assert_array_equal(file["data/demo_0/rewards"], np.zeros(4))


@pytest.mark.parametrize("package", ["zarr", "imagecodecs"])
def test_a_store_without_its_packages_names_the_extra(
    tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    imagecodecs.numcodecs.register_codecs()
    path = tmp_path / "umi.zarr.zip"
    write_zarr(path, image_codec=imagecodecs.numcodecs.Jpeg2k(level=50))
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "imagecodecs.numcodecs")
    with pytest.raises(DatasetError, match=r"pip install .*\[zarr\]"):
        convert_dataset(path, tmp_path / "made.hdf5")


def test_a_zip_of_another_kind_or_cut_short_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr.zip"
    write_zarr(path)
    path.write_bytes(path.read_bytes()[:-500])
    assert recognised_format(path) is None
    with pytest.raises(DatasetError, match="damaged or truncated"):
        convert_dataset(path, tmp_path / "made.hdf5", "zarr")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(DatasetError, match="no array 'meta/episode_ends'"):
        convert_dataset(path, tmp_path / "made.hdf5", "zarr")


def test_pipes_and_archives_of_another_version_are_of_no_format(tmp_path: Path) -> None:
    folder = tmp_path / "episodes"
    folder.mkdir()
    os.mkfifo(folder / "0.npz")  # whoever opens it waits for ever
    assert recognised_format(folder) is None
    archive = tmp_path / "a.npz"
    np.savez(archive, actions=np.zeros((3, 1)))
    content = bytearray(archive.read_bytes())
    content[content.find(b"PK\1\2") + 6] = 90  # the version that is needed: 9.0
    for name in ("a.npz", "a.zarr.zip", "episodes/0.npz"):
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).write_bytes(content)
        assert recognised_format(tmp_path / name) is None
    assert recognised_format(folder) is None
