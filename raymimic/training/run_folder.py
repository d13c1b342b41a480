"""The folder of a run: where it lies, how it is found again, what lies in it.

`<storage_path or output_dir>/<name>/<time>/{models,videos,logs,config.json,mlflow_run.json}`, as
robomimic lays it out. Where the storage is a URI, logs, videos and pictures are written to a local
folder of the same layout under `train.output_dir` and copied from there.
"""

import contextlib
import fcntl
import json
import logging
import os
import time
import uuid
from pathlib import Path
from typing import IO, Any, Self

from raymimic.config import BaseConfig, config_factory
from raymimic.config.base_config import import_modules
from raymimic.errors import ConfigError, OutputError
from raymimic.utils import storage

logger = logging.getLogger(__name__)

CONFIG = "config.json"


class ResultFolder:
    """A folder of results, which one process at a time writes.

    Args:
        uri: the folder or URI, absolute.
        local: where the driver writes; the same place unless `uri` is remote.
    """

    # What lies there, and what a process does that holds it.
    KIND, HELD = "folder", "written"

    def __init__(self, uri: str, local: Path) -> None:
        self.uri = uri
        self.local = local
        self._mirrored: dict[Path, float] = {}
        self._locked: IO[str] | None = None
        self._made: list[Path] = []

    @classmethod
    def make(cls, config: BaseConfig, name: str) -> Self:
        """Makes a new folder of that name; no two are the same.

        Raises:
            OutputError: it cannot be written.
            ConfigError: it would lie in a Ray job's working directory, which vanishes.
        """
        base = run_base(config)
        stamp = time.strftime("%Y%m%d%H%M%S")
        if storage.is_uri(base):
            stamp += f"_{uuid.uuid4().hex[:6]}"  # another machine may use this name too
        taken = set(storage.subfolders(storage.join(base, name)))
        for attempt in range(1000):
            unique = stamp if attempt == 0 else f"{stamp}_{attempt}"
            if unique in taken:
                continue
            made = cls.at(storage.join(base, name, unique), config)
            made._made = [folder for folder in made.local.parents if not folder.exists()]
            try:
                made.local.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise _unwritable(made.local, error) from error
            return made
        raise OutputError(
            f"1000 {cls.KIND}s named '{name}' started in one second; choose another name"
        )

    @classmethod
    def at(cls, uri: str, config: BaseConfig) -> Self:
        """An existing or future folder at a path or URI."""
        uri = storage.absolute(uri).rstrip("/")
        if not storage.is_uri(uri):
            return cls(uri, Path(uri))
        base = f"{config.ray.storage_path}".rstrip("/") + "/"
        below = uri.removeprefix(base) if uri.startswith(base) else "/".join(uri.split("/")[-2:])
        return cls(uri, Path(storage.absolute(config.train.output_dir), below))

    def hold(self, patience_s: float = 0.0) -> None:
        """Makes sure that nobody else writes here; the lock goes with this process.

        Args:
            patience_s: how long to wait for another process [s].

        Raises:
            ConfigError: another process still holds it.
            OutputError: the folder cannot be written.
        """
        try:
            (self.local / "logs").mkdir(parents=True, exist_ok=True)
            self._locked = (self.local / "logs" / ".lock").open("w")
            lock(self._locked, patience_s)
        except BlockingIOError as error:
            self.release()
            raise ConfigError(
                f"the {self.KIND} '{self.uri}' is being {self.HELD} by another process; wait for "
                "it or end it"
            ) from error
        except OSError as error:
            raise _unwritable(self.local, error) from error

    def release(self) -> None:
        """Lets others go on with it."""
        if self._locked is not None:
            self._locked.close()
            self._locked = None

    def discard(self) -> None:
        """Undoes `make`, where nothing came of it."""
        storage.remove_tree(self.uri)
        storage.remove_tree(str(self.local))
        for folder in self._made:
            with contextlib.suppress(OSError):  # another run may lie there by now
                folder.rmdir()

    def mirror(self) -> None:
        """Copies what is new in the local folder to a remote storage.

        What cannot be copied now is copied the next time, and never ends a training.
        """
        if not storage.is_uri(self.uri):
            return
        for path in self._own_files():
            try:
                changed = path.stat().st_mtime
                if self._mirrored.get(path) != changed:
                    parts = path.relative_to(self.local).parts
                    storage.upload(path, storage.join(self.uri, *parts))
                    self._mirrored[path] = changed
            except FileNotFoundError:
                continue
            except (OSError, OutputError) as error:
                logger.warning("cannot copy '%s' to '%s': %s", path, self.uri, error)
                return

    def _own_files(self) -> list[Path]:
        """The files of the local folder that belong to the storage too."""
        raise NotImplementedError

    def fetch(self, *names: str) -> None:
        """Copies files from a remote storage to the local folder, where there are such.

        Raises:
            OutputError: the local folder cannot be written, or the storage does not answer.
        """
        if storage.is_uri(self.uri):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    content = storage.read_bytes(storage.join(self.uri, name))
                    storage.write_bytes(str(self.local / name), content)


class RunFolder(ResultFolder):
    """One run's files."""

    KIND, HELD = "run", "trained"

    @classmethod
    def create(cls, config: BaseConfig) -> Self:
        """Makes the folder of a new run; two runs never share one.

        Raises:
            OutputError: it cannot be written.
            ConfigError: it would lie in a Ray job's working directory, which vanishes.
        """
        run = cls.make(config, config.experiment.name)
        run.prepare()
        run.write_config(config)
        return run

    def prepare(self, patience_s: float = 0.0) -> None:
        """Makes the subfolders, and fetches back what only the storage has.

        Args:
            patience_s: how long to wait for another process that trains this run [s].

        Raises:
            ConfigError: another process still trains it.
            OutputError: the folder cannot be written.
        """
        try:
            for sub in ("models", "videos"):
                if sub != "models" or not storage.is_uri(self.uri):
                    (self.local / sub).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self.local, error) from error
        self.hold(patience_s)
        kept = ("mlflow_run.json", "logs/log.txt")
        self.fetch(*(name for name in kept if not (self.local / name).exists()))

    def write_config(self, config: BaseConfig) -> None:
        """Writes `config.json`, which resumes the run and which `--config` accepts."""
        storage.write_bytes(storage.join(self.uri, CONFIG), config.dump().encode())

    def _own_files(self) -> list[Path]:
        # The spool is of use only on this machine, and changes while it is read.
        spool = self.local / "logs" / "mlflow"
        return sorted(
            path
            for path in self.local.rglob("*")
            if path.is_file() and path.name != ".lock" and not path.is_relative_to(spool)
        )


def lock(file: IO[str], patience_s: float = 0.0) -> None:
    """Locks a file for this process; closing the file, or dying, unlocks it.

    Args:
        file: open for writing.
        patience_s: how long to wait for another process that holds it [s].

    Raises:
        BlockingIOError: another process holds it.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.2)


def run_base(config: BaseConfig) -> str:
    """The folder or URI that holds all runs, absolute.

    Raises:
        ConfigError: a relative folder inside a Ray job.
    """
    base = str(config.ray.storage_path or config.train.output_dir).removeprefix("file://")
    in_job = bool(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"))
    if storage.is_uri(base):
        uri = config.mlflow.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        vanishes = not Path(config.train.output_dir).expanduser().is_absolute()
        if in_job and config.mlflow.enabled and not uri and vanishes:
            raise ConfigError(
                "MLflow's records would go to a database in this Ray job's working directory, "
                "which is deleted with the job; give mlflow.tracking_uri, or an absolute "
                "train.output_dir that outlives it"
            )
        return base.rstrip("/")
    if in_job and not Path(base).expanduser().is_absolute():
        raise ConfigError(
            f"results would go to '{base}' in this Ray job's working directory, which is deleted "
            "with the job; give an absolute folder that outlives it, or a URI: "
            "--set ray.storage_path=/shared/results"
        )
    return storage.absolute(base)


def find_run(config: BaseConfig) -> str:
    """The newest run of the config's name.

    Raises:
        ConfigError: there is none.
    """
    found = newest(config, config.experiment.name, CONFIG)
    if found is None:
        raise ConfigError(
            f"no run named '{config.experiment.name}' to resume in '{run_base(config)}'; name its "
            "folder after --resume, or its --name"
        )
    return found


def newest(config: BaseConfig, name: str, file: str) -> str | None:
    """The newest folder of a name that holds a file; None where there is none."""
    folder = storage.join(run_base(config), name)
    stamps = storage.subfolders(folder)
    found = [s for s in stamps if storage.exists(storage.join(folder, s, file))]
    return storage.join(folder, max(found)) if found else None


def config_of_run(run_dir: str) -> BaseConfig:
    """The config that a run was started with.

    Raises:
        ConfigError: there is no run at that place.
    """
    path = storage.join(storage.absolute(run_dir), CONFIG)
    try:
        content: dict[str, Any] = json.loads(storage.read_bytes(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(
            f"no run to resume at '{run_dir}': it has no {CONFIG}; a run's folder is "
            "<output_dir>/<name>/<time>"
        ) from error
    except ValueError as error:
        raise ConfigError(f"'{path}' is not valid JSON: {error}") from error
    if not isinstance(content, dict) or not {"algo_name", "train"} <= content.keys():
        raise ConfigError(f"'{path}' is not the config of a run: it has no 'algo_name' and 'train'")
    import_modules(content["train"].get("imports", ()))
    return config_factory(content["algo_name"], content)


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write to '{path}': {error.strerror or error}; choose another place with "
        "--set train.output_dir=… or --set ray.storage_path=…"
    )
