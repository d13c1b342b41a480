"""`--to lerobot`: a dataset of LeRobot's layout, and the same demos when it is read again."""

import json
import resource
import signal
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pandas
import pyarrow.parquet as parquet
import pytest

from raymimic.data.convert import convert_dataset, export_dataset
from raymimic.data.convert.robomimic import RobomimicReader
from raymimic.data.metadata import read_metadata
from raymimic.data.writer import RecordedEpisode, writing_dataset
from raymimic.errors import DatasetError, OutputError

ENV = {"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 10}}


def demo(seed: int, steps: int, **changes: Any) -> RecordedEpisode:
    rng = np.random.default_rng(seed)
    given: dict[str, Any] = {
        "obs": {
            "eef_pos": rng.normal(size=(steps, 3)),
            "gripper": rng.normal(size=(steps, 1)).astype(np.float32),
            "time": rng.normal(size=steps),
            "robot/joints": rng.normal(size=(steps, 2)).astype(np.float32),
            "grid": rng.normal(size=(steps, 2, 3)).astype(np.float32),
            "agentview_image": rng.integers(0, 256, (steps, 12, 16, 3), np.uint8),
            "rgb": rng.integers(0, 256, (steps, 8, 8, 3), np.uint8),
            "depth": rng.random((steps, 8, 8, 1)).astype(np.float32),
        },
        "actions": rng.uniform(-1, 1, (steps, 2)),
        "rewards": rng.normal(size=steps),
        "dones": np.eye(1, steps, steps - 1, np.int64)[0],
        "states": rng.normal(size=(steps, 9)),
        "others": {"truncated": np.eye(1, steps, steps - 1, np.int64)[0]},
        "attrs": {"lang": f"task {seed % 2}", "model_file": "<mujoco/>", "seed": seed},
        "filter_keys": ("train",) if seed else ("valid", "best"),
    }
    return RecordedEpisode(**(given | changes))


def write(path: Path, *demos: RecordedEpisode) -> Path:
    with writing_dataset(path, ENV) as writer:
        writer.attrs["note"] = "of a test"
        for episode in demos:
            writer.add(episode)
    return path


def test_what_is_written_is_read_again_exactly(tmp_path: Path) -> None:
    source = write(tmp_path / "a.hdf5", *(demo(i, 4 + i) for i in range(3)))
    made = export_dataset(source, tmp_path / "out", "lerobot")
    assert (made.num_demos, made.num_transitions) == (3, 15)
    back = convert_dataset(tmp_path / "out", tmp_path / "b.hdf5")
    assert (back.terminated, back.truncated) == (3, 3)
    old, new = read_metadata(source), read_metadata(back.path)
    assert new.filter_keys == old.filter_keys
    assert new.env_meta == old.env_meta == ENV
    assert new.attrs["note"] == "of a test"
    with RobomimicReader(str(source)) as before, RobomimicReader(str(back.path)) as after:
        for a, b in zip(before.episodes(), after.episodes(), strict=True):
            assert a.arrays().keys() == b.arrays().keys()
            for name, x in a.arrays().items():
                np.testing.assert_array_equal(b.arrays()[name], x, strict=True)
            assert b.attrs == a.attrs


def test_the_layout_is_that_of_lerobot(tmp_path: Path) -> None:
    demos = [demo(i, 4 + i) for i in range(3)]
    made = export_dataset(write(tmp_path / "a.hdf5", *demos), tmp_path / "out", "lerobot")
    for line in (
        "fps: 10, attribute fps or control_freq",
        "obs/agentview_image -> observation.images.agentview, PNG",
        "all observations of one axis -> observation.state, float32 [7]",
        "dones -> next.terminated, int64 []",
    ):
        assert line in made.mapping
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["fps"], info["total_episodes"], info["total_frames"]) == (10, 3, 15)
    features = info["features"]
    assert features["observation.state"] == {"dtype": "float32", "shape": [7], "names": None}
    assert features["observation.images.rgb"]["dtype"] == "image"
    assert features["action"]["shape"] == [2]
    assert features["next.reward"]["shape"] == [1]
    data = parquet.read_table(tmp_path / "out/data/chunk-000/file-000.parquet")
    assert set(data.column_names) == set(features)
    assert data.column("index").to_pylist() == list(range(15))
    state = np.array(data.column("observation.state").to_pylist(), np.float32)
    np.testing.assert_array_equal(state[:4, :3], demos[0].obs["eef_pos"].astype(np.float32))
    assert data.column("next.done").to_pylist() == [i == n - 1 for n in (4, 5, 6) for i in range(n)]
    np.testing.assert_allclose(data.column("timestamp").to_numpy()[:4], [0, 0.1, 0.2, 0.3])
    tasks = pandas.read_parquet(tmp_path / "out/meta/tasks.parquet")
    assert tasks.loc["task 1"].task_index == 1  # as LeRobot looks it up
    assert tasks.index.name == "task"
    episodes = parquet.read_table(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet")
    rows = episodes.to_pylist()
    assert [row["dataset_from_index"] for row in rows] == [0, 4, 9]
    assert [row["tasks"] for row in rows] == [["task 0"], ["task 1"], ["task 0"]]
    assert rows[2]["stats/action/count"] == [6]


def film(steps: int, brightness: int) -> np.ndarray:
    """Frames that differ in brightness, with a slope from left to right."""
    slope = np.arange(16) + brightness + 8 * np.arange(steps)[:, None]
    return np.broadcast_to(slope[:, None, :, None], (steps, 12, 16, 3)).astype(np.uint8)


def test_videos_hold_each_frame_at_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def episode(seed: int, steps: int) -> RecordedEpisode:
        images = {"agentview_image": film(steps, 40 * seed), "rgb": film(steps, 90)}
        return demo(seed, steps, obs={"eef_pos": demo(seed, steps).obs["eef_pos"], **images})

    demos = [episode(0, 4), episode(1, 5), episode(2, 6)]
    source = write(tmp_path / "a.hdf5", *demos)
    made = export_dataset(source, tmp_path / "out", "lerobot-video")
    assert "obs/rgb -> observation.images.rgb, a video, which loses detail" in made.mapping
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    feature = info["features"]["observation.images.agentview"]
    assert (feature["dtype"], feature["shape"]) == ("video", [12, 16, 3])
    assert feature["info"]["video.codec"] == "h264"
    place = {"video_key": "observation.images.agentview", "chunk_index": 0, "file_index": 0}
    with av.open(tmp_path / "out" / info["video_path"].format(**place)) as video:
        frames = list(video.decode(video=0))
    # LeRobot takes a frame that is at most 1e-4 s from its time.
    np.testing.assert_allclose([float(f.time) for f in frames], np.arange(15) / 10, atol=1e-5)
    written = np.concatenate([x.obs["agentview_image"] for x in demos]).astype(int)
    decoded = np.stack([f.to_ndarray(format="rgb24") for f in frames]).astype(int)
    assert np.abs(decoded - written).max() <= 6  # frames in a row differ by 8
    rows = parquet.read_table(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    spans = [
        [row[f"videos/observation.images.rgb/{end}_timestamp"] for end in ("from", "to")]
        for row in rows
    ]
    np.testing.assert_allclose(spans, [[0.0, 0.4], [0.4, 0.9], [0.9, 1.5]])
    data = parquet.read_table(tmp_path / "out/data/chunk-000/file-000.parquet")
    assert not any("images" in name for name in data.column_names)

    monkeypatch.setattr("raymimic.data.convert.lerobot_writer._VIDEO_BYTES", 100)
    export_dataset(source, tmp_path / "several", "lerobot-video")
    assert len(list(tmp_path.glob("several/videos/observation.images.rgb/*/*.mp4"))) == 3
    for folder in ("out", "several"):
        convert_dataset(tmp_path / folder, tmp_path / "b.hdf5")
        with RobomimicReader(str(tmp_path / "b.hdf5")) as after:
            for old, new in zip(demos, after.episodes(), strict=True):
                np.testing.assert_array_equal(new.actions, old.actions, strict=True)
                assert new.obs.keys() == old.obs.keys()
                for key in ("agentview_image", "rgb"):
                    difference = new.obs[key].astype(int) - old.obs[key].astype(int)
                    assert np.abs(difference).max() <= 6


def test_images_that_no_video_can_hold_are_refused(tmp_path: Path) -> None:
    odd = demo(0, 4, obs={"rgb": np.zeros((4, 9, 8, 3), np.uint8)})
    source = write(tmp_path / "a.hdf5", odd)
    with pytest.raises(DatasetError, match=r"9 x 8 are no video .* --to lerobot"):
        export_dataset(source, tmp_path / "out", "lerobot-video")
    assert [path.name for path in tmp_path.iterdir()] == ["a.hdf5"]


def test_statistics_are_those_of_all_rows(tmp_path: Path) -> None:
    demos = [demo(i, 4 + i) for i in range(3)]
    export_dataset(write(tmp_path / "a.hdf5", *demos), tmp_path / "out", "lerobot")
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
    actions = np.concatenate([episode.actions for episode in demos])
    images = np.concatenate([episode.obs["rgb"] for episode in demos]) / 255
    for name, reduce in (("min", np.min), ("max", np.max), ("mean", np.mean), ("std", np.std)):
        np.testing.assert_allclose(stats["action"][name], reduce(actions, axis=0))
        found = np.array(stats["observation.images.rgb"][name])
        assert found.shape == (3, 1, 1)
        np.testing.assert_allclose(found.ravel(), reduce(images, axis=(0, 1, 2)))
    low = [np.quantile(episode.actions, 0.1, axis=0) for episode in demos]
    np.testing.assert_allclose(stats["action"]["q10"], np.min(low, axis=0))
    assert stats["action"]["count"] == [15]
    assert np.shape(stats["next.reward"]["mean"]) == (1,)
    first = parquet.read_table(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet")
    median = first.column("stats/observation.images.rgb/q50")[0].as_py()
    expected = np.quantile(demos[0].obs["rgb"], 0.5, axis=(0, 1, 2), method="inverted_cdf")
    np.testing.assert_allclose(np.ravel(median), expected / 255)


def test_a_dataset_of_many_files_is_read_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raymimic.data.convert.lerobot_writer._FILE_BYTES", 20_000)
    monkeypatch.setattr("raymimic.data.convert.lerobot_writer._FILES_IN_CHUNK", 2)
    source = write(tmp_path / "a.hdf5", *(demo(i, 4) for i in range(5)))
    export_dataset(source, tmp_path / "out", "lerobot")
    files = sorted(p.relative_to(tmp_path / "out/data") for p in tmp_path.glob("out/data/*/*"))
    assert len(files) > 2
    assert files[-1].parent.name != "chunk-000"
    convert_dataset(tmp_path / "out", tmp_path / "b.hdf5")
    with h5py.File(source) as a, h5py.File(tmp_path / "b.hdf5") as b:
        for name in a["data"]:
            np.testing.assert_array_equal(a["data"][name]["actions"], b["data"][name]["actions"])


def test_demos_without_rewards_and_ends_stay_without(tmp_path: Path) -> None:
    plain = demo(0, 4, rewards=None, dones=None, states=None, others={}, attrs={})
    source = write(tmp_path / "a.hdf5", plain)
    export_dataset(source, tmp_path / "out", "lerobot")
    convert_dataset(tmp_path / "out", tmp_path / "b.hdf5")
    with h5py.File(tmp_path / "b.hdf5") as file:
        assert set(file["data/demo_0"]) == {"obs", "actions"}
        assert "lang" not in file["data/demo_0"].attrs


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (demo(1, 4, rewards=None), "demo 1 differs from those before it in 'next.reward'"),
        (demo(1, 4, actions=np.ones((4, 3))), r"episode 1 .* rows of 'actions' have shape \[3\]"),
        (demo(1, 4, others={"a/b": np.ones(4), "a.b": np.ones(4)}), "would both be 'a.b'"),
    ],
)
def test_demos_that_do_not_agree_leave_nothing(
    tmp_path: Path, other: RecordedEpisode, message: str
) -> None:
    source = write(tmp_path / "a.hdf5", demo(0, 4), other)
    with pytest.raises(DatasetError, match=message):
        export_dataset(source, tmp_path / "out", "lerobot")
    assert [path.name for path in tmp_path.iterdir()] == ["a.hdf5"]


def test_only_what_a_file_can_hold_is_taken_from_a_strangers_notes(tmp_path: Path) -> None:
    export_dataset(write(tmp_path / "a.hdf5", demo(0, 4)), tmp_path / "out", "lerobot")
    path = tmp_path / "out/meta/raymimic.json"
    content = json.loads(path.read_text())
    content["attrs"] = {
        "total": 99,
        "a": {"b": 1},
        "c": None,
        "d": 2**70,
        "e": [1.5, 2],
        "f": ["x"],
    }
    content["demos"] = [{"attrs": {"num_samples": -1, "g": [[1]]}, "filter_keys": ["..", 3, "ok"]}]
    path.write_text(json.dumps(content))
    convert_dataset(tmp_path / "out", tmp_path / "b.hdf5")
    meta = read_metadata(tmp_path / "b.hdf5")
    assert not meta.problems
    assert meta.filter_keys == {"ok": ["demo_0"]}
    with h5py.File(tmp_path / "b.hdf5") as file:
        attrs = file["data"].attrs
        assert set(attrs) == {"total", "env_args", "source", "fps", "e", "f"}
        assert attrs["total"] == 4
        assert dict(file["data/demo_0"].attrs) == {"num_samples": 4}
    content["names"]["action"] = "../actions"
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="a name that no array can have"):
        convert_dataset(tmp_path / "out", tmp_path / "b.hdf5")


@pytest.mark.parametrize(
    ("kind", "size"), [("lerobot", 3_000), ("lerobot", 60_000), ("lerobot-video", 20_000)]
)
def test_a_full_disk_is_told_and_leaves_nothing(kind: str, size: int, tmp_path: Path) -> None:
    """`RLIMIT_FSIZE` ends a file as a full disk does."""
    source = write(tmp_path / "a.hdf5", *(demo(i, 100) for i in range(3)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        with pytest.raises(OutputError, match="File too large; make room"):
            export_dataset(source, tmp_path / "out", kind)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["a.hdf5"]
