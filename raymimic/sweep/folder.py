"""The folder of a sweep: what it was asked for, and what is known of each trial.

`<storage_path or output_dir>/<name>/<time>/{sweep.json,results.jsonl,trials/<trial>/}` and the
report's files. `results.jsonl` is only ever appended to, and a trial's last line counts: so a
killed driver leaves at most half a line, and whoever reads it later knows all that the driver knew.

Where the storage is a URI, the driver writes to a local folder, of which it copies all files but
those of the trials there, now and then. A resumed sweep starts from these copies, on whichever
machine: what they do not know yet of a trial, its own folder at the URI tells again.
"""

import contextlib
import json
import time
from pathlib import Path
from typing import IO, Self

from raymimic.config import BaseConfig, config_factory
from raymimic.errors import ConfigError, OutputError
from raymimic.sweep.result import TrialResult
from raymimic.sweep.spec import SweepSpec
from raymimic.tracking.journal import read_json
from raymimic.training.run_folder import ResultFolder, newest, run_base
from raymimic.training.trainer import leaves
from raymimic.utils import storage

SPEC = "sweep.json"
RESULTS = "results.jsonl"
CLOCK = "clock.json"

# What may change when a sweep is resumed; all else would make it another one.
RESUMABLE = (
    *("budget.", "max_concurrent", "resources.", "final_episodes"),
    *("config.train.cuda", "config.ray.", "config.mlflow."),
)
_NOT_RESUMABLE = "config.ray.storage_path"

# Between two copies to a remote storage, and between two notes of the time [s].
_MIRROR_EVERY_S = 30.0
_NOTE_EVERY_S = 10.0


class SweepFolder(ResultFolder):
    """One sweep's files, held by this process alone."""

    KIND, HELD = "sweep", "run"

    def __init__(self, uri: str, local: Path) -> None:
        super().__init__(uri, local)
        self._mirrored_at = time.monotonic()

    @classmethod
    def create(cls, spec: SweepSpec) -> Self:
        """Makes the folder of a new sweep; two sweeps never share one.

        Raises:
            ConfigError: it would lie in a Ray job's working directory, which vanishes.
            OutputError: it cannot be written.
        """
        folder = cls.make(_base_config(spec), spec.name)
        folder.hold()
        folder.write_spec(spec)
        return folder

    @classmethod
    def find(cls, spec: SweepSpec) -> Self:
        """The newest sweep of that name, to go on with.

        Raises:
            ConfigError: there is none, or it was another sweep, or another process runs it.
        """
        config = _base_config(spec)
        found = newest(config, spec.name, SPEC)
        if found is None:
            raise ConfigError(
                f"no sweep named '{spec.name}' to resume in '{run_base(config)}'; start it without "
                "--resume"
            )
        folder = cls.at(found, config)
        folder.hold()
        try:
            folder.fetch(*storage.files(folder.uri))
            _check_same(folder, spec)
            folder.write_spec(spec)
        except BaseException:
            folder.release()
            raise
        return folder

    @property
    def trials(self) -> str:
        """The folder of all trials."""
        return storage.join(self.uri, "trials")

    def write_spec(self, spec: SweepSpec) -> None:
        """Writes what the sweep was asked for."""
        content = json.dumps(spec.to_dict(), indent=2).encode()
        for folder in {self.uri, str(self.local)}:
            storage.write_bytes(storage.join(folder, SPEC), content)

    def results(self) -> dict[str, TrialResult]:
        """What is known of each trial, by its id, in the order in which they began."""
        results: dict[str, TrialResult] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in (self.local / RESULTS).read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # where a driver was killed
                    result = TrialResult.from_dict(json.loads(line))
                    results[result.trial_id] = result
        return results

    def add(self, result: TrialResult) -> None:
        """Appends what is known of a trial now.

        Raises:
            OutputError: the folder cannot be written.
        """
        path = self.local / RESULTS
        try:
            with path.open("a+b") as file:
                if file.tell() and not _ends_line(file):
                    file.write(b"\n")
                file.write(json.dumps(result.to_dict()).encode() + b"\n")
        except OSError as error:
            raise OutputError(
                f"cannot write '{path}': {error.strerror or error}; make room there, then "
                "--resume goes on with the sweep"
            ) from error
        ended = result.status != "running"
        if ended or time.monotonic() - self._mirrored_at >= _MIRROR_EVERY_S:
            self.mirror()
            self._mirrored_at = time.monotonic()

    def _own_files(self) -> list[Path]:
        files = (path for path in self.local.iterdir() if path.is_file())
        return sorted(path for path in files if not path.name.startswith("."))


class Clock:
    """How long a sweep has searched, in all its sessions.

    Args:
        folder: local folder of the sweep.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / CLOCK
        self._before = float(read_json(self._path).get("seconds", 0.0))
        self._begin = self._noted = time.monotonic()

    def seconds(self) -> float:
        """The time until now [s]; it is noted for later sessions now and then.

        Raises:
            OutputError: the folder cannot be written.
        """
        now = time.monotonic()
        seconds = self._before + now - self._begin
        if now - self._noted >= _NOTE_EVERY_S:
            storage.write_bytes(str(self._path), json.dumps({"seconds": seconds}).encode())
            self._noted = now
        return seconds


def _base_config(spec: SweepSpec) -> BaseConfig:
    return config_factory(spec.algo, spec.base_config)


def _check_same(folder: SweepFolder, spec: SweepSpec) -> None:
    may_change: tuple[str, ...] = RESUMABLE
    if storage.is_uri(folder.uri):  # each machine has a local folder of its own
        may_change += ("config.train.output_dir",)
    before = dict(leaves(json.loads((folder.local / SPEC).read_text())))
    now = dict(leaves(json.loads(json.dumps(spec.to_dict()))))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) == now.get(key):
            continue
        if not key.startswith(may_change) or key == _NOT_RESUMABLE:
            raise ConfigError(
                f"a resumed sweep keeps its settings, but {key} was {before.get(key)!r} and now is "
                f"{now.get(key)!r}; start a new sweep for it, without --resume"
            )


def _ends_line(file: IO[bytes]) -> bool:
    file.seek(-1, 2)
    return file.read(1) == b"\n"
