"""The folder of a sweep: what it was asked for, and what is known of each trial.

`<train.output_dir>/<name>/<time>/{sweep.json,results.jsonl,trials/<trial>/}` and the report's
files. `results.jsonl` is only ever appended to, and a trial's last line counts: so a killed driver
leaves at most half a line, and whoever reads it later knows all that the driver knew.
"""

import contextlib
import json
import time
from pathlib import Path
from typing import IO, Any

from raymimic.config import BaseConfig
from raymimic.errors import ConfigError, OutputError
from raymimic.sweep.result import TrialResult
from raymimic.sweep.spec import SweepSpec
from raymimic.training.run_folder import lock, run_base
from raymimic.utils import storage

SPEC = "sweep.json"
RESULTS = "results.jsonl"

# What may change when a sweep is resumed; all else would make it another one.
RESUMABLE = {"budget", "max_concurrent", "resources", "final_episodes"}


class SweepFolder:
    """One sweep's files, held by this process alone.

    Args:
        path: an existing folder.

    Raises:
        ConfigError: another process runs the sweep.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] = (path / ".lock").open("w")
        try:
            lock(self._lock)
        except BlockingIOError as error:
            self._lock.close()
            raise ConfigError(
                f"the sweep '{path}' is being run by another process; wait for it or end it"
            ) from error

    @classmethod
    def create(cls, spec: SweepSpec, config: BaseConfig) -> "SweepFolder":
        """Makes the folder of a new sweep; two sweeps never share one.

        Raises:
            ConfigError: results would go to a place that cannot hold a sweep.
            OutputError: it cannot be written.
        """
        parent = sweeps_of(spec, config)
        stamp = time.strftime("%Y%m%d%H%M%S")
        for attempt in range(1000):
            path = parent / (stamp if attempt == 0 else f"{stamp}_{attempt}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise OutputError(
                    f"cannot write to '{path}': {error.strerror or error}; choose another place "
                    "with --set train.output_dir=…"
                ) from error
            folder = cls(path)
            folder.write_spec(spec)
            return folder
        raise OutputError(f"1000 sweeps named '{spec.name}' started in one second; choose another")

    @classmethod
    def find(cls, spec: SweepSpec, config: BaseConfig) -> "SweepFolder":
        """The newest sweep of that name, to go on with.

        Raises:
            ConfigError: there is none, or it was another sweep.
        """
        parent = sweeps_of(spec, config)
        found = sorted(path.parent for path in parent.glob(f"*/{SPEC}"))
        if not found:
            raise ConfigError(
                f"no sweep named '{spec.name}' to resume in '{parent.parent}'; start it without "
                "--resume"
            )
        folder = cls(found[-1])
        before, now = json.loads((folder.path / SPEC).read_text()), _plain(spec.to_dict())
        for key in sorted((before.keys() | now.keys()) - RESUMABLE):
            if before.get(key) != now.get(key):
                folder.release()
                raise ConfigError(
                    f"a resumed sweep keeps its settings, but '{key}' differs from what "
                    f"'{folder.path / SPEC}' says; start a new sweep for it, without --resume"
                )
        folder.write_spec(spec)
        return folder

    @property
    def trials(self) -> str:
        """The folder of all trials."""
        return str(self.path / "trials")

    def write_spec(self, spec: SweepSpec) -> None:
        """Writes what the sweep was asked for."""
        storage.write_bytes(str(self.path / SPEC), json.dumps(spec.to_dict(), indent=2).encode())

    def results(self) -> dict[str, TrialResult]:
        """What is known of each trial, by its id, in the order in which they began."""
        results: dict[str, TrialResult] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in (self.path / RESULTS).read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # where a driver was killed
                    result = TrialResult.from_dict(json.loads(line))
                    results[result.trial_id] = result
        return results

    def add(self, result: TrialResult) -> None:
        """Appends what is known of a trial now."""
        with (self.path / RESULTS).open("a+b") as file:
            if file.tell() and not _ends_line(file):
                file.write(b"\n")
            file.write(json.dumps(result.to_dict()).encode() + b"\n")

    def release(self) -> None:
        """Lets others resume the sweep."""
        self._lock.close()


def sweeps_of(spec: SweepSpec, config: BaseConfig) -> Path:
    """The folder that holds all sweeps of a name.

    Raises:
        ConfigError: results would go to a URI, or to a folder that vanishes with a Ray job.
    """
    base = run_base(config)
    if storage.is_uri(base):
        raise ConfigError(
            f"results of a sweep go to a folder that all nodes share, not to '{base}': give its "
            "path as ray.storage_path"
        )
    return Path(base) / spec.name


def _plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    return json.loads(json.dumps(value))


def _ends_line(file: IO[bytes]) -> bool:
    file.seek(-1, 2)
    return file.read(1) == b"\n"
