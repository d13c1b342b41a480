"""The addresses of MLflow's stores: tracking servers and databases.

Nothing here imports MLflow.
"""

import os
import shlex
import shutil
import sqlite3
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from raymimic.config import BaseConfig
from raymimic.credentials import TRACKING_URI, ServerUri, is_server, masked
from raymimic.errors import ConfigError, did_you_mean
from raymimic.storage import read_json
from raymimic.tracking.journal import RUN_FILE, check_spool, ids_of, spool_dir_of

SERVER_SCHEMES = {"http", "https", "databricks", "databricks-uc", "uc"}
DATABASE_SCHEMES = {"sqlite", "postgresql", "mysql", "mssql"}

DATABASE = "mlflow.db"
DEFAULT_EXPERIMENT = "raymimic"

PAGE_MODE = "workflowType=machine_learning"


def check_tracking_uri(tracking_uri: str) -> None:
    """Refuses a tracking URI that MLflow could not open.

    Args:
        tracking_uri: `http(s)://host`, `sqlite:///file`, another database's URI, `databricks`, or
            a scheme of an installed MLflow plugin.

    Raises:
        ConfigError: the scheme is unknown, or the URI lacks a part.
    """
    where = f"mlflow.tracking_uri '{masked(tracking_uri)}'"
    parts = urlsplit(tracking_uri)
    scheme = parts.scheme.partition("+")[0] or (
        tracking_uri if tracking_uri in SERVER_SCHEMES else ""
    )
    if scheme in {"", "file"}:
        if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in {"true", "1"}:
            raise ConfigError(
                f"{where} names a folder, which MLflow no longer writes to; use a file such as "
                f"'sqlite:///{(parts.path or 'results').rstrip('/')}/mlflow.db' "
                "or the address of a server"
            )
        return
    known = SERVER_SCHEMES | DATABASE_SCHEMES
    if scheme not in known:
        known |= {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}
        if scheme not in known:
            raise ConfigError(
                f"{where} has the unknown scheme '{scheme}'{did_you_mean(scheme, known)}"
            )
    if scheme in {"http", "https"}:
        if not parts.hostname:
            raise ConfigError(f"{where} names no host; write 'http://host:port'")
        if parts.query or parts.fragment:
            raise ConfigError(f"{where} has a '?' or '#'; write 'http://host:port' alone")
    if scheme == "sqlite" and not tracking_uri.partition(":///")[2]:
        raise ConfigError(f"{where} names no file; write 'sqlite:///folder/mlflow.db'")


def resolve_tracking_uri(tracking_uri: str | None, run_dir: Path) -> ServerUri:
    """The store of a run.

    Args:
        tracking_uri: the configured URI, or None.
        run_dir: folder of the run.

    Returns:
        the configured URI, else `MLFLOW_TRACKING_URI`, else the store of the run until now, else
        `default_database`; a relative SQLite path is made absolute. The password is no part of it,
        see `raymimic.credentials.ServerUri`.

    Raises:
        ConfigError: see `check_tracking_uri` and `check_named_by_run`.
    """
    uri = configured_uri(tracking_uri)
    if uri is None:
        before = _place_before(run_dir.resolve())
        if before is None:
            return ServerUri.of(sqlite_uri(default_database(run_dir)))
        check_named_by_run(before, run_dir.resolve())
        return ServerUri.of(before)
    server = ServerUri.of(uri)
    check_tracking_uri(server)
    path = sqlite_path(server)
    return server if path is None else ServerUri.of(sqlite_uri(path, server))


def configured_uri(tracking_uri: str | None) -> str | None:
    """The configured URI, else `MLFLOW_TRACKING_URI`; None where neither is given."""
    return tracking_uri or os.environ.get(TRACKING_URI) or None


def default_database(run_dir: Path) -> Path:
    """The SQLite file of runs without a configured store: MLflow's own default.

    So `mlflow ui` in the current folder shows all runs. In a Ray job that folder vanishes, and the
    file lies in the folder that holds all runs.
    """
    if os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
        return run_dir.resolve().parent.parent / DATABASE
    return Path.cwd() / DATABASE


def _place_before(run_dir: Path) -> str | None:
    """The store of a run until now; None for a new run."""
    server = read_json(run_dir / RUN_FILE).get("tracking_uri")
    if isinstance(server, str) and server:
        return server
    beside = run_dir.parent / DATABASE  # the default until 0.1.0
    return sqlite_uri(beside) if spool_dir_of(run_dir).exists() and beside.exists() else None


def sqlite_uri(path: Path, like: str = "sqlite:///") -> str:
    """The URI of a SQLite file.

    Args:
        path: path of the file; it may hold any character.
        like: a URI with the same driver and options.
    """
    driver, _, rest = like.partition(":///")
    _, question, options = rest.partition("?")
    # SQLAlchemy takes the part behind a `?` for options, and decodes the rest.
    encoded = str(path).replace("%", "%25").replace("?", "%3F")
    return f"{driver}:///{encoded}{question}{options}"


def sqlite_path(uri: str) -> Path | None:
    """The absolute path of a SQLite file; `None` for the URI of anything else."""
    driver, separator, rest = uri.partition(":///")
    if not separator or driver.lower().partition("+")[0] != "sqlite":
        return None
    return Path(unquote(rest.partition("?")[0])).absolute()


def artifact_location(server: str, run_dir: Path) -> str | None:
    """The folder of a new experiment's files; None where a server decides.

    MLflow's own default for a database is `./mlruns`, relative to the process' folder.
    """
    if urlsplit(server).scheme.partition("+")[0] not in DATABASE_SCHEMES:
        return None
    path = sqlite_path(server)
    folder = run_dir.resolve().parent if path is None else path.parent
    return (folder / "mlartifacts").as_uri()


def is_trial(start: Mapping[str, Any]) -> bool:
    """Whether the run of a start record is a trial of the sweep two folders above."""
    return bool(start.get("trial") or start.get("parent"))


def experiment_name(configured: str | None) -> str:
    """The MLflow experiment: the configured one, else `MLFLOW_EXPERIMENT_NAME`, else `raymimic`."""
    return configured or os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT


def check_named_by_run(server: str, run_dir: Path) -> None:
    """Refuses a database file that only a run's folder names, and that is none of MLflow's.

    A run's folder is untrusted: it must not choose the files that this user writes.

    Args:
        server: the store that the folder names.
        run_dir: the folder.

    Raises:
        ConfigError: the file does not lie beside the run, and is no database of MLflow's.
    """
    path = sqlite_path(server)
    folder = urlsplit(server).scheme in {"", "file"} and server not in SERVER_SCHEMES
    if path is None and not folder:
        return
    given = os.environ.get(TRACKING_URI)
    if given and resolve_tracking_uri(given, run_dir) == server:
        return
    beside = {run_dir.parent / DATABASE, default_database(run_dir).resolve()}
    if run_dir.parent.name == "trials":
        beside.add(run_dir.parents[2] / DATABASE)
    if path is not None and (path.resolve() in beside or _is_mlflow_database(path)):
        return
    raise ConfigError(
        f"the run '{run_dir}' names '{server}' for its records, where MLflow has no database yet; "
        f"if that is right, confirm it: {TRACKING_URI}={shlex.quote(server)}"
    )


def _is_mlflow_database(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            return {"alembic_version", "experiments", "runs"} <= {name for (name,) in names}
    except sqlite3.Error:
        return False


def open_command(tracking_uri: str) -> str | None:
    """The shell command that shows a database in MLflow's page; None for a server.

    Args:
        tracking_uri: a resolved tracking URI.
    """
    if tracking_uri in SERVER_SCHEMES or urlsplit(tracking_uri).scheme in SERVER_SCHEMES:
        return None
    beside = Path(sys.executable).with_name("mlflow")
    found = shutil.which("mlflow")
    # The user's shell may not have activated this environment.
    mlflow = "mlflow" if not beside.exists() or found == str(beside) else str(beside)
    return f"{shlex.quote(mlflow)} ui --backend-store-uri {shlex.quote(tracking_uri)}"


def records_stay_local(config: BaseConfig) -> bool:
    """Whether the records go to a database near the run, as no other place is named."""
    return config.mlflow.enabled and configured_uri(config.mlflow.tracking_uri) is None


def check_records(config: BaseConfig, run_dir: Path) -> None:
    """Refuses an untrusted run folder that would direct records elsewhere.

    Args:
        config: as the run shall go on.
        run_dir: the run's local folder.

    Raises:
        ConfigError: the records would be written into any file of this machine.
        OutputError: a part of its spool is a link that leads out of it.
    """
    if config.mlflow.enabled:
        folder = run_dir.resolve()
        check_named_by_run(resolve_tracking_uri(config.mlflow.tracking_uri, folder), folder)
        check_spool(folder)


def records_line(config: BaseConfig, run_dir: Path) -> str | None:
    """Tells the user where the records of a run go; None if they stay beside the run.

    Args:
        config: the whole config.
        run_dir: the run's local folder.
    """
    if not config.mlflow.enabled:
        return None
    return f"records go to MLflow at {resolve_tracking_uri(config.mlflow.tracking_uri, run_dir)}"


@dataclass(frozen=True)
class RecordsPage:
    """How to see the records of a run in MLflow.

    Attributes:
        url: page of the run on its tracking server; None without a server.
        command: shell command that shows the records of a database; None with a server.
    """

    url: str | None = None
    command: str | None = None

    def __str__(self) -> str:
        return self.url or self.command or ""


def records_page(config: BaseConfig, run_dir: Path) -> RecordsPage:
    """Where to see the records of a run; nowhere with MLflow off.

    Args:
        config: the whole config.
        run_dir: the run's local folder.
    """
    if not config.mlflow.enabled:
        return RecordsPage()
    server = resolve_tracking_uri(config.mlflow.tracking_uri, run_dir)
    if is_server(server):
        return RecordsPage(url=run_url(server, run_dir))
    return RecordsPage(command=open_command(server))


def run_url(server: str, run_dir: Path) -> str:
    """The address of a run's page; the server's own until the server has given the run an id.

    Args:
        server: a tracking server, without the password.
        run_dir: the run's local folder.
    """
    ids = ids_of(run_dir, server)
    if ids is None:
        return server
    experiment, run = ids
    # MLflow's pages follow a switch of the browser, at first "GenAI"; this page sets it.
    return f"{server.rstrip('/')}/#/experiments/{experiment}/runs/{run}?{PAGE_MODE}"
