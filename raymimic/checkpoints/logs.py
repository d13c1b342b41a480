"""The two records that a run appends to: `epochs.jsonl` and `evaluations.jsonl`.

Each has one writer: rank 0 appends epochs, the driver appends evaluations. On a disk a record is
one file. Object stores cannot append, so behind a URI it is a folder of the same name without
`.jsonl`, with one numbered part per append; no part is ever changed by an append.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raymimic import storage
from raymimic.checkpoints.records import EpochRecord, Evaluation
from raymimic.checkpoints.typed_json import UnknownFieldError, from_json
from raymimic.errors import CheckpointError
from raymimic.lease import Lease

EPOCHS, EVALUATIONS = "epochs", "evaluations"


@dataclass(frozen=True)
class LogPrefix:
    """The part of `epochs.jsonl` that belongs to a checkpoint.

    Attributes:
        length: in bytes, from the beginning.
        sha256: of these bytes, in hexadecimal.
    """

    length: int
    sha256: str


class JsonLinesLog:
    """Lines of JSON that only grow, on a disk or behind a URI.

    Args:
        run_dir: folder or URI of the run.
        name: `epochs` or `evaluations`.
        lease: the permission to write behind a URI; None where none is needed.

    Attributes:
        path: the file, or the folder of its parts.
    """

    def __init__(self, run_dir: str, name: str, lease: Lease | None = None) -> None:
        self._remote = storage.is_uri(run_dir)
        self.path = storage.join(run_dir, name if self._remote else f"{name}.jsonl")
        self._lease = lease
        self._number: int | None = None  # of the last part

    def read_bytes(self) -> bytes | None:
        """Reads the whole log; `None` where there is none.

        Raises:
            CheckpointError: it cannot be read.
        """
        try:
            if self._remote:
                parts = self._parts()
                return b"".join(storage.read_many(parts)) if parts else None
            return storage.read_bytes(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise CheckpointError(
                f"cannot read '{self.path}' ({error.strerror or error}); move it away, and "
                "--resume goes on without it"
            ) from error

    def append_bytes(self, data: bytes) -> None:
        """Adds lines, which are on the disk or in the store when this returns.

        Raises:
            OutputError: they cannot be written.
            LeaseLostError: another process has taken over the run.
        """
        if self._lease is not None:
            self._lease.check()
        if not self._remote:
            storage.append_bytes(self.path, data)
            return
        if self._number is None:
            self._number = max((int(Path(part).stem) for part in self._parts()), default=0)
        self._number += 1
        storage.write_bytes(storage.join(self.path, f"{self._number:08d}.jsonl"), data)

    def retain(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drops lines, and all that is no whole line of JSON.

        Args:
            wanted: whether a line stays.

        Raises:
            OutputError: it cannot be written.
            LeaseLostError: another process has taken over the run.
        """
        # From the end, so that a kill in between leaves a beginning.
        for part in reversed(self._parts()):
            content = storage.read_bytes(part)
            kept = b"".join(line for line in _whole_lines(content) if _is_wanted(line, wanted))
            if kept == content:
                continue
            if self._lease is not None:
                self._lease.check()
            if kept or not self._remote:
                storage.write_bytes(part, kept)
            else:
                storage.remove(part)

    def copy_to(self, run_dir: str) -> None:
        """Copies the log into another folder of the same storage."""
        for part in self._parts():
            target = Path(part).name if not self._remote else "/".join(part.split("/")[-2:])
            storage.write_bytes(storage.join(run_dir, target), storage.read_bytes(part))

    def _parts(self) -> list[str]:
        if not self._remote:
            return [self.path] if Path(self.path).is_file() else []
        names = storage.files(self.path)
        return [
            storage.join(self.path, name)
            for name in names
            if name.endswith(".jsonl") and Path(name).stem.isdigit()
        ]


class EpochLog(JsonLinesLog):
    """`epochs.jsonl`: one line for each epoch, in order.

    Rank 0 appends to it before the commit that contains these epochs. The checkpoint records how
    much of it belongs to the run so far; a resumed run drops the rest.

    Args:
        run_dir: folder or URI of the run.
        lease: the permission to write behind a URI; None where none is needed.
    """

    def __init__(self, run_dir: str, lease: Lease | None = None) -> None:
        super().__init__(run_dir, EPOCHS, lease)
        self._begin(b"")
        self._has_rest = False

    @property
    def prefix(self) -> LogPrefix:
        """The content loaded and appended so far."""
        return LogPrefix(self._length, self._digest.hexdigest())

    def load(self, prefix: LogPrefix | None, checkpoint: str) -> list[EpochRecord] | None:
        """Reads the epochs of a checkpoint; the next append continues after them.

        Args:
            prefix: as the checkpoint records it; `None` before the first one.
            checkpoint: its path, for messages.

        Returns:
            the epochs; `None` where the log is lost.

        Raises:
            CheckpointError: the log is damaged, or another one.
        """
        content = self.read_bytes()
        self._has_rest = bool(content)
        self._begin(b"")
        if content is None or prefix is None:
            return None if prefix is not None and prefix.length else []
        head = content[: prefix.length]
        if hashlib.sha256(head).hexdigest() != prefix.sha256:
            raise CheckpointError(
                f"'{self.path}' is damaged, or belongs to other checkpoints: its first "
                f"{prefix.length} bytes do not have the SHA-256 that '{checkpoint}' lists; restore "
                "the earlier file, or move it away, and --resume goes on without the metrics of "
                "the epochs so far"
            )
        self._begin(head)
        self._has_rest = len(content) > prefix.length
        try:
            return [from_json(EpochRecord, json.loads(line)) for line in head.splitlines()]
        except (ValueError, RecursionError, KeyError, TypeError, UnknownFieldError) as error:
            raise CheckpointError(f"'{self.path}' is not a list of epochs: {error!r}") from error

    def append(self, records: Iterable[EpochRecord]) -> LogPrefix:
        """Adds epochs.

        Returns:
            the log's entry in a checkpoint.

        Raises:
            OutputError: they cannot be written.
            LeaseLostError: another process has taken over the run.
        """
        lines = b"".join(_line(asdict(record)) for record in records)
        if lines:
            self.append_bytes(lines)
            self._digest.update(lines)
            self._length += len(lines)
        return self.prefix

    def replace(self, content: bytes, epoch: int) -> None:
        """Begins again with the epochs of another run's log.

        Args:
            content: of the other log.
            epoch: the last epoch that is taken over.

        Raises:
            OutputError: they cannot be written.
        """
        self.retain(lambda line: False)
        lines = _whole_lines(content)
        taken = [line for line in lines if _is_wanted(line, lambda r: bool(r["epoch"] <= epoch))]
        self.append_bytes(b"".join(taken))

    def drop_after(self, epoch: int) -> None:
        """Drops the epochs of a commit that was not completed, if `load` has seen any.

        Args:
            epoch: of the checkpoint that the run goes on from.
        """
        if self._has_rest:
            self.retain(lambda line: bool(line["epoch"] <= epoch))
            self._has_rest = False

    def _begin(self, content: bytes) -> None:
        self._digest, self._length = hashlib.sha256(content), len(content)


class EvaluationLog(JsonLinesLog):
    """`evaluations.jsonl`: one line for each evaluation, in the order in which they came back.

    Each line holds the SHA-256 of its other content.

    Args:
        run_dir: folder or URI of the run.
        lease: the permission to write behind a URI; None where none is needed.
    """

    def __init__(self, run_dir: str, lease: Lease | None = None) -> None:
        super().__init__(run_dir, EVALUATIONS, lease)

    def read(self) -> list[Evaluation]:
        """Reads all evaluations; the last one of an epoch counts.

        A line that a killed driver has not completed does not count.

        Raises:
            CheckpointError: a line is damaged.
        """
        evaluations: dict[int, Evaluation] = {}
        for number, line in enumerate(_whole_lines(self.read_bytes() or b""), 1):
            try:
                content = json.loads(line)
                if content.pop("sha256") != _digest_of(content):
                    raise ValueError("its SHA-256 is another one")
                evaluation = from_json(Evaluation, content)
            except (
                *(AttributeError, KeyError, RecursionError, TypeError, ValueError),
                UnknownFieldError,
            ) as error:
                raise CheckpointError(
                    f"'{self.path}' is damaged in line {number} ({error}); restore the earlier "
                    "file, or move it away, and --resume evaluates the run's checkpoints again"
                ) from error
            evaluations.pop(evaluation.epoch, None)
            evaluations[evaluation.epoch] = evaluation
        return list(evaluations.values())

    def append(self, evaluation: Evaluation) -> None:
        """Adds an evaluation.

        Raises:
            OutputError: it cannot be written.
            LeaseLostError: another process has taken over the run.
        """
        content = json.loads(json.dumps(asdict(evaluation)))
        self.append_bytes(_line({**content, "sha256": _digest_of(content)}))

    def drop_after(self, epoch: int) -> None:
        """Drops evaluations of later epochs, which are trained again, and a line cut short."""
        content = self.read_bytes()
        if content and (
            not content.endswith(b"\n")
            or any(evaluation.epoch > epoch for evaluation in self.read())
        ):
            self.retain(lambda line: bool(line["epoch"] <= epoch))


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _whole_lines(content: bytes) -> list[bytes]:
    return [line + b"\n" for line in content.split(b"\n")[:-1]]


def _is_wanted(line: bytes, wanted: Callable[[dict[str, Any]], bool]) -> bool:
    try:
        return wanted(json.loads(line))
    except (KeyError, RecursionError, TypeError, ValueError):
        return False
