"""The demos of a dataset that is being written, one file each, until all are there.

They lie in a folder beside the dataset, `<file>.parts`. A command that was killed finds them there
when it is given again, and plays the others only.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import h5py

from raymimic.data.writer import DatasetWriter, RecordedEpisode, writing_dataset
from raymimic.errors import OutputError
from raymimic.storage import is_uri, lock, read_json, remove_tree, write_json

logger = logging.getLogger(__name__)

_PLAN, _LOCK, _PARTS = "plan.json", "lock", "*.hdf5"


class Parts:
    """The finished demos; made by `keeping_parts`.

    Args:
        folder: of their files.
        compress: stores images compressed, see `DatasetWriter`.

    Attributes:
        whole: where the dataset is put together, to be moved to its place.
    """

    def __init__(self, folder: Path, compress: bool) -> None:
        self.whole = folder / "whole.part"
        self._folder, self._compress = folder, compress

    def __contains__(self, index: int) -> bool:
        return self._file(index).exists()

    def save(self, index: int, episode: RecordedEpisode) -> None:
        """Keeps a finished demo.

        Raises:
            OutputError: it cannot be written; the others stay.
        """
        with writing_dataset(self._file(index), {}, compress=self._compress) as writer:
            writer.add(episode)

    def copy(
        self, index: int, writer: DatasetWriter, name: str, filter_keys: Iterable[str]
    ) -> None:
        """Copies a finished demo into the dataset, under a name.

        Raises:
            OutputError: it is damaged.
        """
        file = self._file(index)
        try:
            part = h5py.File(file)
            demo = part["data/demo_0"]
        except (KeyError, OSError) as error:
            raise OutputError(
                f"'{file}' is damaged: delete it, and the command plays this demo again"
            ) from error
        with part:
            writer.copy(demo, name, filter_keys)

    def _file(self, index: int) -> Path:
        return self._folder / f"{index:06}.hdf5"


@contextmanager
def keeping_parts(
    out: str | Path, plan: Mapping[str, Any], compress: bool = False
) -> Iterator[Parts]:
    """Scope in which the demos of a dataset are kept until it is written.

    Args:
        out: the dataset; its parts are in the folder `<out>.parts`.
        plan: all that the demos follow from, as JSON values. Parts of another plan are refused.
        compress: stores images compressed, see `DatasetWriter`.

    Yields:
        The parts. They are deleted at the end, and stay if the block raises.

    Raises:
        OutputError: the folder belongs to another plan or another process, or cannot be written.
    """
    if is_uri(str(out)):
        raise OutputError(f"cannot write '{out}': it must be a local file; copy it then")
    folder = Path(f"{out}.parts")
    with ExitStack() as stack:
        try:
            _begin(stack, str(out), folder, json.loads(json.dumps(plan)))
        except OSError as error:
            raise OutputError(
                f"cannot write '{folder}': {error.strerror or error}; make room there or choose "
                "another place"
            ) from error
        try:
            yield Parts(folder, compress)
        except BaseException:
            if not any(folder.glob(_PARTS)):
                remove_tree(str(folder))  # nothing to go on with
            else:
                logger.warning("finished demos are in '%s': the same command goes on", folder)
            raise
        remove_tree(str(folder))


def _begin(stack: ExitStack, out: str, folder: Path, plan: Mapping[str, Any]) -> None:
    """Takes the folder for this process and this plan."""
    folder.mkdir(parents=True, exist_ok=True)
    if {path.name for path in folder.iterdir()} - {_LOCK} and not (folder / _PLAN).is_file():
        raise OutputError(
            f"'{folder}' is there already, and not of this command, which would delete it: move "
            "it, or choose another name"
        )
    held = stack.enter_context((folder / _LOCK).open("w"))
    try:
        lock(held)
    except BlockingIOError as error:
        raise OutputError(
            f"another process is writing '{out}': wait for it, or choose another name"
        ) from error
    kept = read_json(folder / _PLAN)
    if any(folder.glob(_PARTS)) and kept != plan:
        differing = [key for key in plan if kept.get(key) != plan[key]]
        raise OutputError(
            f"'{folder}' holds demos of an earlier run with another {', '.join(differing)}: give "
            "the same arguments to go on with them, delete the folder, or choose another name"
        )
    write_json(folder / _PLAN, plan)
