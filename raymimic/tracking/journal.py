"""The spool of a run: what its training said, in order, on the local disk.

``journal.jsonl`` holds one JSON object a line, appended by the training and never
rewritten; ``cursor.json`` holds how far it was delivered, and to which MLflow run. A
line is written by one ``write``, so killing the training costs at most the line that
it was writing. Nothing here knows MLflow.
"""

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

JOURNAL = "journal.jsonl"
CURSOR = "cursor.json"
ARTIFACTS = "artifacts"
RUN_FILE = "mlflow_run.json"


def spool_dir_of(run_dir: Path) -> Path:
    """The folder in which a run keeps its spool."""
    return run_dir / "logs" / "mlflow"


def one_line(error: Exception) -> str:
    """An exception as a short line: its kind and the beginning of its message."""
    first, *_ = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first[:200]}"


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file in one step, so that no reader ever sees half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object, an empty one when the file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(path.read_text())
        if isinstance(value, dict):
            return value
    return {}


@dataclass(frozen=True)
class Record:
    """One line of a journal.

    Attributes:
        end: where the line ends in the file [bytes], newline included.
        data: what it says; ``data["type"]`` is start, epoch, numbers, tags, artifact or finish
            and ``data["time"]`` when it happened [ms since 1970].
    """

    end: int
    data: dict[str, Any]

    @property
    def type(self) -> str:
        """What kind of record this is."""
        return str(self.data["type"])


class JournalWriter:
    """Appends records to the journal of a spool folder.

    Args:
        spool_dir: made if it is not there.
    """

    def __init__(self, spool_dir: Path) -> None:
        spool_dir.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(spool_dir / JOURNAL, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            os.write(self._fd, b"\n")  # ends the line in which a killed training stopped

    def append(self, data: dict[str, Any]) -> None:
        """Appends one record; it survives the death of this process from here on.

        Raises:
            OSError: the disk is full or gone.
        """
        line = json.dumps(data).encode() + b"\n"
        if os.write(self._fd, line) != len(line):
            os.write(self._fd, b"\n")
            raise OSError("the spool could not be written in full; is the disk full?")

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)


class JournalReader:
    """Reads a journal that may still grow.

    Args:
        spool_dir: folder of the journal.
    """

    def __init__(self, spool_dir: Path) -> None:
        self._path = spool_dir / JOURNAL
        self._offset = 0

    def read(self) -> list[Record]:
        """The records that were completed since the last call; damaged lines are left out."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            complete, newline, _ = file.read().rpartition(b"\n")
        records = []
        for line in (complete + newline).splitlines(keepends=True):
            self._offset += len(line)
            with contextlib.suppress(ValueError):
                data = json.loads(line)
                if isinstance(data, dict) and "type" in data:
                    records.append(Record(self._offset, data))
        return records


@dataclass
class Cursor:
    """How far a journal was delivered.

    Attributes:
        run_id: the MLflow run that has it; another run starts again from the first line.
        offset: records that end here or before are delivered [bytes].
        deferred: artifact records before the offset that the artifact store did not take.
    """

    run_id: str | None = None
    offset: int = 0
    deferred: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def load(cls, spool_dir: Path) -> "Cursor":
        """The stored cursor, or one at the beginning."""
        stored = read_json(spool_dir / CURSOR)
        return cls(
            stored.get("run_id"), int(stored.get("offset", 0)), list(stored.get("deferred", []))
        )

    def save(self, spool_dir: Path) -> None:
        """Stores the cursor atomically."""
        write_json(spool_dir / CURSOR, vars(self))


def has_finish(records: Sequence[Record]) -> bool:
    """Whether the latest training of a run said how it ended."""
    lifecycle = [record.type for record in records if record.type in {"start", "finish"}]
    return lifecycle[-1:] == ["finish"]


def is_finished(spool_dir: Path) -> bool:
    """Whether the latest training of a run said how it ended; so too where none left a journal."""
    try:
        return has_finish(JournalReader(spool_dir).read())
    except FileNotFoundError:
        return True


def pending(spool_dir: Path) -> int:
    """How many records wait for delivery."""
    cursor = Cursor.load(spool_dir)
    undelivered = sum(record.end > cursor.offset for record in JournalReader(spool_dir).read())
    return undelivered + len(cursor.deferred)
