"""The folder of a run: its place, how it is found again, and its files.

A run lies in `<storage_path or output_dir>/<name>/<time>`, with robomimic's folders:

| file | content | written by |
| --- | --- | --- |
| `config.json` | the config | driver |
| `checkpoints.json` | the manifest: the checkpoints, and why each is kept | rank 0 |
| `epochs.jsonl` | one line for each epoch | rank 0 |
| `evaluations.jsonl` | one line for each evaluation | driver |
| `last.pth` | a link to the newest checkpoint (a copy at the end on other disks) | rank 0 |
| `models/` | the checkpoints | rank 0 |
| `logs/`, `videos/`, `mlflow_run.json` | for the user to read and watch | driver |

Behind a URI the driver writes logs, videos and pictures to a local folder of the same layout under
`train.output_dir` and copies them; epochs and evaluations are folders of numbered parts there.
"""

import contextlib
import logging
import os
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Self

from raymimic import storage
from raymimic.config import BaseConfig, config_factory
from raymimic.config.limits import shown
from raymimic.config.names import name_problem
from raymimic.errors import ConfigError, OutputError
from raymimic.lease import LEASE, Lease
from raymimic.storage import lock, parse_json
from raymimic.tracking.journal import RUN_FILE, spool_dir_of
from raymimic.tracking.places import records_stay_local
from raymimic.user_modules import check_imported, modules_of

logger = logging.getLogger(__name__)

CONFIG = "config.json"
# Records of a run from before it went back to an earlier checkpoint.
REPLACED = "replaced"


class ResultFolder:
    """A folder of results, which one process at a time writes.

    Args:
        uri: the folder or URI, absolute.
        local: where the driver writes; the same place unless `uri` is remote.
    """

    # Words for error messages: the kind of folder, and the work of its holder.
    KIND, HELD = "folder", "written"

    def __init__(self, uri: str, local: Path) -> None:
        self.uri = uri
        self.local = local
        self._mirrored: dict[Path, tuple[int, int]] = {}
        self._locked: IO[str] | None = None
        self.lease: Lease | None = None
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
            except OSError as error:
                # A folder above it may be a file, or a link to nowhere.
                if isinstance(error, FileExistsError) and error.filename == str(made.local):
                    continue
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

    def hold(self, patience_s: float = 0.0, new: bool = False) -> None:
        """Makes sure that nobody else writes here; the lock goes with this process.

        Behind a URI, where another machine may write too, a lease is taken besides the lock.

        Args:
            patience_s: how long to wait for another process [s].
            new: nobody else knows the folder yet.

        Raises:
            ConfigError: another process still holds it.
            OutputError: the folder cannot be written.
        """
        try:
            (self.local / "logs").mkdir(parents=True, exist_ok=True)
            check_plain(self.local)
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
        if storage.is_uri(self.uri):
            try:
                self.lease = Lease.take(self.uri, f"{self.KIND} {self.HELD}", patience_s, new)
            except BaseException:
                self.release()
                raise

    def check_lease(self) -> None:
        """Makes sure that no other machine has taken over the folder, as far as is known.

        Raises:
            LeaseLostError: one has.
        """
        if self.lease is not None:
            self.lease.raise_if_lost()

    def release(self) -> None:
        """Gives the folder back, for other processes to go on with."""
        if self.lease is not None:
            self.lease.release()
            self.lease = None
        if self._locked is not None:
            self._locked.close()
            self._locked = None

    def discard(self) -> None:
        """Deletes the folder and those that `make` made for it."""
        self.release()
        storage.remove_tree(self.uri)
        storage.remove_tree(str(self.local))
        for folder in self._made:
            with contextlib.suppress(OSError):  # another run may lie there by now
                folder.rmdir()

    def mirror(self) -> None:
        """Copies new and changed files of the local folder to a remote storage.

        A file that cannot be copied now is copied the next time; this never ends a training.

        Raises:
            LeaseLostError: another process has taken over the folder.
        """
        if self.lease is None:
            return
        try:
            self.lease.check()
        except OutputError as error:
            logger.warning("cannot copy to '%s': %s", self.uri, error)
            return
        for path in self._own_files():
            try:
                state = path.stat()
                # Two lines that are appended in one tick of the clock differ in size.
                changed = (state.st_mtime_ns, state.st_size)
                if self._mirrored.get(path) != changed:
                    parts = path.relative_to(self.local).parts
                    storage.upload(path, storage.join(self.uri, *parts))
                    self._mirrored[path] = changed
            except FileNotFoundError:
                continue
            except (OSError, OutputError) as error:
                logger.warning("cannot copy '%s' to '%s': %s", path, self.uri, error)
                return

    def drop_replaced(self, *parts: str) -> None:
        """Deletes remote files of a subfolder that the local one no longer has.

        Raises:
            OutputError: the storage does not answer.
        """
        if storage.is_uri(self.uri):
            for name in storage.files(storage.join(self.uri, *parts)):
                if not self.local.joinpath(*parts, name).exists():
                    storage.remove(storage.join(self.uri, *parts, name))

    def _own_files(self) -> list[Path]:
        """Returns the files of the local folder that belong to the storage too."""
        raise NotImplementedError

    def fetch(self, *names: str) -> None:
        """Copies files from a remote storage to the local folder, where there are such.

        Raises:
            OutputError: the local folder cannot be written, or the storage does not answer.
        """
        if storage.is_uri(self.uri):
            for name in (name for name in names if name != LEASE):
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
        run.prepare(new=True)
        run.write_config(config)
        return run

    def prepare(self, patience_s: float = 0.0, new: bool = False) -> None:
        """Makes the subfolders, and fetches back files that only the storage has.

        Args:
            patience_s: how long to wait for another process that trains this run [s].
            new: nobody else knows the folder yet.

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
        self.hold(patience_s, new)
        kept = (RUN_FILE, "logs/log.txt")
        self.fetch(*(name for name in kept if not (self.local / name).exists()))

    def write_config(self, config: BaseConfig) -> None:
        """Writes `config.json`, which resumes the run and which `--config` accepts.

        Raises:
            LeaseLostError: another process has taken over the run.
        """
        if self.lease is not None:
            self.lease.check()
        storage.write_bytes(storage.join(self.uri, CONFIG), config.dump().encode())

    def _own_files(self) -> list[Path]:
        # A spool is of use only on this machine, and changes while it is read.
        runs = [self.local, *self.local.glob(f"{REPLACED}/*")]
        spools = [spool_dir_of(folder) for folder in runs]
        return sorted(
            path
            for path in self.local.rglob("*")
            if path.is_file()
            and path.name != ".lock"
            and not any(path.is_relative_to(spool) for spool in spools)
        )


def run_base(config: BaseConfig) -> str:
    """The folder or URI that holds all runs, absolute.

    Raises:
        ConfigError: a relative folder inside a Ray job, or one whose name is not UTF-8.
    """
    base = str(config.ray.storage_path or config.train.output_dir).removeprefix("file://")
    in_job = bool(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"))
    if storage.is_uri(base):
        vanishes = not storage.expanded(config.train.output_dir).is_absolute()
        if in_job and vanishes and records_stay_local(config):
            raise ConfigError(
                "MLflow's records would go to a database in this Ray job's working directory, "
                "which is deleted with the job; give mlflow.tracking_uri, or an absolute "
                "train.output_dir that outlives it"
            )
        return base.rstrip("/")
    if in_job and not storage.expanded(base).is_absolute():
        raise ConfigError(
            f"results would go to '{base}' in this Ray job's working directory, which is deleted "
            "with the job; give an absolute folder that outlives it, or a URI: "
            "--set ray.storage_path=/shared/results"
        )
    base = storage.absolute(base)
    try:
        base.encode()
    except UnicodeEncodeError as error:  # Ray and MLflow fail there
        raise ConfigError(
            f"results would go to '{base}', whose name is not valid UTF-8: give another folder by "
            "--set train.output_dir=…"
        ) from error
    return base


def find_run(config: BaseConfig) -> str:
    """The newest run of the config's name.

    Raises:
        ConfigError: there is none, or none can have this name.
    """
    if reason := name_problem(config.experiment.name):
        raise ConfigError(f"no run is named {shown(config.experiment.name)}: {reason}")
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


def check_plain(folder: Path) -> None:
    """Refuses a folder in which a record is a pipe, or a link that leads out of the folder.

    The folder is untrusted: opening a pipe never ends, and writing through a link would
    alter any file of this user. `models` may be a link to another disk, as checkpoints are checked
    when they are read and never written in place.

    Raises:
        ConfigError: there is such a file.
    """
    inside = folder.resolve()
    records = [p for p in folder.iterdir() if p.name not in {"models", "trials"}]
    records += (folder / "logs").rglob("*")
    for path in records:
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise ConfigError(
                f"'{path}' is a link that leads out of the run's folder: put the file itself there"
            )
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ConfigError(f"'{path}' is a pipe or a device, not a run's file: remove it")


def config_of_run(run_dir: str, imports: Sequence[str] = ()) -> BaseConfig:
    """The config that a run was started with.

    Args:
        run_dir: folder or URI of the run.
        imports: the modules that the user has imported for this run, perhaps of other names than
            when it was started; without any, those that it names must be imported already.

    Raises:
        ConfigError: there is no run at that place.
        ModuleNotImportedError: it names a module that is not imported.
    """
    path = storage.join(storage.absolute(run_dir), CONFIG)
    try:
        content = parse_json(storage.read_bytes(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(
            f"no run to resume at '{run_dir}': it has no {CONFIG}; a run's folder is "
            "<output_dir>/<name>/<time>"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot read '{path}': {storage.unread(error)}") from error
    except ValueError as error:
        raise ConfigError(
            f"'{path}' is not valid JSON ({error}); its checkpoints hold the config too, under "
            "'config'"
        ) from error
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("algo_name"), str)
        or not isinstance(train := content.get("train"), dict)
    ):
        raise ConfigError(f"'{path}' is not the config of a run: it has no 'algo_name' and 'train'")
    if not storage.is_uri(path):
        check_plain(Path(path).parent)
    check_imported(modules_of({"experiment": content.get("experiment")}), f"'{path}'")
    named = modules_of({"train": train})
    check_imported(named, f"'{path}'", imports)
    if imports:
        train["imports"] = [name for name in named if name in sys.modules]
    try:
        return config_factory(content["algo_name"], content)
    except ConfigError as error:
        raise ConfigError(f"'{path}': {error}") from error


def _unwritable(path: Path, error: OSError) -> OutputError:
    # Of a link to nowhere, where a folder should be.
    reason = f"'{error.filename}' is no folder" if isinstance(error, FileExistsError) else None
    return OutputError(
        f"cannot write to '{path}': {reason or error.strerror or error}; choose another place with "
        "--set train.output_dir=… or --set ray.storage_path=…"
    )
