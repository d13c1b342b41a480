"""LeRobot's datasets of both layouts become demos."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import imageio
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from lerobot_files import (
    FPS,
    LENGTHS,
    TASK_OF,
    TASKS,
    frame,
    move_index_first,
    numbers,
    write_2,
    write_3,
    write_video,
)
from tiny import Ran, train_args

from raymimic.data.convert import convert_dataset, export_dataset, recognised_format
from raymimic.data.convert.robomimic import RobomimicReader
from raymimic.data.convert.video import VideoFrames
from raymimic.data.metadata import read_metadata
from raymimic.errors import DatasetError

TOP = "observation.images.top"


@pytest.mark.parametrize("write", [write_3, write_2])
def test_a_dataset_of_lerobot_becomes_demos(write: Callable[[Path], Path], tmp_path: Path) -> None:
    made = convert_dataset(write(tmp_path / "source"), tmp_path / "made.hdf5")
    assert (made.format, made.num_demos, made.terminated, made.truncated) == ("lerobot", 3, 3, 0)
    for line in (
        "observation.state -> obs/state, float32 [6]",
        'action -> actions, float32 [3] ["x", "y", "gripper"]',
        f"{TOP} -> obs/top_image, uint8 [32, 32, 3], of a video",
        "observation.images.wrist -> obs/wrist_image, uint8 [32, 32, 3], of PNG",
        "note -> left out, as it is of type string",
        "task 'lift the cube' -> attribute lang, filter key task_0 (train.data[].lang)",
        "fps 10 -> attribute fps",
    ):
        assert line in made.mapping
    meta = read_metadata(made.path)
    assert not meta.problems
    assert meta.filter_keys == {
        "train": ["demo_0", "demo_1"],
        "valid": ["demo_2"],
        "task_0": ["demo_0", "demo_2"],
        "task_1": ["demo_1"],
    }
    source = numbers()
    starts = np.cumsum([0, *LENGTHS])
    with h5py.File(made.path) as file:
        assert file["data"].attrs["fps"] == FPS
        assert file["data"].attrs["robot_type"] == "so100"
        for i in range(3):
            demo, rows = file[f"data/demo_{i}"], slice(starts[i], starts[i + 1])
            assert demo.attrs["lang"] == TASKS[TASK_OF[i]]
            assert demo.attrs["success"] == (i > 0)
            for ours, theirs in (
                ("obs/state", "observation.state"),
                ("obs/effort", "observation.effort"),
                ("obs/grid", "observation.grid"),
                ("actions", "action"),
                ("rewards", "next.reward"),
                ("dones", "next.done"),
                ("success", "next.success"),
                ("timestamp", "timestamp"),
            ):
                np.testing.assert_array_equal(demo[ours], source[theirs][rows])
            assert demo["obs/state"].dtype == np.float32
            expected = np.stack([frame(n) for n in range(*rows.indices(100))])
            np.testing.assert_array_equal(demo["obs/wrist_image"], expected)
            # Neighbouring frames differ by 10, and the codec errs by less.
            decoded = demo["obs/top_image"][()].astype(int)
            assert np.abs(decoded - expected).max() <= 4
            assert "task_index" not in demo


def test_version_2_becomes_version_3_without_loss(tmp_path: Path) -> None:
    root = write_2(tmp_path / "old")
    export_dataset(root, tmp_path / "new", "lerobot")
    assert json.loads((tmp_path / "new/meta/info.json").read_text())["codebase_version"] == "v3.0"
    convert_dataset(root, tmp_path / "old.hdf5")
    convert_dataset(tmp_path / "new", tmp_path / "new.hdf5")
    assert (
        read_metadata(tmp_path / "old.hdf5").filter_keys
        == read_metadata(tmp_path / "new.hdf5").filter_keys
    )
    old, new = (RobomimicReader(str(tmp_path / f"{name}.hdf5")) for name in ("old", "new"))
    for a, b in zip(old.episodes(), new.episodes(), strict=True):
        assert a.arrays().keys() == b.arrays().keys()
        for name, x in a.arrays().items():
            np.testing.assert_array_equal(b.arrays()[name], x, strict=True)
        assert a.attrs == b.attrs


def test_frames_are_those_that_ffmpeg_decodes(tmp_path: Path) -> None:
    write_3(tmp_path)
    path = tmp_path / f"videos/{TOP}/chunk-000/file-000.mp4"
    reference = np.stack(list(imageio.get_reader(path, "ffmpeg").iter_data()))
    video = VideoFrames(path, (32, 32), FPS)
    frames = video.take(np.arange(14) / FPS)
    video.close()
    assert np.abs(frames.astype(int) - reference).max() <= 2


def test_an_end_by_a_time_limit_is_no_done(tmp_path: Path) -> None:
    write_2(tmp_path / "source")
    path = tmp_path / "source/data/chunk-000/episode_000001.parquet"
    table = parquet.read_table(path)
    flags = pa.array([False] * 8 + [True])
    parquet.write_table(table.append_column("next.truncated", flags), path)
    for i in (0, 2):
        other = path.with_name(f"episode_{i:06d}.parquet")
        table = parquet.read_table(other)
        none = pa.array([False] * len(table))
        parquet.write_table(table.append_column("next.truncated", none), other)
    info = tmp_path / "source/meta/info.json"
    content = json.loads(info.read_text())
    content["features"]["next.truncated"] = {"dtype": "bool", "shape": [1], "names": None}
    info.write_text(json.dumps(content))
    made = convert_dataset(tmp_path / "source", tmp_path / "made.hdf5")
    assert (made.terminated, made.truncated) == (2, 1)
    with h5py.File(made.path) as file:
        assert not file["data/demo_1/dones"][()].any()
        assert file["data/demo_1/truncated"][()].tolist() == [0] * 8 + [1]


def test_a_snapshot_in_hugging_faces_cache_is_read_through_its_links(tmp_path: Path) -> None:
    plain = write_3(tmp_path / "plain")
    snapshot, blobs = tmp_path / "hub/snapshots/abc", tmp_path / "hub/blobs"
    blobs.mkdir(parents=True)
    for i, path in enumerate(p for p in plain.rglob("*") if p.is_file()):
        path.rename(blobs / str(i))
        link = snapshot / path.relative_to(plain)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(i), link.parent))
    assert convert_dataset(snapshot, tmp_path / "made.hdf5").num_transitions == sum(LENGTHS)


# -- what goes wrong --


def info(**changes: Any) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        path = root / "meta/info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def without(key: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        path = root / "meta/info.json"
        content = json.loads(path.read_text())
        del content["features"][key]
        path.write_text(json.dumps(content))

    return edit


def rows(path: str, edit: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        parquet.write_table(edit(parquet.read_table(root / path)), root / path)

    return apply


def cut(path: str, share: float) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        content = (root / path).read_bytes()
        (root / path).write_bytes(content[: int(share * len(content))])

    return apply


def replaced(path: str, content: bytes) -> Callable[[Path], None]:
    return lambda root: (root / path).write_bytes(content) and None


def outward(path: str) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        (root / path).rename(root.parent / "outside")
        (root / path).symlink_to(root.parent / "outside")

    return apply


def cut_after_the_index(root: Path) -> None:
    move_index_first(root / VIDEO)
    cut(VIDEO, 0.8)(root)


def flipped(root: Path) -> None:
    """Bits of the pictures, which no checksum of the file notices."""
    content = bytearray((root / VIDEO).read_bytes())
    start = content.index(b"mdat") + 1000
    content[start : start + 400] = bytes(400)
    (root / VIDEO).write_bytes(content)


def lossy_frames(root: Path) -> None:
    """The video of the first file lacks its last frames."""
    write_video(root / VIDEO, list(range(11)))


DATA = "data/chunk-000/file-000.parquet"
VIDEO = f"videos/{TOP}/chunk-000/file-000.mp4"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PLAYLIST = b"#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1.0,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut(VIDEO, 0.7), "file-000.mp4'.* it is damaged or truncated"),
        (cut_after_the_index, "file-000.mp4' ends after|file-000.mp4', after .* damaged"),
        (flipped, "file-000.mp4.* damaged"),
        (lossy_frames, "ends after 11 frames, and one at 1.100 s is missing"),
        (replaced(VIDEO, PLAYLIST), "file-000.mp4' cannot be read"),
        (replaced(VIDEO, b""), "file-000.mp4' cannot be read"),
        (replaced(VIDEO, LFS), "git lfs pull fetches it"),
        (replaced(DATA, LFS), "git lfs pull fetches it"),
        (lambda root: (root / VIDEO).unlink(), "lacks the file 'videos/"),
        (cut(DATA, 0.9), "file-000.parquet.* damaged or truncated"),
        (rows(DATA, lambda t: t.slice(0, 12)), "episode 1 has 7 frames in its place, but the .* 9"),
        (rows(DATA, lambda t: t.drop_columns("action")), "lacks the columns action"),
        (rows(EPISODES, lambda t: t.slice(0, 2)), "there are 3 episodes, but the metadata list 2"),
        (without("action"), "lists no feature 'action'"),
        (info(codebase_version="v1.6"), "LeRobot's version 'v1.6'"),
        (info(fps=0), "fps is 0"),
        (info(data_path="../../../etc/passwd"), "leads out of its folder"),
        (info(data_path="/etc/passwd"), "leads out of its folder"),
        (info(data_path="{chunk_index.__class__}"), "a path is"),
        (info(data_path="{chunk_index:0999999999d}"), "a path is"),
        (info(video_path="../{video_key}"), "leads out of its folder"),
        (outward(DATA), "leads out of its folder"),
        (outward(VIDEO), "leads out of its folder"),
        (outward("meta/info.json"), "leads out of its folder"),
        (replaced("meta/info.json", b'{"codebase_version"'), "damaged or truncated"),
        (replaced("meta/info.json", b"[" * 100_000), "damaged or truncated"),
    ],
)
def test_a_dataset_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    root = write_3(tmp_path / "source", "libx264")
    spoil(root)
    with pytest.raises(DatasetError, match=message):
        convert_dataset(root, tmp_path / "made.hdf5", "lerobot")
    assert not (tmp_path / "made.hdf5").exists()


def test_rows_of_another_length_and_missing_values_are_refused(tmp_path: Path) -> None:
    root = write_3(tmp_path / "source", "libx264")
    table = parquet.read_table(root / DATA)
    actions = table.column("action").to_pylist()
    for spoiled in (
        [actions[0] + actions[1], [], *actions[2:]],  # as many numbers in all
        [None, *actions[1:]],
        [[None] * 3, *actions[1:]],
    ):
        column = pa.array(spoiled, pa.list_(pa.float32()))
        index = table.schema.get_field_index("action")
        parquet.write_table(table.set_column(index, "action", column), root / DATA)
        with pytest.raises(DatasetError, match=r"episode 0: 'action' (lacks|has rows of)"):
            convert_dataset(root, tmp_path / "made.hdf5")


def test_an_image_of_another_size_is_not_decoded(tmp_path: Path) -> None:
    root = write_3(tmp_path / "source", "libx264")
    path = root / "meta/info.json"
    path.write_text(path.read_text().replace("32", "64"))
    with pytest.raises(DatasetError, match=r"an image is 32 x 32|frames of 32 x 32"):
        convert_dataset(root, tmp_path / "made.hdf5")


@pytest.mark.parametrize("shape", [[-1, 32, 3], [32, 32], [10**6, 10**6, 3]])
def test_shapes_that_no_image_has_are_refused(tmp_path: Path, shape: list[int]) -> None:
    root = write_3(tmp_path / "source", "libx264")
    path = root / "meta/info.json"
    content = json.loads(path.read_text())
    content["features"][TOP]["shape"] = shape
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"has shape|have shape|bytes of images do not fit"):
        convert_dataset(root, tmp_path / "made.hdf5")


def test_the_command_says_what_it_mapped_and_what_is_wrong(cli: Any, tmp_path: Path) -> None:
    root = write_3(tmp_path / "source", "libx264")
    ran: Ran = cli("dataset", "convert", str(root), str(tmp_path / "made.hdf5"))
    assert ran.status == 0, ran.err
    assert "observation.state -> obs/state, float32 [6]" in ran.out
    cut(VIDEO, 0.7)(root)
    ran = cli("dataset", "convert", str(root), str(tmp_path / "other.hdf5"))
    assert ran.status == 2
    assert "Traceback" not in ran.err
    assert "file-000.mp4" in ran.err
    assert not (tmp_path / "other.hdf5").exists()


def test_a_training_takes_the_dataset_as_it_is(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYMIMIC_CACHE", str(tmp_path / "cache"))
    root = write_3(tmp_path / "source", "libx264")
    keys = 'observation.modalities.obs.low_dim=["state"]'
    ran: Ran = cli(*train_args(root, keys))
    assert ran.status == 0, ran.err


def test_a_video_without_its_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_3(tmp_path / "source", "libx264")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DatasetError, match=r"pip install .*\[lerobot\]"):
        convert_dataset(root, tmp_path / "made.hdf5")


def test_a_folder_of_two_formats_is_one_sentence(tmp_path: Path) -> None:
    root = write_2(tmp_path / "source")
    np.savez(root / "episode_0.npz", actions=np.ones((3, 1)), obs=np.ones((3, 2)))
    with pytest.raises(DatasetError, match="looks like 'lerobot' and 'npz' at once"):
        recognised_format(root)
