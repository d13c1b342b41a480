"""LeRobot's datasets of versions 2.0, 2.1 and 3 (Cadene et al. 2024, huggingface/lerobot).

`meta/info.json` names the features and where the files lie. Frames lie in Parquet files, one for
each episode (2) or many episodes to a file (3); images lie in them as PNG, or in videos beside
them. LeRobot itself is not needed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from raymimic import storage
from raymimic.data.convert.folders import inside, is_plain, parsed_object, read_object
from raymimic.data.convert.heads import Head, json_of
from raymimic.data.convert.pictures import decoded
from raymimic.data.convert.registry import FormatReader, register_format
from raymimic.data.convert.video import VideoFrames
from raymimic.data.hdf5 import reading
from raymimic.data.memory import free_memory
from raymimic.data.writer import Array, RecordedEpisode
from raymimic.errors import DatasetError

INFO = "meta/info.json"
TASKS = "meta/tasks.parquet"
EXTRA = "meta/raymimic.json"
"""What LeRobot has no place for, where raymimic wrote the dataset, see `lerobot_writer`."""

BOOKKEEPING = ("frame_index", "episode_index", "index", "task_index")
"""Features whose columns LeRobot itself makes."""
IMAGES, OBS = "observation.images.", "observation."
_RENAMED = {
    "action": "actions",
    "next.reward": "rewards",
    "next.done": "ended",
    "next.terminated": "dones",
    "next.truncated": "truncated",
    "next.success": "success",
}
"""Our name of a feature; `ended`: for either reason."""
_FLAGS = ("dones", "ended", "truncated")
_OWN_ATTRIBUTES = ("total", "env_args", "source", "num_samples")
_FORMATS = ("PNG", "JPEG", "TIFF")
_ROWS = 1024  # that are read at a time
_FIELD = re.compile(r"\{(\w+)(?::0?(\d)d)?\}")
_SHOWN_TASKS = 20


@dataclass(frozen=True)
class _Feature:
    """A feature of `info.json`.

    Attributes:
        key: its name there.
        name: ours, as `RecordedEpisode.arrays` gives it; None: it is left out.
        kind: `image`, `video` or a number's type.
        shape: of a row; of images `[H, W, C]`.
        note: what is said of it.
    """

    key: str
    name: str | None
    kind: str
    shape: tuple[int, ...]
    note: str


@dataclass(frozen=True)
class _LeRobotEpisode:
    """An episode of the metadata.

    Attributes:
        index: its number.
        length: steps.
        data: its Parquet file, relative to the dataset.
        videos: of each video its file, and where the episode begins in it [s].
    """

    index: int
    length: int
    data: str
    videos: Mapping[str, tuple[str, float]] = field(default_factory=dict)


@register_format("lerobot")
class LeRobotReader(FormatReader):
    """Reads all features of numbers and of images.

    `observation.images.X` becomes `obs/X_image`, `observation.X` `obs/X`, and `next.done` becomes
    `dones` where `next.truncated` is not 1.

    Raises:
        DatasetError: the folder is of another version, lacks files, or names files outside it.
    """

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self._root = storage.expanded(source)
        if not self._root.is_dir():
            raise DatasetError(f"'{source}' is not a folder: name the one that holds '{INFO}'")
        self._what = f"'{self._root / INFO}'"
        self._info = read_object(inside(self._root, INFO))
        self._major = self._checked_version()
        there = (self._root / EXTRA).exists()
        self._extra = read_object(inside(self._root, EXTRA)) if there else {}
        with reading(self._what):
            self._fps = float(self._info["fps"])
            if not 0 < self._fps < math.inf:
                raise ValueError(f"fps is {self._fps}")
            self._features = [
                self._feature(key, given)
                for key, given in self._info["features"].items()
                if key not in BOOKKEEPING
            ]
        self._check_names()
        self._tasks = self._read_tasks()
        self._episodes = self._read_episodes()
        self._video: dict[str, VideoFrames] = {}

    @classmethod
    def recognises(cls, head: Head) -> bool:
        """Whether the folder has LeRobot's `meta/info.json`."""
        if not head.is_folder:
            return False
        return "codebase_version" in json_of(storage.expanded(head.source) / INFO)

    @property
    def version(self) -> str:
        """As `info.json` states it."""
        return str(self._info.get("codebase_version"))

    @property
    def env_meta(self) -> dict[str, Any]:
        """The environment, where raymimic wrote the dataset."""
        env_meta = self._extra.get("env_args")
        return env_meta if isinstance(env_meta, dict) else {}

    @property
    def attrs(self) -> dict[str, Any]:
        """Frames in a second, the robot where it is named, and what raymimic wrote."""
        robot = self._info.get("robot_type")
        found = {"fps": self._fps, **({"robot_type": robot} if isinstance(robot, str) else {})}
        return {**found, **_attributes(self._extra.get("attrs"))}

    @property
    def num_episodes(self) -> int:
        """Those of the metadata."""
        return len(self._episodes)

    @property
    def mapping(self) -> list[str]:
        """Of all features and tasks."""
        lines = [f"{f.key} -> {f.name or 'left out'}, {f.note}" for f in self._features]
        tasks = list(self._tasks.items())
        several = len(tasks) > 1
        lines += [
            f"task '{text}' -> attribute lang{f', filter key task_{i}' if several else ''}"
            " (train.data[].lang)"
            for i, text in tasks[:_SHOWN_TASKS]
        ]
        if len(tasks) > _SHOWN_TASKS:
            lines.append(f"{len(tasks) - _SHOWN_TASKS} further tasks -> as these")
        return [*lines, f"fps {self._fps:g} -> attribute fps"]

    def episodes(self) -> Iterator[RecordedEpisode]:
        """Yields the episodes by number."""
        path, runs = "", self._runs("")
        for episode in self._episodes:
            if episode.data != path:
                path, runs = episode.data, self._runs(episode.data)
            what = f"'{self._root / path}': episode {episode.index}"
            with reading(what):
                number, table = next(runs, (None, ()))
            if number != episode.index or len(table) != episode.length:
                raise DatasetError(
                    f"{what} has {len(table) if number == episode.index else 'no'} frames in its"
                    f" place, but the metadata say {episode.length}: the dataset was changed or"
                    " copied in part; fetch it again"
                )
            yield self._read(episode, table, what)

    def close(self) -> None:
        """Closes the videos."""
        for video in self._video.values():
            video.close()
        self._video.clear()

    # -- metadata --

    def _checked_version(self) -> int:
        stated = str(self._info.get("codebase_version"))
        match = re.fullmatch(r"v?(\d+)\.(\d+)", stated)
        major = int(match[1]) if match else 0
        if major not in (2, 3):
            raise DatasetError(
                f"{self._what} is of LeRobot's version '{stated}', and raymimic reads 2.0, 2.1 and"
                " 3: convert the dataset by LeRobot's scripts"
            )
        return major

    def _feature(self, key: str, given: Mapping[str, Any]) -> _Feature:
        kind = str(given["dtype"])
        shape = tuple(int(n) for n in given["shape"])
        if any(n < 1 for n in shape):
            raise ValueError(f"feature {key!r} has shape {list(shape)}")
        names = self._extra.get("names")
        name = names.get(key) if isinstance(names, dict) and key in names else _name(key, kind)
        if name is not None and not (isinstance(name, str) and is_plain(name)):
            raise ValueError(f"feature {key!r} has a name that no array can have")
        if kind in ("image", "video"):
            shape = _channels_last(shape, given.get("names"))
            note = f"{'uint8'} {list(shape)}, of {'PNG' if kind == 'image' else 'a video'}"
            if kind == "video" and _is_depth(given):
                name, note = None, "as depth in videos is quantised, which raymimic does not undo"
        elif _is_number(kind):
            labels = given.get("names")
            note = f"{kind} {list(shape)}" + (f" {json.dumps(labels)}" if labels else "")
            if name is None:
                note = "as it is made of the others"
        else:
            name, note = None, f"as it is of type {kind}"
        return _Feature(key, name, kind, shape, note[:300])

    def _check_names(self) -> None:
        names = [f.name for f in self._features if f.name is not None]
        if "actions" not in names:
            raise DatasetError(
                f"{self._what} lists no feature 'action', but"
                f" {', '.join(f.key for f in self._features)}: raymimic learns from actions"
            )
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DatasetError(f"{self._what} lists two features that would both be '{twice}'")

    def _read_tasks(self) -> dict[int, str]:
        """Instructions by number."""
        file = "meta/tasks.jsonl" if self._major == 2 else TASKS
        if not (self._root / file).exists():
            return {}
        path = inside(self._root, file)
        with reading(f"'{path}'"):
            if self._major == 2:
                return {int(row["task_index"]): str(row["task"]) for row in _json_lines(path)}
            import pyarrow.parquet as parquet

            # pandas names the column of its index itself.
            rows = parquet.read_table(path).to_pydict()
            numbers = rows.pop("task_index")
            texts: list[Any] = rows.pop("task", None) or next(iter(rows.values()))
            return {int(n): str(text) for n, text in zip(numbers, texts, strict=True)}

    def _read_episodes(self) -> list[_LeRobotEpisode]:
        with reading(f"the metadata of the episodes of '{self._root}'"):
            rows = self._episodes_2() if self._major == 2 else self._episodes_3()
            episodes = sorted(rows, key=lambda episode: episode.index)
            stated = int(self._info.get("total_episodes", len(episodes)))
        if len({episode.index for episode in episodes}) != stated or len(episodes) != stated:
            raise DatasetError(
                f"{self._what} says that there are {stated} episodes, but the metadata list"
                f" {len(episodes)}: the dataset was copied or downloaded in part; fetch it again"
            )
        return episodes

    def _videos(self) -> list[str]:
        return [f.key for f in self._features if f.kind == "video" and f.name is not None]

    def _episodes_2(self) -> Iterator[_LeRobotEpisode]:
        chunks = int(self._info.get("chunks_size", 1000))
        for row in _json_lines(inside(self._root, "meta/episodes.jsonl")):
            index = int(row["episode_index"])
            values = {"episode_chunk": index // chunks, "episode_index": index}
            yield _LeRobotEpisode(
                index,
                int(row["length"]),
                _filled(self._info["data_path"], values),
                {
                    key: (_filled(self._info["video_path"], {**values, "video_key": key}), 0.0)
                    for key in self._videos()
                },
            )

    def _episodes_3(self) -> Iterator[_LeRobotEpisode]:
        import pyarrow.parquet as parquet

        files = sorted((self._root / "meta/episodes").glob("*/*.parquet"))
        place, keys = ("chunk_index", "file_index"), self._videos()
        columns = ["episode_index", "length", *(f"data/{name}" for name in place)]
        columns += [f"videos/{key}/{name}" for key in keys for name in (*place, "from_timestamp")]
        for file in files:
            path = inside(self._root, file.relative_to(self._root).as_posix())
            for row in parquet.read_table(path, columns=columns).to_pylist():
                videos = {}
                for key in keys:
                    values = {name: int(row[f"videos/{key}/{name}"]) for name in place}
                    video = _filled(self._info["video_path"], {**values, "video_key": key})
                    videos[key] = (video, float(row[f"videos/{key}/from_timestamp"]))
                data = {name: int(row[f"data/{name}"]) for name in place}
                yield _LeRobotEpisode(
                    int(row["episode_index"]),
                    int(row["length"]),
                    _filled(self._info["data_path"], data),
                    videos,
                )

    # -- frames --

    def _runs(self, name: str) -> Iterator[tuple[int, Any]]:
        """The episodes of a Parquet file: number and table, in the file's order."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        path = inside(self._root, name)
        columns = [f.key for f in self._features if f.name is not None and f.kind != "video"]
        columns = list(dict.fromkeys([*columns, "episode_index", "timestamp", "task_index"]))
        with reading(f"'{path}'"), parquet.ParquetFile(path) as file:
            if lacking := [key for key in columns if key not in file.schema_arrow.names]:
                raise DatasetError(f"'{path}' lacks the columns {', '.join(lacking)}")
            parts: list[Any] = []
            number = -1
            for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
                index = batch.column("episode_index").to_numpy(zero_copy_only=False)
                cuts = np.flatnonzero(np.diff(index)) + 1
                for start, stop in pairwise([0, *cuts.tolist(), len(index)]):
                    if stop > start and int(index[start]) != number and parts:
                        yield number, pa.Table.from_batches(parts)
                        parts = []
                    if stop > start:
                        number = int(index[start])
                        parts.append(batch.slice(start, stop - start))
            if parts:
                yield number, pa.Table.from_batches(parts)

    def _read(self, episode: _LeRobotEpisode, table: Any, what: str) -> RecordedEpisode:
        arrays = {}
        size = sum(math.prod(f.shape) for f in self._features if f.kind in ("image", "video"))
        if size * episode.length > free_memory():
            raise DatasetError(f"{what}: its {size * episode.length:,} bytes of images do not fit")
        times = _numbers(table.column("timestamp"), (1,), f"{what}: 'timestamp'").ravel()
        for f in self._features:
            if f.name is None:
                continue
            if f.kind == "video":
                arrays[f.name] = self._frames(f, episode, times.astype(np.float64))
                continue
            column, here = table.column(f.key), f"{what}: '{f.key}'"
            with reading(here):
                if f.kind == "image":
                    pictures = _contents(column)
                    arrays[f.name] = decoded(pictures, len(column), f.shape, here, _FORMATS)
                else:
                    arrays[f.name] = _numbers(column, f.shape, here).astype(f.kind, copy=False)
        tasks = _numbers(table.column("task_index"), (1,), f"{what}: 'task_index'").ravel()
        return self._episode(episode, arrays, tasks)

    def _frames(self, feature: _Feature, episode: _LeRobotEpisode, times: Array) -> Array:
        name, start = episode.videos[feature.key]
        path = inside(self._root, name)
        video = self._video.get(feature.key)
        if video is None or video.path != path or video.position > start - 0.5 / self._fps:
            if video is not None:
                video.close()
            size = (feature.shape[0], feature.shape[1])
            video = self._video[feature.key] = VideoFrames(path, size, self._fps)
        return video.take(start + times)

    def _episode(
        self, episode: _LeRobotEpisode, arrays: dict[str, Array], tasks: Array
    ) -> RecordedEpisode:
        own = self._own(episode.index)
        filter_keys = self._subsets(episode.index, tasks)
        names = self._extra.get("scalars")
        scalars = names if isinstance(names, list) else [n for n in arrays if _is_scalar(n)]
        for name, x in arrays.items():
            if name in _FLAGS and "names" not in self._extra:
                arrays[name] = (x.reshape(len(x), -1) != 0).any(axis=1).astype(np.int64)
            elif name in scalars:
                arrays[name] = x.reshape(len(x))
        ended, truncated = arrays.pop("ended", None), arrays.get("truncated")
        if ended is not None and "dones" not in arrays:
            arrays["dones"] = ended if truncated is None else ended * (1 - truncated)
        texts = {self._tasks.get(int(n)) for n in tasks}
        attrs: dict[str, Any] = {}
        if len(texts) == 1 and None not in texts:
            attrs["lang"] = texts.pop()
        if len(texts) > 1 and own is None:
            arrays["task_index"] = tasks
        if "success" in arrays and own is None:
            attrs["success"] = bool(arrays["success"].any())
        return RecordedEpisode(
            obs=_group(arrays, "obs/"),
            next_obs=_group(arrays, "next_obs/"),
            actions=arrays.pop("actions"),
            rewards=arrays.pop("rewards", None),
            dones=arrays.pop("dones", None),
            states=arrays.pop("states", None),
            others=arrays,
            attrs=attrs if own is None else own[0],
            filter_keys=filter_keys if own is None else own[1],
        )

    def _own(self, index: int) -> tuple[dict[str, Any], tuple[str, ...]] | None:
        """Attributes and filter keys of an episode, where raymimic wrote the dataset."""
        demos = self._extra.get("demos")
        demo = demos[index] if isinstance(demos, list) and index < len(demos) else None
        if not isinstance(demo, dict):
            return None
        keys = demo.get("filter_keys")
        named = (key for key in (keys if isinstance(keys, list) else ()) if isinstance(key, str))
        return _attributes(demo.get("attrs")), tuple(key for key in named if is_plain(key))

    def _subsets(self, index: int, tasks: Array) -> tuple[str, ...]:
        """Filter keys of an episode: its splits and tasks, where there are several."""
        found, splits = [], self._info.get("splits")
        if isinstance(splits, dict) and len(splits) > 1:
            for name, span in splits.items():
                first, _, last = str(span).partition(":")
                known = first.isdecimal() and last.isdecimal()
                if known and int(first) <= index < int(last) and is_plain(name):
                    found.append("valid" if name in ("val", "validation") else name)
        if len(self._tasks) > 1:
            found += [f"task_{n}" for n in sorted({int(n) for n in tasks})]
        return tuple(found)


def _attributes(given: Any) -> dict[str, Any]:
    """Attributes that an HDF5 file can hold and that are not its own bookkeeping."""
    found = {}
    for key, value in (given if isinstance(given, dict) else {}).items():
        values = value if isinstance(value, list) else [value]
        kinds = {type(x) for x in values}
        simple = kinds <= {int, float, bool} or kinds == {str}
        large = any(isinstance(x, int) and abs(x) >= 2**63 for x in values)
        if simple and not large and key not in _OWN_ATTRIBUTES:
            found[key] = value
    return found


def _name(key: str, kind: str) -> str:
    """Our name of a feature."""
    if key in _RENAMED:
        return _RENAMED[key]
    if key.startswith(IMAGES) and kind in ("image", "video"):
        name = key.removeprefix(IMAGES)
        return f"obs/{name}" if name.endswith("_image") else f"obs/{name}_image"
    return f"obs/{key.removeprefix(OBS)}" if key.startswith(OBS) else key


def _is_scalar(name: str) -> bool:
    """Whether a number for each step has no axis of its own, as in robomimic's files."""
    return name in ("rewards", "success", "timestamp", *_FLAGS)


def _is_number(kind: str) -> bool:
    try:
        return np.dtype(kind).kind in "biuf"
    except TypeError:
        return False


def _channels_last(shape: tuple[int, ...], names: Any) -> tuple[int, ...]:
    """The shape `[H, W, C]` of images, which `info.json` may give as `[C, H, W]`."""
    if len(shape) != 3:
        raise ValueError(f"images have shape {list(shape)}")
    by_name = isinstance(names, list) and bool(names) and str(names[0]).startswith("channel")
    by_size = not isinstance(names, list) and shape[0] in (1, 3) and shape[2] not in (1, 3)
    return (shape[1], shape[2], shape[0]) if by_name or by_size else shape


def _is_depth(given: Mapping[str, Any]) -> bool:
    infos = [x for x in (given.get("info"), given.get("video_info")) if isinstance(x, dict)]
    return any(info.get("is_depth_map", info.get("video.is_depth_map")) for info in infos)


def _filled(template: Any, values: Mapping[str, int | str]) -> str:
    """A path of `info.json`, whose fields are numbers and names alone.

    `str.format` would take attributes and widths of the file's choice.
    """

    def field_of(match: re.Match[str]) -> str:
        value = values[match[1]]
        return f"{value:0{match[2]}d}" if match[2] and isinstance(value, int) else str(value)

    if not isinstance(template, str):
        raise ValueError(f"a path is {template!r}")
    path = _FIELD.sub(field_of, template)
    if "{" in path or "}" in path:
        raise ValueError(f"a path is {template!r}")
    return path


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for i, line in enumerate(file, 1):
            if line.strip():
                yield parsed_object(line, f"'{path}', line {i}")


def _numbers(column: Any, shape: Sequence[int], what: str) -> Array:
    """A column of numbers or of (nested) lists of them as `[T, *shape]`."""
    import pyarrow as pa
    import pyarrow.compute as compute

    values, rows, left = column.combine_chunks(), len(column), list(shape)
    if values.null_count:
        raise DatasetError(f"{what} lacks {values.null_count} values: record or repair it")
    if isinstance(values.type, pa.BaseExtensionType):
        values = values.storage
    while hasattr(values.type, "value_type"):  # lists, of fixed sizes or not
        lengths = compute.unique(compute.list_value_length(values)).to_pylist()
        if left and lengths not in ([left[0]], []):
            raise DatasetError(
                f"{what} has rows of {lengths[:3]} numbers, but info.json says {shape}"
            )
        values, left = values.flatten(), left[1:]
        if values.null_count:
            raise DatasetError(f"{what} lacks {values.null_count} values: record or repair it")
    flat: Array = values.to_numpy(zero_copy_only=False)
    if flat.dtype.kind not in "biuf" or flat.size != rows * math.prod(shape):
        raise DatasetError(f"{what} does not hold numbers {list(shape)}, as info.json says")
    return flat.reshape(rows, *shape)


def _contents(column: Any) -> Iterator[bytes | None]:
    """The content of each picture of a column."""
    for row in column:
        yield row["bytes"].as_py() if row.is_valid else None


def _group(arrays: dict[str, Array], prefix: str) -> dict[str, Array]:
    """Takes the arrays of a group out."""
    names = [name for name in arrays if name.startswith(prefix)]
    return {name.removeprefix(prefix): arrays.pop(name) for name in names}
