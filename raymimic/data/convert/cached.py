"""Trains on datasets of other formats: each is converted once per node, into a cache."""

import hashlib
import json
import logging
import math
from pathlib import Path

import raymimic
from raymimic import storage
from raymimic.data.convert.conversion import convert, stamps
from raymimic.data.convert.registry import FormatReader, local_source, recognised_format
from raymimic.data.fetch import cache_dir
from raymimic.errors import OutputError
from raymimic.terminal import Counting

logger = logging.getLogger(__name__)


def trainable_file(source: str) -> str:
    """A file in robomimic's format for a dataset of any format that is known.

    Args:
        source: path, URI or id of a dataset, as `train.data` names it.

    Returns:
        The source itself, where it needs no conversion or its format is not known; else the file
        in this node's cache (`$RAYMIMIC_CACHE`). Its name follows from the names, sizes and times
        of change of the source's files, and its content is the same on all nodes. Processes of one
        node wait for each other by a file lock.

    Raises:
        DatasetError: the source is of several formats, or cannot be read.
        OutputError: the cache cannot be written.
    """
    kind = recognised_format(source)
    if kind is None or kind.trains_as_is:
        return source
    with kind(local_source(source)) as reader:
        return str(_converted(reader))


def _converted(reader: FormatReader) -> Path:
    state = json.dumps([raymimic.__version__, reader.format, stamps(reader.files)])
    key = hashlib.sha256(state.encode("utf-8", "surrogateescape")).hexdigest()[:20]
    folder = cache_dir() / "converted" / key
    target = folder / reader.file_name(reader.source)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            storage.lock(lock, patience_s=math.inf)
            if not target.exists():
                for killed in folder.glob(".*.part"):  # of a process that held the lock
                    killed.unlink()
                _convert(reader, target)
    except OSError as error:
        raise OutputError(
            f"dataset '{reader.source}' (format '{reader.format}') cannot be converted into the"
            f" cache '{folder}': {error.strerror or error}; make room there, or name another folder"
            " by the environment variable RAYMIMIC_CACHE"
        ) from error
    return target


def _convert(reader: FormatReader, target: Path) -> None:
    progress = Counting(f"converting '{reader.source}':", "episodes")
    try:
        made = convert(reader, target, progress)
    finally:
        progress.clear()
    logger.warning(
        "dataset '%s' (format '%s') was converted once into '%s': %s demos, %s transitions",
        *(reader.source, reader.format, target, f"{made.num_demos:,}"),
        f"{made.num_transitions:,}",
    )
