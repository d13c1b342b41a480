"""Checkpoints in MLflow, by their `runs:/` and `models:/` URIs.

MLflow is asked for one file, by a process of its own (see `raymimic.tracking.delivery` for why).
Only the checkpoint is fetched: `MLmodel`, which is untrusted and may name any module, is not
read.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TextIO, cast

from raymimic.credentials import TRACKING_URI, ServerUri, full_uri
from raymimic.errors import CheckpointError, did_you_mean
from raymimic.tracking.delivery import CleanStream
from raymimic.tracking.journal import one_line
from raymimic.tracking.mlflow_tracker import run_with_mlflow
from raymimic.tracking.places import (
    DATABASE,
    check_tracking_uri,
    configured_uri,
    sqlite_path,
    sqlite_uri,
)

_MODEL_ID = re.compile(r"m-[0-9a-f]{32}")
_URI = re.compile(r"(runs|models):/[^/].*")


def is_model_uri(path: str) -> bool:
    """Whether a path names a run or a model of MLflow."""
    return path.startswith(("runs:/", "models:/"))


def fetch_checkpoint(uri: str, folder: Path, tracking_uri: str | None = None) -> Path:
    """Fetches the checkpoint of a run or a model.

    Args:
        uri: `runs:/<run id>/<model's name>`, `models:/<model id>`, `models:/<name>/<version>` or
            `models:/<name>@<alias>`, or one of these with the path of a file within.
        folder: an empty folder, which gets the file.
        tracking_uri: the store; None: `MLFLOW_TRACKING_URI`, else `mlflow.db` in the current
            folder.

    Returns:
        the file.

    Raises:
        CheckpointError: MLflow has no such checkpoint, or does not answer.
        ConfigError: MLflow could not open the tracking URI.
    """
    parts = uri.partition(":/")[2].split("/")
    if not _URI.fullmatch(uri) or {"", ".", ".."} & set(parts[:-1]) or parts[-1] in {".", ".."}:
        raise CheckpointError(
            f"'{uri}' is no address of a model: write 'runs:/<run id>/<name>', "
            "'models:/<model id>' or 'models:/<name>/<version>'"
        )
    server = ServerUri.of(configured_uri(tracking_uri) or sqlite_uri(Path.cwd() / DATABASE))
    check_tracking_uri(server)
    path = sqlite_path(server)
    if path is not None:
        if not path.is_file():
            raise CheckpointError(
                f"cannot fetch '{uri}': there is no MLflow store at '{path}'; set {TRACKING_URI} "
                "to the store that has it"
            )
        server = ServerUri.of(sqlite_uri(path, server))
    command = [sys.executable, "-P", "-m", "raymimic.tracking.model_files", uri, str(folder)]
    done = run_with_mlflow([*command, "--server", str(server)], server, named_by_run=False)
    try:
        answer = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        answer = {"error": f"the process that asks MLflow failed ({last[:300]})"}
    if "error" in answer:
        raise CheckpointError(f"cannot fetch '{uri}' from MLflow at {server}: {answer['error']}")
    return folder / str(answer["file"])


def _fetch(uri: str, folder: Path, server: str) -> Path:
    """Fetches in this process, which imports MLflow.

    Raises:
        CheckpointError: there is not exactly one checkpoint.
    """
    import mlflow
    from mlflow.artifacts import download_artifacts, list_artifacts

    # Artifacts of models are looked up in the process's own store alone.
    mlflow.set_tracking_uri(full_uri(server))
    uri = _located(uri)
    if not uri.endswith(".pth"):
        found = []
        is_run = uri.startswith("runs:/") and "/" not in uri.removeprefix("runs:/").strip("/")
        for below in () if is_run else (uri.rstrip("/"), f"{uri.rstrip('/')}/data"):
            entries = list_artifacts(artifact_uri=below)
            names = [Path(entry.path).name for entry in entries if not entry.is_dir]
            found += [f"{below}/{name}" for name in names if name.endswith(".pth")]
        if not found:
            raise CheckpointError(f"it is no model with a checkpoint (*.pth){_instead(uri)}")
        if len(found) > 1:
            raise CheckpointError(f"it holds several checkpoints: name one of {', '.join(found)}")
        (uri,) = found
    fetched = Path(download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    if fetched.is_symlink() or not fetched.is_file():
        raise CheckpointError("it is no file")
    return fetched.rename(folder / "checkpoint.pth")


def _located(uri: str) -> str:
    """The place of a model's files, as MLflow takes no path below `models:/<model id>`."""
    from mlflow import MlflowClient

    kind, _, rest = uri.partition(":/")
    model_id, slash, below = rest.partition("/")
    if kind != "models" or not _MODEL_ID.fullmatch(model_id):
        return uri
    model = MlflowClient().get_logged_model(model_id)
    return f"{model.artifact_location.rstrip('/')}{slash}{below}"


def _instead(uri: str) -> str:
    """The models of the run that a `runs:/` URI names, as a part of a sentence."""
    from mlflow import MlflowClient

    kind, _, rest = uri.partition(":/")
    if kind != "runs":
        return ""
    run_id, _, name = rest.strip("/").partition("/")
    client = MlflowClient()
    outputs = client.get_run(run_id).outputs
    linked = outputs.model_outputs if outputs else []
    names = [client.get_logged_model(output.model_id).name for output in linked]
    if name:
        return did_you_mean(name, names)
    models = ", ".join(f"runs:/{run_id}/{name}" for name in names)
    return f"; name one of the run's models: {models}" if names else ", as the run has no models"


def main() -> int:
    """Fetches a checkpoint, and prints its name or the reason why not as one line of JSON."""
    parser = argparse.ArgumentParser(description="Fetches a checkpoint from MLflow.")
    parser.add_argument("uri")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--server", required=True)
    args = parser.parse_args()
    out = sys.stdout
    sys.stdout = sys.stderr = cast(TextIO, CleanStream(sys.stderr))
    try:
        answer = {"file": _fetch(args.uri, args.folder, args.server).name}
    except CheckpointError as error:
        answer = {"error": str(error)}
    except Exception as error:  # MLflow's, of any kind
        answer = {"error": one_line(error)}
    print(json.dumps(answer), file=out, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
