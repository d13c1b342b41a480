"""Datasets in LeRobot's published layouts; LeRobot cannot be installed beside raymimic."""

import io
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from PIL import Image

FPS = 10
SIDE = 32
LENGTHS = (5, 9, 4)
TASKS = ("lift the cube", "open the drawer")
TASK_OF = (0, 1, 0)


def frame(number: int) -> np.ndarray:
    """A picture whose colour tells its number in the dataset."""
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    picture[:] = (10 * number + 20, 200 - 8 * number, 128)
    return picture


def write_video(path: Path, numbers: list[int], codec: str = "libx264", **options: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, FPS, options={"g": "2", "crf": "10", **options})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for number in numbers:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame(number), format="rgb24")))
        container.mux(stream.encode())


def move_index_first(path: Path) -> None:
    """Writes a video again so that a part of it can be played, as servers like them."""
    with (
        av.open(path) as old,
        av.open(path.with_suffix(".new.mp4"), "w", options={"movflags": "faststart"}) as new,
    ):
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    path.with_suffix(".new.mp4").replace(path)


def numbers(seed: int = 0) -> dict[str, np.ndarray]:
    """All columns of all episodes."""
    rng, total = np.random.default_rng(seed), sum(LENGTHS)
    ends = np.isin(np.arange(total), np.cumsum(LENGTHS) - 1)
    return {
        "observation.state": rng.normal(size=(total, 6)).astype(np.float32),
        "observation.effort": rng.normal(size=(total, 1)).astype(np.float32),
        "observation.grid": rng.normal(size=(total, 2, 3)).astype(np.float32),
        "action": rng.uniform(-1, 1, (total, 3)).astype(np.float32),
        "next.reward": rng.normal(size=total).astype(np.float32),
        "next.done": ends,
        "next.success": ends & (np.arange(total) > LENGTHS[0]),
        "timestamp": np.concatenate([np.arange(n) / FPS for n in LENGTHS]).astype(np.float32),
        "frame_index": np.concatenate([np.arange(n) for n in LENGTHS]),
        "episode_index": np.repeat(np.arange(len(LENGTHS)), LENGTHS),
        "index": np.arange(total),
        "task_index": np.repeat(TASK_OF, LENGTHS),
    }


def _info(version: str, data_path: str, video_path: str, **more: Any) -> dict[str, Any]:
    features: dict[str, Any] = {}
    for key, x in numbers().items():
        shape = list(x.shape[1:]) or [1]
        features[key] = {"dtype": x.dtype.name, "shape": shape, "names": None}
    features["action"]["names"] = ["x", "y", "gripper"]
    axes = ["height", "width", "channels"]
    features["observation.images.top"] = {
        "dtype": "video",
        "shape": [SIDE, SIDE, 3],
        "names": axes,
        "info": {"video.fps": FPS, "video.codec": "av1", "has_audio": False},
    }
    features["observation.images.wrist"] = {
        "dtype": "image",
        "shape": [3, SIDE, SIDE],
        "names": [axes[2], *axes[:2]],
    }
    features["note"] = {"dtype": "string", "shape": [1], "names": None}
    return {
        "codebase_version": version,
        "robot_type": "so100",
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "total_tasks": len(TASKS),
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": "0:2", "val": "2:3"},
        "data_path": data_path,
        "video_path": video_path,
        "features": features,
        **more,
    }


def table(rows: slice) -> pa.Table:
    columns: dict[str, Any] = {}
    for key, x in numbers().items():
        values = pa.array(x[rows].ravel())
        for size in reversed(x.shape[1:]):
            if x.shape[1:] != (1,):
                values = pa.FixedSizeListArray.from_arrays(values, size)
        columns[key] = values
    columns["note"] = ["a note"] * len(columns["index"])
    pictures = []
    for number in range(*rows.indices(sum(LENGTHS))):
        buffer = io.BytesIO()
        Image.fromarray(frame(number)).save(buffer, "PNG")
        pictures.append({"bytes": buffer.getvalue(), "path": f"frame-{number:06d}.png"})
    columns["observation.images.wrist"] = pictures
    return pa.table(columns)


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=4))


def _write_table(path: Path, value: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(value, path, row_group_size=7)


def write_3(root: Path, codec: str = "libsvtav1") -> Path:
    """Version 3.0: episodes 0 and 1 share their files, episode 2 has its own."""
    pattern = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    info = _info("v3.0", f"data/{pattern}.parquet", f"videos/{{video_key}}/{pattern}.mp4")
    _write_json(root / "meta/info.json", info)
    tasks = {"task_index": [0, 1], "__index_level_0__": list(TASKS)}
    _write_table(root / "meta/tasks.parquet", pa.table(tasks))
    starts = np.cumsum([0, *LENGTHS]).tolist()
    key = "observation.images.top"
    first = [0.0, LENGTHS[0] / FPS, 0.0]
    episodes = {
        "episode_index": [0, 1, 2],
        "tasks": [[TASKS[i]] for i in TASK_OF],
        "length": list(LENGTHS),
        "dataset_from_index": starts[:-1],
        "dataset_to_index": starts[1:],
        "data/chunk_index": [0, 0, 0],
        "data/file_index": [0, 0, 1],
        f"videos/{key}/chunk_index": [0, 0, 0],
        f"videos/{key}/file_index": [0, 0, 1],
        f"videos/{key}/from_timestamp": first,
        f"videos/{key}/to_timestamp": [t + n / FPS for t, n in zip(first, LENGTHS, strict=True)],
    }
    _write_table(root / "meta/episodes/chunk-000/file-000.parquet", pa.table(episodes))
    for file, (start, stop) in enumerate(((0, starts[2]), (starts[2], starts[3]))):
        name = f"chunk-000/file-{file:03d}"
        _write_table(root / f"data/{name}.parquet", table(slice(start, stop)))
        write_video(root / f"videos/{key}/{name}.mp4", list(range(start, stop)), codec)
    return root


def write_2(root: Path, version: str = "v2.1") -> Path:
    """Version 2.1: one file for each episode."""
    info = _info(
        version,
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        total_videos=len(LENGTHS),
        total_chunks=1,
    )
    _write_json(root / "meta/info.json", info)
    lines = [json.dumps({"task_index": i, "task": text}) for i, text in enumerate(TASKS)]
    (root / "meta/tasks.jsonl").write_text("\n".join(lines) + "\n")
    starts, lines = np.cumsum([0, *LENGTHS]).tolist(), []
    for i, length in enumerate(LENGTHS):
        rows = (starts[i], starts[i + 1])
        episode = {"episode_index": i, "tasks": [TASKS[TASK_OF[i]]], "length": length}
        lines.append(json.dumps(episode))
        _write_table(root / f"data/chunk-000/episode_{i:06d}.parquet", table(slice(*rows)))
        place = f"videos/chunk-000/observation.images.top/episode_{i:06d}.mp4"
        write_video(root / place, list(range(*rows)))
    (root / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    return root
