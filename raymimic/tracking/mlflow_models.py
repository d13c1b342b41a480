"""The data and the kept checkpoints of a run in MLflow: dataset inputs and logged models.

A logged model is a folder of plain files: `MLmodel`, the checkpoint below `data/`, and its input
example. It holds no pickle and no code: MLflow loads it by `raymimic.checkpoints.mlflow_model`,
which reads the checkpoint as raymimic reads all. Imports MLflow: only the delivery process imports
this.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.data.schema import TensorDatasetSchema
from mlflow.entities import (
    Dataset,
    DatasetInput,
    FileInfo,
    InputTag,
    LoggedModel,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Run,
)
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

import raymimic
from raymimic.credentials import masked
from raymimic.tracking.journal import artifact_file

LOADER = "raymimic.checkpoints.mlflow_model"
SHA256_TAG = "raymimic.sha256"
EPOCH_TAG = "raymimic.epoch"
KEPT_TAG = "raymimic.kept"
# Marks a logged model that was registered; its versions would lose their files.
_REGISTERED_TAG = "mlflow.modelVersions"
# The answers of a server that does not know a request.
_TOO_OLD = {"ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED"}
_CONTEXT_TAG = "mlflow.data.context"


class NotStoredError(Exception):
    """An artifact store answered that it took a file, and does not list it."""


# -- datasets --


def dataset_input(data: Mapping[str, Any]) -> DatasetInput:
    """A dataset of a journal as MLflow's input.

    Args:
        data: see `raymimic.tracking.run_contents.DatasetUse`.
    """
    scheme, colon, _ = data["source"].partition("://")
    kind = scheme if colon else "local"
    key = "url" if kind in {"http", "https"} else "uri"
    schema = TensorDatasetSchema(_schema(data["features"]), _schema(data["targets"]))
    return DatasetInput(
        Dataset(
            name=data["name"],
            digest=data["digest"],
            source_type="http" if key == "url" else kind,
            source=json.dumps({key: masked(data["source"])}),
            schema=json.dumps(schema.to_dict()),
            profile=json.dumps(data["sizes"]),
        ),
        [InputTag(_CONTEXT_TAG, data["context"])],
    )


def _schema(tensors: Sequence[Mapping[str, Any]]) -> Schema:
    """The schema of tensors, whose rows are any number."""
    return Schema(
        [
            TensorSpec(np.dtype(entry["dtype"]), (-1, *entry["shape"]), entry["name"] or None)
            for entry in tensors
        ]
    )


# -- models --


@dataclass(frozen=True)
class _UsedDataset:
    """Name and digest of a dataset of the run."""

    name: str
    digest: str


class LoggedModels:
    """The logged models of one run, one for each kept checkpoint.

    Every method may raise MLflow's exceptions.

    Args:
        client: of the store.
        run: the run that they belong to.
    """

    def __init__(self, client: MlflowClient, run: Run) -> None:
        self._client, self._run = client, run
        self._found: dict[str, LoggedModel] | None = None
        self._is_too_old = False

    @property
    def supported(self) -> bool:
        """Whether the server knows logged models, as MLflow does from version 3 on."""
        return self._models is not None and not self._is_too_old

    @property
    def _models(self) -> dict[str, LoggedModel]:
        """The run's models by the SHA-256 of their checkpoint."""
        if self._found is None:
            try:
                self._found = dict(self._search())
            except MlflowException as error:
                if error.error_code not in _TOO_OLD:
                    raise
                self._found, self._is_too_old = {}, True
        return self._found

    def _search(self) -> Iterator[tuple[str, LoggedModel]]:
        token = None
        while True:
            page = self._client.search_logged_models(
                [self._run.info.experiment_id],
                filter_string=f"source_run_id = '{self._run.info.run_id}'",
                page_token=token,
            )
            yield from ((m.tags[SHA256_TAG], m) for m in page if SHA256_TAG in m.tags)
            token = page.token
            if not token:
                return

    def of_epoch(self, epoch: int) -> LoggedModel | None:
        """The complete model of an epoch's checkpoint."""
        for model in self._models.values():
            if model.tags.get(EPOCH_TAG) == str(epoch) and _is_ready(model):
                return model
        return None

    def upload(self, data: Mapping[str, Any], spool_dir: Path) -> bool:
        """Logs the model of a checkpoint, once.

        Args:
            data: a record of type `model`.
            spool_dir: folder of the journal.

        Returns:
            whether the model is there; without the record's files nothing is done.
        """
        model = self._models.get(data["sha256"])
        checkpoint = artifact_file(spool_dir, data["copy"])
        example = artifact_file(spool_dir, data["example"])
        if model is None or not _is_ready(model):
            if checkpoint is None or example is None or not checkpoint.is_file():
                return False
            if model is None:
                model = self._create(data)
            _check_location(model)
            folder = checkpoint.parent / "model"
            shutil.rmtree(folder, ignore_errors=True)
            _write_model(folder, data, checkpoint, example, model, self._run)
            model_id: str = model.model_id
            self._client.log_model_artifacts(model_id, str(folder))
            check_stored(folder, lambda path: self._list(model_id, path))
            model = self._client.finalize_logged_model(model_id, LoggedModelStatus.READY)
            self._models[data["sha256"]] = model
        self._link(model, data["step"])
        return True

    def _list(self, model_id: str, path: str) -> list[FileInfo]:
        return list(self._client.list_logged_model_artifacts(model_id, path or None))

    def _create(self, data: Mapping[str, Any]) -> LoggedModel:
        model = self._client.create_logged_model(
            self._run.info.experiment_id,
            name=data["name"],
            source_run_id=self._run.info.run_id,
            tags={
                SHA256_TAG: data["sha256"],
                EPOCH_TAG: str(data["epoch"]),
                "algo": data["algo"],
            },
            params={"epoch": str(data["epoch"]), "gradient_steps": str(data["step"])},
            model_type=data["algo"],
        )
        self._models[data["sha256"]] = model
        return model

    def _link(self, model: LoggedModel, step: int) -> None:
        """Names a model as the run's output, by which the run's page lists it."""
        outputs = self._client.get_run(self._run.info.run_id).outputs
        linked = {output.model_id for output in outputs.model_outputs} if outputs else set()
        if model.model_id not in linked:
            output = LoggedModelOutput(model.model_id, step)
            self._client.log_outputs(self._run.info.run_id, [output])

    def keep(self, kept: Mapping[str, Sequence[str]]) -> None:
        """Deletes the models of checkpoints that are gone, but for those that were registered.

        Args:
            kept: why a checkpoint is kept, by its SHA-256.
        """
        for digest, model in list(self._models.items()):
            try:
                if digest in kept:
                    self._give_reasons(model, kept[digest])
                else:
                    self._delete(model)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # else a user has deleted it
                    raise
            if digest not in kept:
                del self._models[digest]

    def _give_reasons(self, model: LoggedModel, reasons: Sequence[str]) -> None:
        text = ", ".join(reasons)
        if text and model.tags.get(KEPT_TAG) != text:
            self._client.set_logged_model_tags(model.model_id, {KEPT_TAG: text})
            model.tags[KEPT_TAG] = text

    def _delete(self, model: LoggedModel) -> None:
        if _REGISTERED_TAG not in self._client.get_logged_model(model.model_id).tags:
            self._client.delete_logged_model(model.model_id)

    def points(self, model: LoggedModel, points: Sequence[Metric]) -> list[Metric]:
        """The points of a run as those of one of its models, and of the data that they are about.

        Args:
            model: a model of the epoch of the points.
            points: the run's own.
        """
        used = self._datasets()
        return [
            Metric(
                point.key,
                point.value,
                point.timestamp,
                point.step,
                model_id=model.model_id,
                dataset_name=data.name if data else None,
                dataset_digest=data.digest if data else None,
                run_id=self._run.info.run_id,
            )
            for point in points
            for data in [used.get("validation" if point.key.startswith("Valid/") else "training")]
        ]

    def _datasets(self) -> dict[str, _UsedDataset]:
        """The first dataset of each context."""
        inputs = self._client.get_run(self._run.info.run_id).inputs
        used: dict[str, _UsedDataset] = {}
        for entry in inputs.dataset_inputs if inputs else ():
            context = {tag.key: tag.value for tag in entry.tags}.get(_CONTEXT_TAG, "")
            used.setdefault(context, _UsedDataset(entry.dataset.name, entry.dataset.digest))
        return used


def _is_ready(model: LoggedModel) -> bool:
    return bool(model.status == LoggedModelStatus.READY)


def _check_location(model: LoggedModel) -> None:
    """Refuses a local folder that MLflow did not make for the model.

    An untrusted server or database could name any folder of this machine.
    """
    place = urlsplit(model.artifact_location or "")
    parts = unquote(place.path).split("/")
    if place.scheme in {"", "file"} and (
        ".." in parts or parts[-2:] != [model.model_id, "artifacts"]
    ):
        raise ValueError(f"'{model.artifact_location}' is no folder of model {model.model_id}")


def _write_model(
    folder: Path,
    data: Mapping[str, Any],
    checkpoint: Path,
    example: Path,
    model: LoggedModel,
    run: Run,
) -> None:
    """Writes a model's folder.

    Args:
        folder: which is made.
        data: a record of type `model`.
        checkpoint: the checkpoint's file.
        example: JSON of one row of each input, or of none.
        model: as MLflow has it.
        run: of the model.
    """
    rows = json.loads(example.read_bytes())
    types = {entry["name"]: entry["dtype"] for entry in data["inputs"]}
    typed = {key: np.asarray(rows[key], dtype) for key, dtype in types.items()} if rows else None
    mlflow.pyfunc.save_model(
        str(folder),
        loader_module=LOADER,
        data_path=str(checkpoint),
        signature=ModelSignature(
            _schema(data["inputs"]),
            _schema(data["outputs"]),
            ParamSchema([ParamSpec("start_episode", DataType.boolean, True)]),
        ),
        input_example=typed,
        pip_requirements=[f"raymimic=={raymimic.__version__}"],
        mlflow_model=Model(
            artifact_path=model.artifact_location,
            run_id=run.info.run_id,
            model_uuid=model.model_id,
            model_id=model.model_id,
        ),
    )


def check_stored(local: Path, listed: Callable[[str], Sequence[FileInfo]]) -> None:
    """Makes sure that an artifact store has a file or folder that it was given.

    A proxy's page for maintenance takes any upload, with status 200.

    Args:
        local: the file, or the folder whose content was uploaded.
        listed: lists a folder of the store, by its path there.

    Raises:
        NotStoredError: a file is missing, or has another size.
    """
    files = [local] if local.is_file() else sorted(p for p in local.rglob("*") if p.is_file())
    base = local.parent if local.is_file() else local
    sizes: dict[str, dict[str, int | None]] = {}
    for file in files:
        folder = file.parent.relative_to(base).as_posix().removeprefix(".")
        if folder not in sizes:
            entries = listed(folder)
            sizes[folder] = {Path(entry.path).name: entry.file_size for entry in entries}
        found = sizes[folder]
        size = file.stat().st_size
        if file.name not in found or found[file.name] not in (None, size):
            raise NotStoredError(
                f"the store took '{file.name}', and does not hold it whole afterwards"
            )
