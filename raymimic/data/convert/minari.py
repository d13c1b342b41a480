"""Minari's datasets: folders with `data/metadata.json` and HDF5, Arrow or Parquet files.

Read and written without the library, whose layout is that of `minari/dataset/_storages`.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from raymimic import storage
from raymimic.data.convert.heads import Head, is_file, is_folder, json_of
from raymimic.data.convert.pictures import decoded
from raymimic.data.convert.registry import (
    FormatReader,
    FormatWriter,
    register_format,
    register_writer,
)
from raymimic.data.convert.spaces import (
    Space,
    bounds_of,
    box,
    is_image,
    leaves,
    nested,
    read_space,
    shape_of,
)
from raymimic.data.hdf5 import DatasetReader, DemoReader, open_hdf5
from raymimic.data.metadata import demo_order
from raymimic.data.writer import Array, RecordedEpisode, writing_hdf5
from raymimic.envs.env_base import FLAT_KEY, SUCCESS_KEYS, EnvType
from raymimic.errors import DatasetError
from raymimic.storage import parse_json

_ID = re.compile(r"(?:[-\w]+/)*[-\w]+-v\d+")
_METADATA = "metadata.json"
_HDF5 = "main_data.hdf5"
_VERSION = "0.5.4"  # of the library whose layout is written
_FORMATS = ("hdf5", "arrow", "parquet")
_RESET = "reset_infos/"
_MOST_ATTRIBUTE_BYTES = 8192

Tree = dict[str, Array]
"""Arrays by their names joined by `/`; one array alone has no name."""


@dataclass(frozen=True)
class _MinariEpisode:
    """An episode as Minari has it.

    Attributes:
        where: its name, for complaints.
        observations: `[T + 1, ...]`.
        actions: `[T, ...]`.
        rewards: `[T]`.
        terminations: `[T]`.
        truncations: `[T]`.
        infos: `[T + 1, ...]`.
        seed: of its reset, if stated.
    """

    where: str
    observations: Tree
    actions: Tree
    rewards: Array
    terminations: Array
    truncations: Array
    infos: Tree
    seed: int | None


@register_format("minari")
class MinariReader(FormatReader):
    """Reads a dataset by its folder, or by its id among the local ones (`MINARI_DATASETS_PATH`).

    Args:
        source: the folder or the id.

    Raises:
        DatasetError: there is no such dataset, or it is of a kind that Minari does not write.
    """

    def __init__(self, source: str) -> None:
        super().__init__(source)
        data = _data_folder(source)
        if data is None:
            raise DatasetError(
                f"'{source}' is neither the folder of a Minari dataset (with data/{_METADATA}) nor"
                f" the id of one in '{_local_datasets()}' (MINARI_DATASETS_PATH): minari download"
                " fetches one"
            )
        self._data = data
        self._meta = json_of(data / _METADATA)
        self._kind = self._meta.get("data_format", "hdf5")
        if self._kind not in _FORMATS:
            raise DatasetError(
                f"'{data / _METADATA}': 'data_format' is {self._kind!r}, not one of"
                f" {', '.join(_FORMATS)}"
            )
        index = "_index_{}" if self._kind == "hdf5" else "{}"
        self._spaces = {
            name: leaves(read_space(self._meta.get(f"{name}_space")), index=index)
            for name in ("observation", "action")
        }
        self._lines: dict[str, None] = {}

    @classmethod
    def recognises(cls, head: Head) -> bool:
        """Whether there is Minari's `metadata.json`, with the data's format or spaces."""
        data = _data_folder(head.source)
        stated = {} if data is None else json_of(data / _METADATA)
        return bool({"data_format", "minari_version", "observation_space"} & set(stated))

    @classmethod
    def absolute(cls, source: str) -> str:
        """The dataset's folder."""
        data = _data_folder(source)
        return super().absolute(source if data is None else str(data.parent))

    @property
    def files(self) -> list[Path]:
        """The files of the data's folder."""
        found = (path for path in self._data.rglob("*") if path.is_file())
        return sorted(path for path in found if not path.name.startswith("."))

    @property
    def name(self) -> str:
        """The dataset's id."""
        stated = self._meta.get("dataset_id")
        return stated if isinstance(stated, str) and stated else self._data.parent.name

    @classmethod
    def file_name(cls, source: str) -> str:
        """As of the folder that holds the data."""
        data = _data_folder(source)
        return super().file_name(source if data is None else str(data.absolute().parent))

    @property
    def version(self) -> str:
        """Minari's version."""
        return str(self._meta.get("minari_version", ""))

    @property
    def env_meta(self) -> dict[str, Any]:
        """The environment to evaluate in, else the one that was recorded."""
        for key in ("eval_env_spec", "env_spec"):
            spec = read_space(self._meta.get(key))
            if isinstance(spec.get("id"), str):
                given = spec.get("kwargs")
                kwargs = dict(given) if isinstance(given, dict) else {}
                kwargs.pop("render_mode", None)
                return {"env_name": spec["id"], "type": EnvType.GYM_TYPE, "env_kwargs": kwargs}
        return {}

    @property
    def num_episodes(self) -> int | None:
        """As the metadata state it."""
        stated = self._meta.get("total_episodes")
        return stated if isinstance(stated, int) else None

    @property
    def mapping(self) -> list[str]:
        """Names, ranges, pictures, ends of episodes."""
        return list(self._lines)

    def episodes(self) -> Iterator[RecordedEpisode]:
        """Yields all episodes by number."""
        stored = self._of_hdf5() if self._kind == "hdf5" else self._of_arrow()
        for episode in stored:
            yield self._recorded(episode)

    # -- HDF5 --

    def _of_hdf5(self) -> Iterator[_MinariEpisode]:
        with open_hdf5(self._data / _HDF5) as reader:
            names = [n for n in reader.names(reader.root) if re.fullmatch(r"episode_\d+", n)]
            for name in sorted(names, key=demo_order):
                group = reader.find(None, name, str(reader))
                if isinstance(group, h5py.Group):
                    yield self._hdf5_episode(reader, DemoReader(reader, name, group))

    def _hdf5_episode(self, reader: DatasetReader, demo: DemoReader) -> _MinariEpisode:
        where = f"{reader}: '{demo.name}'"
        seed = reader.attribute(demo.group, "seed", where)
        flat = {
            name: _numbers(demo, name, where) for name in ("rewards", "terminations", "truncations")
        }
        return _MinariEpisode(
            where=where,
            observations=self._hdf5_tree(demo, "observations", self._spaces["observation"]),
            actions=self._hdf5_tree(demo, "actions", self._spaces["action"]),
            infos=self._hdf5_tree(demo, "infos", {}) if demo.has("infos") else {},
            seed=seed if isinstance(seed, int) else None,
            **flat,
        )

    def _hdf5_tree(self, demo: DemoReader, name: str, spaces: Mapping[str, Space]) -> Tree:
        item = demo.find(name)
        if item is None:
            raise DatasetError(f"{demo.reader}: '{demo.name}' has no '{name}': record it again")
        items = {"": item} if isinstance(item, h5py.Dataset) else demo.datasets(name)
        found: Tree = {}
        for key, below in items.items():
            full = f"{name}/{key}".rstrip("/")
            where = f"{demo.reader}: '{demo.name}/{full}'"
            demo.reader.check(below, where)
            form, dtype = demo.reader.form_of(below, where)
            if self._is_encoded(spaces.get(key, {}), dtype, len(form or ())):
                rows = demo.reader.values(below, where)
                shape = shape_of(spaces[key]) or ()
                pictures = (np.asarray(row, np.uint8).tobytes() for row in rows)
                found[key] = decoded(pictures, len(rows), shape, where)
                self._note(f"{full}: pictures [{_sizes(shape)}], decoded from JPEG")
            elif dtype.kind not in "biuf" or not form:
                self._note(f"{full}: left out, not one array of numbers for each step")
            else:
                found[key] = demo.reader.values(below, where)
        return found

    def _is_encoded(self, space: Space, dtype: np.dtype[Any], dims: int) -> bool:
        """Whether an array of the file holds pictures as JPEG, a list of bytes each."""
        if not self._meta.get("jpeg_encoding", True) or not is_image(space):
            return False
        ragged = h5py.check_vlen_dtype(dtype)
        return (ragged is not None and ragged == np.uint8) if dims == 1 else dims == 2

    # -- Arrow and Parquet --

    def _of_arrow(self) -> Iterator[_MinariEpisode]:
        import pyarrow
        import pyarrow.dataset

        folders = [path for path in self._data.iterdir() if path.name.isdecimal()]
        for folder in sorted(folders, key=lambda path: int(path.name)):
            where = f"dataset '{folder}'"
            parts = sorted(folder.glob(f"*.{self._kind}"))
            try:
                table = pyarrow.dataset.dataset(parts, format=self._kind).to_table()
                table.validate(full=True)  # offsets of a damaged file may lead anywhere
                yield self._arrow_episode(folder, where, table.combine_chunks())
            except (pyarrow.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
                reason = next(iter(str(error).splitlines()), "") or type(error).__name__
                raise DatasetError(
                    f"{where} cannot be read ({reason}): it is damaged; copy or make it again"
                ) from error

    def _arrow_episode(self, folder: Path, where: str, table: Any) -> _MinariEpisode:
        def tree(name: str, spaces: Mapping[str, Space]) -> Tree:
            column = table.column(name).combine_chunks()
            return dict(self._arrow_tree(column, name, "", spaces, where))

        flat = {
            name: table.column(name).to_numpy()[:-1]
            for name in ("rewards", "terminations", "truncations")
        }
        seed = json_of(folder / _METADATA).get("seed")
        return _MinariEpisode(
            where=where,
            observations=tree("observations", self._spaces["observation"]),
            actions={k: x[:-1] for k, x in tree("actions", self._spaces["action"]).items()},
            infos=tree("infos", {}) if "infos" in table.column_names else {},
            seed=seed if isinstance(seed, int) else None,
            **flat,
        )

    def _arrow_tree(
        self, column: Any, name: str, key: str, spaces: Mapping[str, Space], where: str
    ) -> Iterator[tuple[str, Array]]:
        from pyarrow import types

        full, space = f"{name}/{key}".rstrip("/"), spaces.get(key, {})
        shape = shape_of(space)
        if types.is_struct(column.type):
            for i, field in enumerate(column.type):
                below = f"{key}/{field.name}" if key else field.name
                part = column.field(i)
                meta = (field.metadata or {}).get(b"shape")
                known = spaces
                if meta is not None:  # of an info
                    sizes = [int(size) for size in meta.split(b",") if size]
                    known = {below: {"type": "Box", "shape": sizes}}
                yield from self._arrow_tree(part, name, below, known, where)
        elif types.is_binary(column.type) and is_image(space) and shape is not None:
            pictures = (row.as_py() for row in column)
            yield key, decoded(pictures, len(column), shape, f"{where}: '{full}'")
            self._note(f"{full}: pictures [{_sizes(shape)}], decoded from JPEG")
        elif types.is_fixed_size_list(column.type):
            values = column.flatten().to_numpy(zero_copy_only=False)
            yield key, values.reshape(len(column), *(shape or (column.type.list_size,)))
        elif types.is_integer(column.type) or types.is_floating(column.type):
            yield key, column.to_numpy(zero_copy_only=False)
        elif types.is_boolean(column.type):
            yield key, column.to_numpy(zero_copy_only=False).astype(bool)
        else:
            self._note(f"{full}: left out, not one array of numbers for each step")

    # -- both --

    def _note(self, line: str) -> None:
        self._lines[line] = None

    def _recorded(self, episode: _MinariEpisode) -> RecordedEpisode:
        where = episode.where
        if set(episode.actions) != {""}:
            parts = ", ".join(map(repr, sorted(filter(None, episode.actions))))
            raise DatasetError(
                f"{where}: its actions are no array of numbers{parts and f', but {parts}'};"
                " raymimic learns one array of continuous actions"
            )
        actions = episode.actions[""]
        kind = self._spaces["action"].get("", {}).get("type")
        if kind not in ("Box", None) or actions.dtype.kind != "f":
            raise DatasetError(
                f"{where}: its actions are {kind or actions.dtype}; raymimic learns continuous ones"
            )
        steps = len(actions)
        if not steps:
            raise DatasetError(f"{where} has no actions: remove the episode, or record it again")
        for key, values in episode.observations.items():
            if len(values) != steps + 1:
                raise DatasetError(
                    f"{where}: 'observations/{key}' has {len(values)} rows beside {steps} actions;"
                    " Minari has one observation more than actions"
                )
        observations = {key or FLAT_KEY: x for key, x in episode.observations.items()}
        others = {"truncated": episode.truncations.astype(np.int64)}
        attrs: dict[str, Any] = {} if episode.seed is None else {"seed": episode.seed}
        for key, values in episode.infos.items():
            if len(values) not in (steps, steps + 1):
                self._note(f"infos/{key}: left out, it has no row for each step")
                continue
            others[f"infos/{key}"] = values[-steps:]
            if len(values) > steps and values[0].nbytes <= _MOST_ATTRIBUTE_BYTES:
                attrs[f"{_RESET}{key}"] = values[0]
            if key in SUCCESS_KEYS and values.ndim == 1:
                attrs["success"] = bool(np.any(values[-steps:] != 0))
        self._note_names(episode, observations)
        return RecordedEpisode(
            obs={key: x[:-1] for key, x in observations.items()},
            next_obs={key: x[1:] for key, x in observations.items()},
            actions=actions.reshape(steps, -1),
            rewards=episode.rewards,
            dones=episode.terminations.astype(np.int64),
            others=others,
            attrs=attrs,
        )

    def _note_names(self, episode: _MinariEpisode, observations: Tree) -> None:
        for (name, values), key in zip(episode.observations.items(), observations, strict=True):
            full = f"observations/{name}".rstrip("/")
            form = f"[{_sizes(values.shape[1:])}] {values.dtype}"
            self._note(f"{full} -> obs/{key} and, one step later, next_obs/{key} {form}")
        bounds = bounds_of(self._spaces["action"].get("", {}))
        self._note(f"actions -> actions{bounds and f', {bounds} by the space'}")
        self._note("rewards -> rewards")
        self._note("terminations -> dones, 1 where the task ended")
        self._note("truncations -> truncated, 1 where the episode was cut off, as by a time limit")
        for key in episode.infos:
            success = "; any of them: attribute success of the demo" if key in SUCCESS_KEYS else ""
            self._note(f"infos/{key} -> infos/{key} after each step{success}")


def _numbers(demo: DemoReader, name: str, where: str) -> Array:
    """One number for each step."""
    item = demo.find(name)
    if not isinstance(item, h5py.Dataset):
        raise DatasetError(f"{where} has no '{name}': record it again")
    found = demo.numbers(name)
    return demo.reader.values(found.item, f"{where}: '{name}'").reshape(-1)


def _sizes(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def _local_datasets() -> Path:
    """Where Minari keeps datasets."""
    return storage.expanded(os.environ.get("MINARI_DATASETS_PATH", "~/.minari/datasets"))


def _data_folder(source: str) -> Path | None:
    """The folder of `metadata.json` of a dataset; None if there is none."""
    places = []
    if is_folder(source):
        place = storage.expanded(source)
        places = [place / "data", place]
    elif is_file(source) and Path(source).name in (_HDF5, _METADATA):
        places = [storage.expanded(source).parent]
    elif _ID.fullmatch(source):
        places = [_local_datasets() / source / "data"]
    return next((place for place in places if is_file(str(place / _METADATA))), None)


@register_writer("minari")
class MinariWriter(FormatWriter):
    """Writes Minari's HDF5 form; images as they are, not as lossy JPEG.

    The dataset's id is the folder's path below Minari's own folder (`MINARI_DATASETS_PATH`), or
    its name; `-v0` follows where it has no version.
    """

    def __init__(
        self, folder: Path, target: Path, env_meta: Mapping[str, Any], attrs: Mapping[str, Any]
    ) -> None:
        super().__init__(folder, target, env_meta, attrs)
        self._id = _id_of(target)
        (folder / "data").mkdir()
        self._stack = ExitStack()
        place = folder / "data" / _HDF5
        self._file, self._check = self._stack.enter_context(writing_hdf5(place, track_order=True))
        self._episodes = self._steps = 0
        self._spaces: dict[str, Space] = {}
        self._lines: dict[str, None] = {}

    def add(self, episode: RecordedEpisode) -> None:
        """Writes an episode.

        Raises:
            DatasetError: its observations or actions are of other shapes than those before it.
        """
        steps = len(episode)
        observations = {
            ("" if set(episode.obs) == {FLAT_KEY} else key): np.concatenate(
                [x, episode.next_obs[key][-1:] if key in episode.next_obs else x[-1:]]
            )
            for key, x in episode.obs.items()
        }
        if not observations:
            raise DatasetError(
                f"demo {self._episodes} has no observations, which Minari needs: extract them first"
            )
        self._check_spaces(observations, episode.actions)
        dones = np.zeros(steps) if episode.dones is None else np.asarray(episode.dones)
        terminations = dones.reshape(steps) > 0
        truncations = np.zeros(steps, bool)
        truncations[-1] = not terminations[-1]
        given = "truncated" in episode.others
        if given:
            truncations = np.asarray(episode.others["truncated"]).reshape(steps) > 0
        rewards = np.zeros(steps) if episode.rewards is None else episode.rewards
        group = self._file.create_group(f"episode_{self._episodes}")
        group.attrs["id"] = self._episodes
        group.attrs["total_steps"] = steps
        if isinstance(seed := episode.attrs.get("seed"), int | np.integer):
            group.attrs["seed"] = int(seed)
        for name, values in observations.items():
            group[f"observations/{name}".rstrip("/")] = values
        group["actions"] = episode.actions
        group["rewards"] = np.asarray(rewards).reshape(steps)
        group["terminations"], group["truncations"] = terminations, truncations
        self._add_infos(group, episode)
        self._check()
        self._episodes += 1
        self._steps += steps
        self._note(episode, given)

    def _check_spaces(self, observations: Mapping[str, Array], actions: Array) -> None:
        spaces = {
            "observation_space": nested({key: box(x[0]) for key, x in observations.items()}),
            "action_space": box(actions[0]),
        }
        if self._spaces and spaces != self._spaces:
            raise DatasetError(
                f"demo {self._episodes} has other keys, shapes or types of observations and actions"
                " than the demos before it, but a Minari dataset has one space: convert the demos"
                " that agree"
            )
        self._spaces = spaces

    def _add_infos(self, group: h5py.Group, episode: RecordedEpisode) -> None:
        for name, values in episode.others.items():
            if not name.startswith("infos/"):
                continue
            reset = episode.attrs.get(f"{_RESET}{name.removeprefix('infos/')}")
            if reset is None:
                group[name] = values
            else:
                first = np.asarray(reset).astype(values.dtype).reshape(1, *values.shape[1:])
                group[name] = np.concatenate([first, values])

    def _note(self, episode: RecordedEpisode, given: bool) -> None:
        lines = [f"obs/{key} -> observations" for key in episode.obs]
        lines += [
            f"no next_obs/{key}: the last of obs/{key} stands twice"
            for key in episode.obs
            if key not in episode.next_obs
        ]
        lines += ["actions -> actions"]
        lines += ["no rewards: 0"] if episode.rewards is None else ["rewards -> rewards"]
        lines += ["no dones: never terminated"] if episode.dones is None else []
        lines += [] if episode.dones is None else ["dones -> terminations"]
        lines += [
            "truncated -> truncations"
            if given
            else "truncations: at the last step of a demo that does not end in a done"
        ]
        kept = ("truncated", "infos/")
        left = [name for name in episode.others if not name.startswith(kept)]
        left += ["states"] if episode.states is not None else []
        lines += [f"{name}: left out" for name in left]
        lines += [f"filter key '{key}': left out" for key in episode.filter_keys]
        self._lines |= dict.fromkeys(lines)

    def finish(self) -> None:
        """Writes `metadata.json`."""
        self._stack.close()
        spec = self._env_spec()
        size = (self.folder / "data" / _HDF5).stat().st_size
        meta = {
            "total_episodes": self._episodes,
            "total_steps": self._steps,
            "data_format": "hdf5",
            "jpeg_encoding": False,
            **{key: json.dumps(space) for key, space in self._spaces.items()},
            **({} if spec is None else {"env_spec": spec}),
            "dataset_id": self._id,
            "minari_version": _VERSION,
            "dataset_size": round(size / 1e6, 1),
        }
        (self.folder / "data" / _METADATA).write_text(json.dumps(meta))
        self.mapping = [*self._lines, f"id: {self._id}"]

    def close(self) -> None:
        """Closes the HDF5 file."""
        self._stack.close()

    def _env_spec(self) -> str | None:
        """The environment as gymnasium writes it, where it knows the environment by its id."""
        import gymnasium

        name = self.env_meta.get("env_name")
        if not isinstance(name, str) or self.env_meta.get("type") not in (EnvType.GYM_TYPE, None):
            self._lines[f"environment {name!r}: left out, it is none of gymnasium's"] = None
            return None
        spec = gymnasium.registry.get(name)
        if spec is None:
            self._lines[f"environment '{name}': left out, gymnasium does not know it here"] = None
            return None
        whole = parse_json(spec.to_json())
        whole["kwargs"] = {**whole["kwargs"], **(self.env_meta.get("env_kwargs") or {})}
        return json.dumps(whole)


def _id_of(target: Path) -> str:
    """The id of a dataset that will lie at a path."""
    root = _local_datasets().absolute()
    name = str(target.relative_to(root)) if target.is_relative_to(root) else target.name
    if not re.search(r"-v\d+$", name):
        name = f"{name}-v0"
    if not _ID.fullmatch(name):
        raise DatasetError(
            f"'{name}' is no id of a Minari dataset: name the folder by letters, digits, _ and -,"
            " such as hopper-v0"
        )
    return name
