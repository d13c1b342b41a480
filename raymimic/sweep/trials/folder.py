"""The folder of a sweep: its spec, its results, its trials.

`<storage_path or output_dir>/<name>/<time>/{sweep.json,results.jsonl,trials/<trial>/}` and the
report's files. `results.jsonl` only grows, and a trial's last line counts: so a killed driver
leaves at most half a line, and loses nothing else.

Where the storage is a URI, the driver writes to a local folder and copies all files but the trials'
to the URI from time to time. A resumed sweep starts from these copies, on any machine. Where they
are out of date, the trials' own folders at the URI supply the rest.
"""

import contextlib
import json
import time
from pathlib import Path
from typing import IO, Any, Self

from raymimic import storage
from raymimic.config import BaseConfig, config_factory
from raymimic.errors import ConfigError, DatasetError, OutputError
from raymimic.storage import read_json
from raymimic.sweep.outcome.result import TrialResult
from raymimic.sweep.spec.sweep_spec import SweepSpec
from raymimic.training.resume import changed, matches
from raymimic.training.run_folder import ResultFolder, newest, run_base

SPEC = "sweep.json"
RESULTS = "results.jsonl"
CLOCK = "clock.json"
DATA = "data.json"

# Settings that may change when a sweep is resumed, as they change no score.
FREE = (
    *("budget.*", "max_concurrent", "resources.*", "final_episodes"),
    *("config.train.cuda", "config.train.imports", "config.train.allow_links"),
    *("config.train.num_data_workers", "config.train.hdf5_cache_mode"),
    *("config.train.hdf5_use_swmr", "config.meta.*", "config.ray.*", "config.mlflow.*"),
    # Each trial sets these itself.
    *("config.experiment.name", "config.experiment.logging.*", "config.experiment.save.*"),
    *("config.experiment.render", "config.experiment.render_video"),
    *("config.experiment.keep_all_videos", "config.experiment.video_skip"),
)
_KEPT = ("config.ray.storage_path", "config.ray.data_placement")
# The data's content counts, not their path.
_DATA = "config.train.data"

# Interval between two copies to a remote storage, and between two notes of the time [s].
_MIRROR_EVERY_S = 30.0
_NOTE_EVERY_S = 10.0


class SweepFolder(ResultFolder):
    """One sweep's files, held by this process alone."""

    KIND, HELD = "sweep", "run"

    def __init__(self, uri: str, local: Path) -> None:
        super().__init__(uri, local)
        self._mirrored_at = time.monotonic()

    @classmethod
    def create(cls, spec: SweepSpec, digest: str | None = None) -> Self:
        """Makes the folder of a new sweep; two sweeps never share one.

        Args:
            spec: the sweep.
            digest: digest of its data; None where the sweep varies them.

        Raises:
            ConfigError: the folder would lie in a Ray job's working directory, which vanishes.
            OutputError: the folder cannot be written.
        """
        folder = cls.make(_base_config(spec), spec.name)
        folder.hold(new=True)
        folder.write_spec(spec, digest)
        return folder

    @classmethod
    def find(cls, spec: SweepSpec, digest: str | None = None) -> Self:
        """Finds the newest sweep of that name, to resume it.

        Args:
            spec: the sweep as it is asked for now.
            digest: digest of its present data; None where the sweep varies them.

        Raises:
            ConfigError: there is no such sweep, its settings differ, or another process runs it.
            DatasetError: the data have changed.
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
            _check_same(folder, spec, digest)
            folder.write_spec(spec, digest)
        except BaseException:
            folder.release()
            raise
        return folder

    @property
    def trials(self) -> str:
        """The folder of all trials."""
        return storage.join(self.uri, "trials")

    def write_spec(self, spec: SweepSpec, digest: str | None = None) -> None:
        """Writes the spec, and the digest of the data."""
        contents = {SPEC: spec.to_dict()} | ({DATA: {"digest": digest}} if digest else {})
        for name, content in contents.items():
            for folder in {self.uri, str(self.local)}:
                path = storage.join(folder, name)
                storage.write_bytes(path, json.dumps(content, indent=2).encode())

    def results(self) -> dict[str, TrialResult]:
        """The last result of each trial, by its id, in the order in which trials began."""
        results: dict[str, TrialResult] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in (self.local / RESULTS).read_text().splitlines():
                with contextlib.suppress(
                    json.JSONDecodeError
                ):  # the driver was killed in this line
                    result = TrialResult.from_dict(json.loads(line))
                    results[result.trial_id] = result
        return results

    def add(self, result: TrialResult) -> None:
        """Appends a trial's present result.

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
    """Counts how long a sweep has searched, in all its sessions.

    Args:
        folder: local folder of the sweep.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / CLOCK
        self._before = float(read_json(self._path).get("seconds", 0.0))
        self._begin = self._noted = time.monotonic()

    def seconds(self) -> float:
        """The time until now [s]; from time to time it is noted for later sessions.

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


def _check_same(folder: SweepFolder, spec: SweepSpec, digest: str | None) -> None:
    """Refuses to resume a sweep with other data, or with settings that change scores."""
    may_change: tuple[str, ...] = FREE
    if storage.is_uri(folder.uri):  # each machine has a local folder of its own
        may_change += ("config.train.output_dir",)
    then = read_json(folder.local / DATA).get("digest")
    if digest is not None and then is not None:
        if digest != then:
            raise DatasetError(
                f"the data of '{folder.uri}' have changed since it was started ({then} then, "
                f"{digest} now); restore the earlier data, or start a new sweep for these, without "
                "--resume"
            )
        may_change += (_DATA,)
    path = folder.local / SPEC
    try:
        before = json.loads(path.read_bytes())
        if not isinstance(before, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"'{path}' is damaged ({error}); start a new sweep, without --resume"
        ) from error
    before["config"] = _completed(spec.algo, before.get("config"))
    for key, old, new in changed(before, json.loads(json.dumps(spec.to_dict()))):
        if not matches(key, may_change) or key in _KEPT:
            raise ConfigError(
                f"a resumed sweep keeps its settings, but {key} was {old!r} and now is {new!r}; "
                "start a new sweep for it, without --resume"
            )


def _completed(algo: str, config: Any) -> Any:
    """A stored config with the defaults of keys that its version of raymimic did not have."""
    with contextlib.suppress(ConfigError):  # a config of another algorithm differs anyway
        return json.loads(config_factory(algo, config).dump())
    return config


def _ends_line(file: IO[bytes]) -> bool:
    file.seek(-1, 2)
    return file.read(1) == b"\n"
