"""The spool of a run: its records in order, on the local disk, until MLflow has them.

The training appends one JSON object a line to `journal.jsonl` and never rewrites it; `cursor.json`
says how far it was delivered, and to which MLflow run. One `write` writes a line, so killing the
training costs at most the line that it was writing. Nothing here imports MLflow.

A spool is untrusted: everything read from it is checked, no file outside of it is opened,
and only its owner may read it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from raymimic.credentials import secrets_in, without
from raymimic.errors import OutputError
from raymimic.storage import MAX_JSON_BYTES, open_own, read_json, write_json
from raymimic.tracking.episode_rows import are_episodes
from raymimic.tracking.run_contents import are_tensors, is_dataset_list, is_kept, is_sha256

JOURNAL = "journal.jsonl"
CURSOR = "cursor.json"
ARTIFACTS = "artifacts"
RUN_FILE = "mlflow_run.json"

# A journal may be long: no reader holds more of its records.
RECORDS_AT_A_TIME = 500

_MAX_INT = 2**63


def spool_dir_of(run_dir: Path) -> Path:
    """The folder in which a run keeps its spool."""
    return run_dir / "logs" / "mlflow"


def check_spool(run_dir: Path) -> None:
    """Refuses a spool of which a part lies outside of the run.

    Args:
        run_dir: folder of the run, absolute and without links.

    Raises:
        OutputError: a symbolic link leads out of the run.
    """
    spool = spool_dir_of(run_dir)
    for path in (spool.parent, spool, run_dir / RUN_FILE, *spool.rglob("*")):
        if path.is_symlink() and not path.resolve().is_relative_to(run_dir):
            raise OutputError(
                f"'{path}' is a link that leads out of the run '{run_dir}': remove it, and do not "
                "trust this folder if somebody else made it"
            )


def one_line(error: Exception) -> str:
    """An exception as a short line without passwords: its type and the message's beginning."""
    text = without(str(error), secrets_in(os.environ))
    first, *_ = text.strip().splitlines() or [""]
    return f"{type(error).__name__}: {first[:200]}"


def run_id_of(run_dir: Path) -> str | None:
    """The id of a run's record in MLflow; None until the server has given one."""
    return _id_in(read_json(run_dir / RUN_FILE), "run_id")


def ids_of(run_dir: Path, server: str) -> tuple[str, str] | None:
    """The ids of a run's experiment and record in MLflow.

    Args:
        run_dir: folder of the run.
        server: the store, without the password.

    Returns:
        both ids; None until this server has given them.
    """
    known = read_json(run_dir / RUN_FILE)
    experiment, run = _id_in(known, "experiment_id"), _id_in(known, "run_id")
    if experiment is None or run is None or known.get("tracking_uri") != server:
        return None
    return experiment, run


def _id_in(known: Mapping[str, Any], name: str) -> str | None:
    value = known.get(name)
    valid = isinstance(value, str) and re.fullmatch(r"\w[\w.-]{0,255}", value)
    return value if valid else None


def artifact_file(spool_dir: Path, copy: str) -> Path | None:
    """The file of an artifact record; `None` unless it lies in the spool, in a folder of its own.

    Args:
        spool_dir: folder of the journal, without links.
        copy: path of the copy, from the record.
    """
    parts = PurePosixPath(copy).parts
    path = spool_dir.joinpath(*parts)
    if len(parts) != 3 or parts[0] != ARTIFACTS or ".." in parts or path.resolve() != path:
        return None
    return path


@dataclass(frozen=True)
class Record:
    """One line of a journal.

    Attributes:
        end: end of the line in the file [bytes], newline included.
        data: the record; `data["type"]` is start, epoch, evaluation, numbers, system, tags,
            note, artifact, datasets, model, models or finish, and `data["time"]` is its time
            [ms since 1970].
    """

    end: int
    data: dict[str, Any]

    @property
    def type(self) -> str:
        """The type of the record."""
        return str(self.data["type"])


def _is_int(value: Any, least: int = 0, below: int = _MAX_INT) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < below


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, (*value, *value.values())))


def _are_numbers(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return all(isinstance(v, float) or _is_int(v, -_MAX_INT) for v in value.values())


def _is_folder(value: Any) -> bool:
    """Whether a value names a folder within a run, or none."""
    if value is None:
        return True
    parts = value.split("/") if _is_text(value) else [""]
    return not {"", ".", ".."} & set(parts)


# The fields of each type of record, besides `type` and `time`.
_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "start": {
        "key": _is_text,
        "tracking_uri": _is_text,
        "experiment": _is_text,
        "run_name": lambda value: value is None or _is_text(value),
        "params": _are_texts,
        "tags": _are_texts,
        "host": _is_text,
        "pid": lambda value: _is_int(value, 1, 2**31),
    },
    "epoch": {"epoch": _is_int, "step": _is_int, "metrics": _are_numbers},
    "evaluation": {
        "epoch": _is_int,
        "step": _is_int,
        "metrics": _are_numbers,
        "episodes": are_episodes,
    },
    "numbers": {"epoch": _is_int, "metrics": _are_numbers},
    "system": {"step": _is_int, "metrics": _are_numbers},
    "tags": {"tags": _are_texts},
    "note": {"text": _is_text},
    "artifact": {"copy": _is_text, "artifact_path": _is_folder},
    "datasets": {"datasets": is_dataset_list},
    "model": {
        "copy": _is_text,
        "example": _is_text,
        "name": lambda value: _is_text(value) and re.fullmatch(r"[\w.-]{1,200}", value),
        "sha256": is_sha256,
        "epoch": _is_int,
        "step": _is_int,
        "algo": _is_text,
        "inputs": are_tensors,
        "outputs": are_tensors,
    },
    "models": {"kept": is_kept},
    "finish": {"status": lambda value: value in ("FINISHED", "FAILED", "KILLED")},
}


def is_record(data: Any) -> bool:
    """Whether a value is a record as a training writes it."""
    if not isinstance(data, dict) or not isinstance(data.get("type"), str):
        return False
    fields = _FIELDS.get(data["type"])
    if fields is None or not _is_int(data.get("time")):
        return False
    return all(name in data and check(data[name]) for name, check in fields.items())


class JournalWriter:
    """Appends records to the journal of a spool folder.

    Args:
        spool_dir: made if it is not there.
    """

    def __init__(self, spool_dir: Path) -> None:
        spool_dir.mkdir(parents=True, exist_ok=True)
        spool_dir.chmod(0o700)
        self._path = spool_dir / JOURNAL
        self._file = open_own(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, "r+b")
        self._fd = self._file.fileno()
        os.fchmod(self._fd, 0o600)
        self._size = os.fstat(self._fd).st_size
        self._writing = threading.Lock()
        if self._size and os.pread(self._fd, 1, self._size - 1) != b"\n":
            self._write(b"\n")  # ends the half line of a killed training

    def append(self, data: dict[str, Any]) -> None:
        """Appends one record, which then survives the death of this process.

        Several threads may do so.

        Raises:
            OSError: the disk is full or gone; nothing of the record is left then.
        """
        with self._writing:
            self._write(json.dumps(data).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        written = 0
        try:
            while written < len(line):  # a nearly full disk takes a part
                written += os.write(self._fd, line[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise OSError(error.errno, os.strerror(error.errno or 0), str(self._path)) from error
        self._size += len(line)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class JournalReader:
    """Reads a journal that may still grow.

    Args:
        spool_dir: folder of the journal.
        offset: where the first line to read begins [bytes].

    Attributes:
        offset: end of the last line read [bytes].
        damaged: number of complete lines until now that are no records.
    """

    def __init__(self, spool_dir: Path, offset: int = 0) -> None:
        self._path = spool_dir / JOURNAL
        self.offset = offset
        self.damaged = 0

    def read(self, at_most: int | None = None, until: int | None = None) -> list[Record]:
        """The records completed since the last call; damaged lines are left out.

        Args:
            at_most: how many; the next call goes on behind them.
            until: end of the last line to read [bytes].

        Raises:
            OSError: there is no journal, or it is no plain file.
        """
        records: list[Record] = []
        with open_own(self._path, os.O_RDONLY, "rb") as file:
            file.seek(self.offset)
            for size, line in _lines(file):
                if until is not None and self.offset + size > until:
                    break
                self.offset += size
                data = None
                with contextlib.suppress(ValueError, RecursionError):
                    data = _parsed(line)
                if is_record(data):
                    records.append(Record(self.offset, cast(dict[str, Any], data)))
                elif line.strip():
                    self.damaged += 1
                if len(records) == at_most:
                    break
        return records

    def stream(self, until: int | None = None) -> Iterator[Record]:
        """As `read`, with a few records at a time in memory.

        Args:
            until: end of the last line to read [bytes].

        Raises:
            OSError: there is no journal, or it is no plain file.
        """
        while records := self.read(RECORDS_AT_A_TIME, until):
            yield from records


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """The complete lines of a file with their sizes; an overlong line is cut."""
    while True:
        line = file.readline(MAX_JSON_BYTES)
        size, part = len(line), line
        while part and not part.endswith(b"\n"):
            part = file.readline(MAX_JSON_BYTES)
            size += len(part)
        if not part:
            return
        yield size, line


def _parsed(line: bytes) -> Any:
    data = json.loads(line)
    # A file name that is not UTF-8 has half characters, which no server takes.
    text = json.dumps(data, ensure_ascii=False)
    return data if text.isascii() else json.loads(text.encode(errors="replace"))


@dataclass
class Cursor:
    """The position up to which a journal was delivered.

    Attributes:
        run_id: id of the MLflow run; a new run starts again from the first line.
        offset: records that end here or before are delivered [bytes].
        deferred: artifact records before the offset that the artifact store did not take.
    """

    run_id: str | None = None
    offset: int = 0
    deferred: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def load(cls, spool_dir: Path) -> Cursor:
        """The stored cursor, or one at the beginning."""
        stored = read_json(spool_dir / CURSOR)
        run_id, offset, deferred = (stored.get(key) for key in ("run_id", "offset", "deferred"))
        if not isinstance(run_id, str) or not isinstance(offset, int) or offset < 0:
            return cls()
        with contextlib.suppress(OSError), open_own(spool_dir / JOURNAL, os.O_RDONLY, "rb") as file:
            file.seek(max(offset - 1, 0))
            if offset and file.read(1) != b"\n":
                return cls()  # the cursor belongs to another journal
        records = deferred if isinstance(deferred, list) else []
        return cls(run_id, offset, [record for record in records if is_record(record)])

    def save(self, spool_dir: Path) -> None:
        """Stores the cursor atomically."""
        write_json(spool_dir / CURSOR, vars(self))


@dataclass
class JournalState:
    """How far a run has come, by its journal.

    Attributes:
        key: of the first start record; None before one.
        start: the latest start record; None before one.
        finished: whether the last training recorded how it ended.
        time: of the last record [ms since 1970].
    """

    key: str | None = None
    start: dict[str, Any] | None = None
    finished: bool = False
    time: int = 0

    def take(self, record: Record) -> None:
        """Takes in the next record."""
        self.time = record.data["time"]
        if record.type == "start":
            self.key = self.key or record.data["key"]
            self.start = record.data
        if record.type in {"start", "finish"}:
            self.finished = record.type == "finish"


def state_of(reader: JournalReader) -> JournalState:
    """How far a run has come.

    Args:
        reader: of its whole journal.

    Raises:
        OSError: there is no journal, or it is no plain file.
    """
    state = JournalState()
    for record in reader.stream():
        state.take(record)
    return state


def first_start(run_dir: Path) -> dict[str, Any] | None:
    """The record with which a run began; None for a new run.

    Args:
        run_dir: folder of the run.
    """
    with contextlib.suppress(OSError):
        for record in JournalReader(spool_dir_of(run_dir)).stream():
            if record.type == "start":
                return record.data
    return None


def machine_of(metric: str) -> str:
    """The part of a system metric's name that is the same for all of a machine: `system/node`."""
    return metric.rpartition("/")[0]


def system_steps(run_dir: Path) -> dict[str, int]:
    """The step of each machine's next system metrics, which count from 0.

    Args:
        run_dir: folder of the run.

    Returns:
        steps by `machine_of` their metrics.
    """
    steps: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for record in JournalReader(spool_dir_of(run_dir)).stream():
            if record.type == "system":
                following = record.data["step"] + 1
                steps |= {machine_of(metric): following for metric in record.data["metrics"]}
    return steps


def began_with_all_settings(run_dir: Path) -> bool:
    """Whether a run, such as one of raymimic 0.1.0, began with its whole config as parameters.

    Args:
        run_dir: folder of the run.
    """
    first = first_start(run_dir)
    return first is not None and "in_force" not in first


def is_finished(spool_dir: Path) -> bool:
    """True if the last training recorded how it ended, or if there is no journal."""
    try:
        return state_of(JournalReader(spool_dir)).finished
    except OSError:
        return True


def pending(spool_dir: Path) -> int:
    """Number of records that wait for delivery; 0 where the journal cannot be read."""
    cursor = Cursor.load(spool_dir)
    waiting = len(cursor.deferred)
    with contextlib.suppress(OSError):
        waiting += sum(1 for _ in JournalReader(spool_dir, cursor.offset).stream())
    return waiting


def records_of_epoch(spool_dir: Path, epoch: int, until: int) -> list[Record]:
    """The metrics of an epoch that a journal holds, each type's first record.

    Args:
        spool_dir: folder of the journal.
        epoch: the epoch.
        until: end of the last line to look at [bytes].

    Raises:
        OSError: there is no journal, or it is no plain file.
    """
    found: dict[tuple[str, tuple[str, ...]], Record] = {}
    for record in JournalReader(spool_dir).stream(until):
        if record.data.get("epoch") == epoch and "metrics" in record.data:
            found.setdefault((record.type, tuple(record.data["metrics"])), record)
    return list(found.values())
