"""robomimic's HDF5 itself: a copy in one file, without links, gaps in numbers and stale totals.

Other formats that are forms of it have a subclass each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from raymimic.data.convert.heads import Head
from raymimic.data.convert.registry import FormatReader, register_format
from raymimic.data.hdf5 import DemoReader, open_dataset
from raymimic.data.metadata import demo_names, read_metadata
from raymimic.data.writer import Array, RecordedEpisode
from raymimic.errors import DatasetError


@dataclass
class DemoArrays:
    """The arrays of a demo.

    Attributes:
        obs: those of its group `obs`, by key.
        next_obs: those of its group `next_obs`.
        others: all others, by name; `actions` among them.
    """

    obs: dict[str, Array] = field(default_factory=dict)
    next_obs: dict[str, Array] = field(default_factory=dict)
    others: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def read(cls, demo: DemoReader) -> DemoArrays:
        """Reads a demo.

        Raises:
            DatasetError: it has no actions, or an array cannot be read.
        """
        arrays = cls()
        for name in demo.shapes():
            values = demo.reader.values(demo.numbers(name).item, f"{demo}: '{name}'")
            group, _, key = name.partition("/")
            groups = {"obs": arrays.obs, "next_obs": arrays.next_obs}
            if group in groups and key:
                groups[group][key] = values
            else:
                arrays.others[name] = values
        if "actions" not in arrays.others:
            raise DatasetError(f"{demo} has no 'actions': record it again, or remove it")
        return arrays

    @property
    def steps(self) -> int:
        """The demo's steps."""
        return len(self.others["actions"])

    def drop_others_of_another_length(self) -> list[str]:
        """Drops further arrays without a row for each step; returns their names."""
        dropped = [name for name, x in self.others.items() if len(x) != self.steps]
        for name in dropped:
            del self.others[name]
        return dropped

    def episode(
        self, attrs: Mapping[str, Any], filter_keys: tuple[str, ...] = ()
    ) -> RecordedEpisode:
        """The demo as an episode."""
        others = dict(self.others)
        return RecordedEpisode(
            obs=self.obs,
            actions=others.pop("actions"),
            next_obs=self.next_obs,
            rewards=others.pop("rewards", None),
            dones=others.pop("dones", None),
            states=others.pop("states", None),
            others=others,
            attrs=attrs,
            filter_keys=filter_keys,
        )


@register_format("robomimic")
class RobomimicReader(FormatReader):
    """Reads all that the demos hold, in the file's own types."""

    trains_as_is = True
    general = True

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self._meta = read_metadata(source)
        if self._meta.problems:
            raise DatasetError(self._meta.problems[0])
        self._lines: dict[str, None] = {}

    @classmethod
    def recognises(cls, head: Head) -> bool:
        """Whether it is an HDF5 file with demos in its group `data`."""
        return head.demo is not None

    @property
    def env_meta(self) -> dict[str, Any]:
        """The environment that the file states."""
        return self._meta.env_meta

    @property
    def attrs(self) -> dict[str, Any]:
        """Further attributes, such as measured returns."""
        return self._meta.attrs

    @property
    def num_episodes(self) -> int:
        """Demos of the file."""
        return self._meta.num_demos

    @property
    def mapping(self) -> list[str]:
        """The changes that subclasses make."""
        return list(self._lines)

    def note(self, *lines: str) -> None:
        """Adds lines to the mapping, each once."""
        self._lines |= dict.fromkeys(lines)

    def episodes(self) -> Iterator[RecordedEpisode]:
        """Yields the demos by number."""
        members = {key: set(names) for key, names in self._meta.filter_keys.items()}
        with open_dataset(self.source) as reader:
            for name in demo_names(reader):
                demo = reader.demo(name)
                if demo is None or name in self._meta.others:
                    continue
                keys = tuple(key for key, names in members.items() if name in names)
                attrs = reader.attributes(demo.group)
                arrays = DemoArrays.read(demo)
                self.complete(demo, arrays, attrs)
                yield arrays.episode(attrs, keys)

    def complete(self, demo: DemoReader, arrays: DemoArrays, attrs: dict[str, Any]) -> None:
        """Changes a demo's arrays and attributes, for forms of the format.

        Args:
            demo: the demo, for complaints.
            arrays: to be changed.
            attrs: to be changed.
        """
