"""Writes LeRobot's datasets of version 3.0, images as PNG (nothing is lost) or in videos."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from raymimic.data.convert.lerobot import BOOKKEEPING, EXTRA, IMAGES, INFO, OBS, TASKS
from raymimic.data.convert.registry import FormatWriter, register_writer
from raymimic.data.convert.video import CODEC, PIXELS, VideoWriter
from raymimic.data.writer import Array, RecordedEpisode
from raymimic.errors import DatasetError

_PATTERN = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_DATA = f"data/{_PATTERN}.parquet"
_EPISODES = f"meta/episodes/{_PATTERN}.parquet"
_VIDEOS = f"videos/{{video_key}}/{_PATTERN}.mp4"
_FILES_IN_CHUNK = 1000
# LeRobot begins another file then.
_FILE_BYTES = 100 * 2**20
_VIDEO_BYTES = 200 * 2**20
_DEFAULT_FPS = 20  # robosuite's
_RENAMED = {
    "actions": "action",
    "rewards": "next.reward",
    "dones": "next.terminated",
    "truncated": "next.truncated",
    "success": "next.success",
}
_STATE, _DONE = "observation.state", "next.done"
_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
_IMAGE_DIMS = 4  # [T, H, W, C]


@register_writer("lerobot")
class LeRobotWriter(FormatWriter):
    """Writes numbers in their own types and colour images as PNG in the Parquet files.

    LeRobot's policies look for `observation.state`: where there is no `obs/state` it is made of all
    observations of one axis, by name, in float32. `meta/raymimic.json` holds what a conversion back
    needs besides: the environment, our names, attributes and filter keys of demos.

    Quantiles of the whole dataset bound those of the episodes, as LeRobot's own
    (`aggregate_feature_stats`).

    Attributes:
        videos: whether images become videos.
    """

    videos: ClassVar[bool] = False

    def __init__(
        self, folder: Path, target: Path, env_meta: Mapping[str, Any], attrs: Mapping[str, Any]
    ) -> None:
        super().__init__(folder, target, env_meta, attrs)
        stated = attrs.get("fps", env_meta.get("env_kwargs", {}).get("control_freq"))
        known = isinstance(stated, int | float) and 0 < stated < math.inf
        fps = float(stated) if known else float(_DEFAULT_FPS)
        self._fps = int(fps) if fps.is_integer() else fps
        source = "attribute fps or control_freq" if known else "not known, assumed"
        self._lines = {f"fps: {self._fps:g}, {source}": None}
        self._features: dict[str, dict[str, Any]] = {}
        self._names: dict[str, str | None] = {}
        self._scalars: list[str] = []
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._demos: list[dict[str, Any]] = []
        self._stats: list[dict[str, dict[str, Array]]] = []
        self._steps = self._file = 0
        self._parquet: Any = None
        self._films: dict[str, VideoWriter] = {}
        self._film_numbers: dict[str, int] = {}

    def add(self, episode: RecordedEpisode) -> None:
        """Writes an episode.

        Raises:
            DatasetError: its arrays have other names, shapes or types than those before it.
        """
        columns = self._columns(episode)
        self._check(columns)
        length, index = len(episode), len(self._episodes)
        task = self._task(episode)
        own: dict[str, Array] = {
            "frame_index": np.arange(length),
            "episode_index": np.full(length, index),
            "index": np.arange(self._steps, self._steps + length),
            "task_index": np.full(length, self._tasks.setdefault(task, len(self._tasks))),
        }
        stats = {key: _statistics(x) for key, x in columns.items()}
        films = {key: x for key, x in columns.items() if self._is_film(x)}
        self._write({**{key: x for key, x in columns.items() if key not in films}, **own})
        self._stats.append(stats)
        self._episodes.append(
            {
                "episode_index": index,
                "tasks": [task],
                "length": length,
                "dataset_from_index": self._steps,
                "dataset_to_index": self._steps + length,
                **{f"data/{key}": n for key, n in _place(self._file).items()},
                **{
                    f"videos/{key}/{name}": value
                    for key, x in films.items()
                    for name, value in self._film(key, x).items()
                },
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
                **{
                    f"stats/{key}/{name}": x.tolist()
                    for key, found in stats.items()
                    for name, x in found.items()
                },
            }
        )
        self._demos.append({"attrs": dict(episode.attrs), "filter_keys": list(episode.filter_keys)})
        self._steps += length

    def finish(self) -> None:
        """Writes the metadata."""
        import pandas
        import pyarrow as pa
        import pyarrow.parquet as parquet

        self.close()
        path = self.folder / _EPISODES.format(chunk_index=0, file_index=0)
        path.parent.mkdir(parents=True)
        parquet.write_table(pa.Table.from_pylist(self._episodes), path)
        # LeRobot looks tasks up by pandas' index.
        texts = pandas.Index(list(self._tasks), name="task")
        tasks = pandas.DataFrame({"task_index": list(self._tasks.values())}, index=texts)
        tasks.to_parquet(self.folder / TASKS)
        robot = self.attrs.get("robot_type")
        info = {
            "codebase_version": "v3.0",
            "fps": self._fps,
            "features": self._features,
            "total_episodes": len(self._episodes),
            "total_frames": self._steps,
            "total_tasks": len(self._tasks),
            "chunks_size": _FILES_IN_CHUNK,
            "data_files_size_in_mb": _FILE_BYTES // 2**20,
            "video_files_size_in_mb": _VIDEO_BYTES // 2**20,
            "data_path": _DATA,
            "video_path": _VIDEOS if self._film_numbers else None,
            "robot_type": robot if isinstance(robot, str) else None,
            "splits": {"train": f"0:{len(self._episodes)}"},
        }
        extra = {
            "env_args": self.env_meta,
            "attrs": self.attrs,
            "names": self._names,
            "scalars": self._scalars,
            "demos": self._demos,
        }
        stats = {
            key: {name: x.tolist() for name, x in _together([s[key] for s in self._stats]).items()}
            for key in self._stats[0]
        }
        for name, content in ((INFO, info), ("meta/stats.json", stats), (EXTRA, extra)):
            (self.folder / name).write_text(json.dumps(content, indent=4), encoding="utf-8")
        self.mapping = list(self._lines)

    def close(self) -> None:
        """Closes the Parquet file and the videos."""
        if self._parquet is not None:
            self._parquet.close()
            self._parquet = None
        while self._films:
            self._films.popitem()[1].close()

    def _columns(self, episode: RecordedEpisode) -> dict[str, Array]:
        """The columns of an episode by LeRobot's names, but for those of its bookkeeping."""
        columns: dict[str, Array] = {}
        named: dict[str, str | None] = {}
        lines: list[str] = []

        def put(key: str, name: str | None, x: Array, note: str = "") -> None:
            if key in columns or key in BOOKKEEPING:
                raise DatasetError(f"two arrays of a demo would both be '{key}' in LeRobot's form")
            columns[key], named[key] = x, name
            kind = f"{x.dtype.name} {list(x.shape[1:])}"
            if _is_image(x):
                kind = "a video, which loses detail" if self._is_film(x) else "PNG"
            lines.append(f"{name or note} -> {key}, {kind}")

        arrays = episode.arrays()
        images = {name for name, x in arrays.items() if _is_image(x)}
        for name, x in sorted(arrays.items()):
            if name.startswith("next_obs/"):
                lines.append(f"{name} -> left out: it is the next row of obs, but for the last")
            elif name in BOOKKEEPING:
                lines.append(f"{name} -> left out: LeRobot has its own")
            else:
                put(_feature(name, images), name, x)
        vectors = [x for name, x in sorted(arrays.items()) if _is_vector(name, x)]
        if _STATE not in columns and vectors:
            state = np.concatenate([x.reshape(len(x), -1) for x in vectors], axis=1)
            put(_STATE, None, state.astype(np.float32), "all observations of one axis")
        ends = [x for x in (episode.dones, episode.others.get("truncated")) if x is not None]
        if ends:
            put(_DONE, None, np.any([x.reshape(-1) > 0 for x in ends], axis=0), "either end")
        if "timestamp" not in columns:
            times = (np.arange(len(episode)) / self._fps).astype(np.float32)
            put("timestamp", None, times, "fps")
        self._lines |= dict.fromkeys(lines)
        self._names |= named
        self._scalars = [name for key, name in named.items() if name and columns[key].ndim == 1]
        return columns

    def _check(self, columns: Mapping[str, Array]) -> None:
        features = {key: self._described(x) for key, x in columns.items()}
        features |= {key: self._described(np.zeros(1, np.int64)) for key in BOOKKEEPING}
        if self._features and features != self._features:
            key = next(
                key
                for key in {**features, **self._features}
                if features.get(key) != self._features.get(key)
            )
            raise DatasetError(
                f"demo {len(self._episodes)} differs from those before it in '{key}', but LeRobot"
                " has the same features in all episodes: convert demos that agree (filter keys)"
            )
        self._features = features

    def _task(self, episode: RecordedEpisode) -> str:
        for text in (episode.attrs.get("lang"), self.attrs.get("lang")):
            if isinstance(text, str):
                return text
        return str(self.env_meta.get("env_name", ""))

    def _is_film(self, x: Array) -> bool:
        return self.videos and _is_image(x)

    def _described(self, x: Array) -> dict[str, Any]:
        """A feature of `info.json`."""
        if not _is_image(x):
            return {"dtype": x.dtype.name, "shape": list(x.shape[1:]) or [1], "names": None}
        names = ["height", "width", "channels"]
        shape = list(x.shape[1:])
        if not self._is_film(x):
            return {"dtype": "image", "shape": shape, "names": names}
        info = {
            **{f"video.{name}": n for name, n in zip(names, shape, strict=True)},
            "video.codec": CODEC,
            "video.pix_fmt": PIXELS,
            "video.is_depth_map": False,
            "video.fps": self._fps,
            "has_audio": False,
        }
        return {"dtype": "video", "shape": shape, "names": names, "info": info}

    def _film(self, key: str, frames: Array) -> dict[str, float]:
        """Appends an episode to a video; returns its place there."""
        number = self._film_numbers.setdefault(key, 0)
        film = self._films.get(key)
        if film is not None and film.num_bytes > _VIDEO_BYTES:
            self._films.pop(key).close()
            number = self._film_numbers[key] = number + 1
            film = None
        if film is None:
            path = self.folder / _VIDEOS.format(video_key=key, **_place(number))
            height, width = frames.shape[1:3]
            film = self._films[key] = VideoWriter(path, (height, width), self._fps)
        first = film.count
        film.add(frames)
        span = {"from_timestamp": first / self._fps, "to_timestamp": film.count / self._fps}
        return {**_place(number), **span}

    def _write(self, columns: Mapping[str, Array]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as parquet

        table = pa.table({key: _encoded(x) for key, x in columns.items()})
        path = self.folder / _DATA.format(**_place(self._file))
        if self._parquet is not None and path.stat().st_size + table.nbytes > _FILE_BYTES:
            self.close()
            self._file += 1
            path = self.folder / _DATA.format(**_place(self._file))
        if self._parquet is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._parquet = parquet.ParquetWriter(path, table.schema)
        self._parquet.write_table(table, row_group_size=len(table))


@register_writer("lerobot-video")
class LeRobotVideoWriter(LeRobotWriter):
    """Writes colour images into videos, LeRobot's default: small files that lose detail.

    See `raymimic.data.convert.video.VideoWriter`. All else is as `LeRobotWriter` writes it.
    """

    videos = True


def _place(number: int) -> dict[str, int]:
    """The place of a file among those of its kind."""
    chunk, file = divmod(number, _FILES_IN_CHUNK)
    return {"chunk_index": chunk, "file_index": file}


def _is_image(x: Array) -> bool:
    return x.dtype == np.uint8 and x.ndim == _IMAGE_DIMS and x.shape[-1] == 3


def _is_vector(name: str, x: Array) -> bool:
    return name.startswith("obs/") and x.ndim <= 2 and x.dtype.kind in "biuf"


def _feature(name: str, images: set[str]) -> str:
    """LeRobot's name of an array, which has no slashes."""
    if name in _RENAMED:
        return _RENAMED[name]
    group, _, key = name.partition("/")
    if group != "obs":
        return name.replace("/", ".")
    if name in images:
        stem = key.removesuffix("_image")
        key = key if f"obs/{stem}" in images else stem
        return f"{IMAGES}{key.replace('/', '.')}"
    return f"{OBS}{key.replace('/', '.')}"


def _encoded(x: Array) -> Any:
    """A column as Hugging Face's `datasets` stores it."""
    import pyarrow as pa
    from PIL import Image

    if _is_image(x):
        rows = []
        for picture in x:
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, "PNG")
            rows.append({"bytes": buffer.getvalue(), "path": None})
        return pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    shape = x.shape[1:]
    column = pa.array(np.ascontiguousarray(x, x.dtype.newbyteorder("=")).ravel())
    if shape in ((), (1,)):
        return column
    if len(shape) == 1:
        return pa.FixedSizeListArray.from_arrays(column, shape[0])
    for size in reversed(shape):
        starts = size * np.arange(len(column) // size + 1, dtype=np.int32)
        column = pa.ListArray.from_arrays(starts, column)
    return column


def _statistics(x: Array) -> dict[str, Array]:
    """LeRobot's statistics of a feature: of images by channel, of 0 to 1, `[C, 1, 1]`."""
    if _is_image(x):
        counts = np.stack([np.bincount(x[..., c].ravel(), minlength=256) for c in range(3)])
        levels, total = np.arange(256) / 255, x[..., 0].size
        mean = counts @ levels / total
        found = {
            "min": levels[np.argmax(counts > 0, axis=1)],
            "max": levels[255 - np.argmax(counts[:, ::-1] > 0, axis=1)],
            "mean": mean,
            "std": np.sqrt(np.maximum(counts @ levels**2 / total - mean**2, 0)),
        }
        shares = np.cumsum(counts, axis=1) / total
        for q in _QUANTILES:
            found[f"q{100 * q:02.0f}"] = levels[np.argmax(shares >= q, axis=1)]
        found = {name: value.reshape(3, 1, 1) for name, value in found.items()}
    else:
        rows = x.reshape(len(x), *(x.shape[1:] or (1,))).astype(np.float64)
        found = {
            "min": rows.min(axis=0),
            "max": rows.max(axis=0),
            "mean": rows.mean(axis=0),
            "std": rows.std(axis=0),
        }
        quantiles = np.quantile(rows, _QUANTILES, axis=0)
        found |= {f"q{100 * q:02.0f}": x for q, x in zip(_QUANTILES, quantiles, strict=True)}
    return {**found, "count": np.array([len(x)])}


def _together(parts: list[dict[str, Array]]) -> dict[str, Array]:
    """Statistics of all episodes from those of each, see `LeRobotWriter`."""
    stacked = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    counts = stacked.pop("count").ravel()
    weights = counts / counts.sum()
    mean = np.tensordot(weights, stacked["mean"], 1)
    spread = stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2
    found = {"min": stacked["min"].min(axis=0), "max": stacked["max"].max(axis=0), "mean": mean}
    found["std"] = np.sqrt(np.tensordot(weights, spread, 1))
    for q in _QUANTILES:
        values = stacked[f"q{100 * q:02.0f}"]
        found[f"q{100 * q:02.0f}"] = values.min(axis=0) if q <= 0.5 else values.max(axis=0)
    return {**found, "count": np.array([counts.sum()])}
