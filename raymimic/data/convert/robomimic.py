"""robomimic's HDF5 itself: a copy in one file, without links, gaps in numbers and stale totals."""

from collections.abc import Iterator
from typing import Any

from raymimic.data.convert.heads import demo_of
from raymimic.data.convert.registry import FormatReader, register_format
from raymimic.data.hdf5 import DemoReader, open_dataset
from raymimic.data.metadata import demo_names, read_metadata
from raymimic.data.writer import Array, RecordedEpisode
from raymimic.errors import DatasetError


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

    @classmethod
    def recognises(cls, source: str) -> bool:
        """Whether it is an HDF5 file with demos in its group `data`."""
        return demo_of(source) is not None

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

    def episodes(self) -> Iterator[RecordedEpisode]:
        """Yields the demos by number."""
        members = {key: set(names) for key, names in self._meta.filter_keys.items()}
        with open_dataset(self.source) as reader:
            for name in demo_names(reader):
                demo = reader.demo(name)
                if demo is None or name in self._meta.others:
                    continue
                keys = tuple(key for key, names in members.items() if name in names)
                yield _episode(demo, keys)


def _episode(demo: DemoReader, filter_keys: tuple[str, ...]) -> RecordedEpisode:
    groups: dict[str, dict[str, Array]] = {"obs": {}, "next_obs": {}}
    others: dict[str, Array] = {}
    for name in demo.shapes():
        values = demo.reader.values(demo.numbers(name).item, f"{demo}: '{name}'")
        group, _, key = name.partition("/")
        if group in groups and key:
            groups[group][key] = values
        else:
            others[name] = values
    if "actions" not in others:
        raise DatasetError(f"{demo} has no 'actions': record it again, or remove it")
    return RecordedEpisode(
        obs=groups["obs"],
        actions=others.pop("actions"),
        next_obs=groups["next_obs"],
        rewards=others.pop("rewards", None),
        dones=others.pop("dones", None),
        states=others.pop("states", None),
        others=others,
        attrs=demo.reader.attributes(demo.group),
        filter_keys=filter_keys,
    )
