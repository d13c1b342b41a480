"""Kept checkpoints as logged models: in a real store of MLflow's, and read back."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from image_files import write_cameras
from mlflow import MlflowClient
from tiny import small_config, train_args, train_here

from raymimic.algo import BC
from raymimic.checkpoints.export import export_checkpoint
from raymimic.checkpoints.mlflow_model import _load_pyfunc
from raymimic.checkpoints.policy import policy_from_checkpoint
from raymimic.checkpoints.sources import fetched
from raymimic.data.training_data import inspect_data
from raymimic.errors import CheckpointError, EnvError
from raymimic.tracking import delivery
from raymimic.tracking.journal import (
    JournalReader,
    is_record,
    pending,
    run_id_of,
    spool_dir_of,
)
from raymimic.tracking.model_files import _fetch
from raymimic.training.kept_models import model_interface

OBS = "flat"


@dataclass
class Recorded:
    """A training that was recorded, and has not been delivered.

    Attributes:
        run_dir: its folder.
        store: URI of a database.
    """

    run_dir: Path
    store: str

    @property
    def spool(self) -> Path:
        return spool_dir_of(self.run_dir)

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.store)

    @property
    def run(self) -> Any:
        return self.client.get_run(str(run_id_of(self.run_dir)))

    def records(self, kind: str) -> list[dict[str, Any]]:
        found = JournalReader(self.spool).read()
        return [record.data for record in found if record.type == kind]

    def write(self, *records: dict[str, Any]) -> None:
        lines = "".join(json.dumps(record) + "\n" for record in records)
        with (self.spool / "journal.jsonl").open("a") as file:
            file.write(lines)

    def deliver(self) -> int:
        return delivery.run(self.spool, self.run_dir, self.store, None, patience_s=0.0)

    def models(self) -> dict[str, Any]:
        found = self.client.search_logged_models([self.run.info.experiment_id])
        return {m.name: m for m in found if m.source_run_id == self.run.info.run_id}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, hopper: Path) -> Recorded:
    """A training of three epochs that keeps each checkpoint; its records wait in the spool."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raymimic.tracking.mlflow_tracker.MLflowTracker._spawn", lambda self: Idle())
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        settings = ["mlflow.enabled=true", "train.num_epochs=3", "experiment.save.every_n_epochs=1"]
        settings += ["experiment.save.on_best_validation=false"]
        run_dir = train_here(folder, *train_args(hopper, *settings))
    return Recorded(run_dir, f"sqlite:///{folder}/mlflow.db")


class Idle:
    """A delivery that has ended."""

    returncode = 0

    def poll(self) -> int:
        return 0

    def wait(self, timeout: float | None = None) -> int:
        return 0


@pytest.fixture
def recorded(
    trained: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Recorded]:
    """A copy of that training's folder, which delivers to a store that tests share."""
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, getattr(sys, stream))
    monkeypatch.setenv("MLFLOW_UV_AUTO_DETECT", "false")
    shutil.copytree(trained.run_dir, tmp_path / "run", symlinks=True)
    copy = Recorded(tmp_path / "run", trained.store)
    journal = copy.spool / "journal.jsonl"
    key = json.loads(journal.read_text().splitlines()[0])["key"]
    journal.write_text(journal.read_text().replace(key, str(tmp_path)))
    yield copy
    mlflow.set_tracking_uri(None)


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_kept_checkpoints_become_models_that_act(recorded: Recorded, tmp_path: Path) -> None:
    assert recorded.deliver() == 0
    assert pending(recorded.spool) == 0
    run, models = recorded.run, recorded.models()
    assert models.keys() == {f"model_epoch_{epoch}" for epoch in (1, 2, 3)}
    linked = {output.model_id: output.step for output in run.outputs.model_outputs}
    assert linked == {m.model_id: 5 * int(m.tags["raymimic.epoch"]) for m in models.values()}
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.source_type) == ("hopper.hdf5", "local")
    assert json.loads(used.dataset.profile) == {"num_rows": 120, "num_demos": 6}
    assert json.loads(used.dataset.source)["uri"].endswith("/hopper.hdf5")
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "training")]
    assert "obs/flat" in used.dataset.schema
    model = models["model_epoch_2"]
    metrics = {metric.key: metric for metric in model.metrics}
    history = recorded.client.get_metric_history(run.info.run_id, "Train/Loss")
    assert len(history) == 3  # no point came twice
    (point,) = (point for point in history if point.value == metrics["Train/Loss"].value)
    loss = metrics["Train/Loss"]
    assert (loss.step, loss.timestamp) == (point.step, point.timestamp)
    assert (loss.dataset_name, loss.dataset_digest) == (used.dataset.name, used.dataset.digest)

    local = Path(recorded.client.download_artifacts(run.info.run_id, "config.json", str(tmp_path)))
    assert local.is_file()
    mlflow.set_tracking_uri(recorded.store)
    uris = (f"runs:/{run.info.run_id}/{model.name}", f"models:/{model.model_id}")
    checkpoint = recorded.run_dir / "models" / "model_epoch_2.pth"
    policy, _ = policy_from_checkpoint(str(checkpoint))
    for number, uri in enumerate(uris):
        place = tmp_path / str(number)
        place.mkdir()
        loaded = mlflow.pyfunc.load_model(uri, dst_path=str(place))
        assert {Path(name).name for name in files_below(place)} - {"registered_model_meta"} == {
            "MLmodel",
            "conda.yaml",
            "python_env.yaml",
            "requirements.txt",
            "input_example.json",
            "serving_input_example.json",
            "model_epoch_2.pth",
        }
        obs = np.random.default_rng(0).normal(size=(4, 11)).astype(np.float32)
        expected = policy({OBS: obs}, batched_ob=True)
        np.testing.assert_array_equal(loaded.predict({OBS: obs}), expected)
        assert loaded.predict(loaded.input_example).shape == (1, 3)
    assert loaded.get_raw_model().obs_keys == [OBS]

    # A resumed training logs all of it again.
    recorded.write(*recorded.records("model"), recorded.records("models")[-1])
    assert recorded.deliver() == 0
    assert {m.model_id for m in recorded.models().values()} == {m.model_id for m in models.values()}
    assert len(recorded.run.outputs.model_outputs) == 3


def test_the_model_of_a_deleted_checkpoint_is_deleted_unless_it_was_registered(
    recorded: Recorded,
) -> None:
    assert recorded.deliver() == 0
    models = recorded.models()
    mlflow.set_tracking_uri(recorded.store)
    name = f"registered-{os.getpid()}"
    mlflow.register_model(f"models:/{models['model_epoch_1'].model_id}", name)
    recorded.client.delete_logged_model(models["model_epoch_2"].model_id)  # by the user
    kept = recorded.records("models")[-1]["kept"]
    digest = models["model_epoch_3"].tags["raymimic.sha256"]
    recorded.write({"type": "models", "time": 1, "kept": {digest: [*kept[digest], "best"]}})
    assert recorded.deliver() == 0
    left = recorded.models()
    assert left.keys() == {"model_epoch_1", "model_epoch_3"}
    assert left["model_epoch_3"].tags["raymimic.kept"] == "epochs, best"


def test_a_checkpoint_that_went_before_its_delivery_is_not_uploaded(recorded: Recorded) -> None:
    recorded.write({"type": "models", "time": 1, "kept": {}})
    assert recorded.deliver() == 0
    assert recorded.client.get_run(recorded.run.info.run_id).outputs.model_outputs == []
    assert not list((recorded.spool / "artifacts").iterdir())


def test_an_evaluation_that_comes_late_counts_for_its_model(recorded: Recorded) -> None:
    assert recorded.deliver() == 0
    metrics = {"Rollout/Return/Hopper-v5": 12.5}
    recorded.write({"type": "epoch", "time": 9, "epoch": 2, "step": 10, "metrics": metrics})
    assert recorded.deliver() == 0
    values = {
        name: [metric.value for metric in model.metrics if "Return" in metric.key]
        for name, model in recorded.models().items()
    }
    assert values == {"model_epoch_1": [], "model_epoch_2": [12.5], "model_epoch_3": []}


def test_an_evaluation_before_its_model_repeats_no_point(recorded: Recorded) -> None:
    journal = recorded.spool / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    model = next(i for i, line in enumerate(lines) if json.loads(line)["type"] == "model")
    epoch = json.loads(lines[model])["epoch"]
    evaluation = {"type": "evaluation", "time": 9, "epoch": epoch, "step": 5 * epoch}
    evaluation |= {"metrics": {"Rollout/Return/Hopper-v5": 12.5}, "episodes": {}}
    lines.insert(model, json.dumps(evaluation) + "\n")
    journal.write_text("".join(lines))
    assert recorded.deliver() == 0
    run = recorded.run.info.run_id
    history = recorded.client.get_metric_history(run, "epoch")
    assert [(point.step, point.value) for point in history] == [(5, 1), (10, 2), (15, 3)]
    logged = recorded.models()[f"model_epoch_{epoch}"].metrics
    assert {"epoch", "Train/Loss", "Rollout/Hopper-v5/Return"} <= {metric.key for metric in logged}


def test_what_a_store_does_not_hold_is_sent_again(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a proxy that answers an upload with its page for maintenance, and status 200."""
    with monkeypatch.context() as patch:
        for method in ("log_artifact", "log_model_artifacts"):
            patch.setattr(MlflowClient, method, lambda *_: None)
        assert recorded.deliver() == 0
    left = pending(recorded.spool)
    assert left == 1 + 1 + 3  # config, picture and models
    assert all(m.status == "PENDING" for m in recorded.models().values())
    # The next connection tries them again.
    recorded.write({"type": "tags", "time": 9, "tags": {"later": "yes"}})
    assert recorded.deliver() == 0
    assert pending(recorded.spool) == 0
    assert all(m.status == "READY" for m in recorded.models().values())
    assert len(recorded.run.outputs.model_outputs) == 3
    history = recorded.client.get_metric_history(recorded.run.info.run_id, "Train/Loss")
    assert len(history) == 3


def test_a_strangers_model_runs_no_code(recorded: Recorded, tmp_path: Path) -> None:
    """Its `MLmodel` names modules and paths; raymimic's readers look at the checkpoint alone."""
    assert recorded.deliver() == 0
    model = recorded.models()["model_epoch_1"]
    mlflow.set_tracking_uri(recorded.store)
    hostile, marker = tmp_path / "hostile", tmp_path / "ran"
    (hostile / "data").mkdir(parents=True)
    (hostile / "code").mkdir()
    spy = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
    for module in ("evil", "raymimic", "torch", "mlflow"):
        (hostile / "code" / f"{module}.py").write_text(spy)
    (hostile / "MLmodel").write_text(
        "flavors:\n  python_function:\n    loader_module: evil\n    code: code\n"
        "    data: ../../../../etc/passwd\n"
    )
    shutil.copy(recorded.run_dir / "models" / "model_epoch_1.pth", hostile / "data" / "x.pth")
    theirs = recorded.client.create_logged_model(model.experiment_id, name="theirs")
    recorded.client.log_model_artifacts(theirs.model_id, str(hostile))
    recorded.client.finalize_logged_model(theirs.model_id, "READY")
    fetched_to = tmp_path / "fetched"
    fetched_to.mkdir()
    file = _fetch(f"models:/{theirs.model_id}", fetched_to, recorded.store)
    assert files_below(fetched_to) - {"registered_model_meta"} == {"checkpoint.pth"}
    assert policy_from_checkpoint(str(file))[0].obs_keys == [OBS]
    assert _load_pyfunc(str(hostile)).get_raw_model().obs_keys == [OBS]
    (hostile / "data" / "y.pth").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="holds 2 checkpoints"):
        _load_pyfunc(str(hostile))
    with pytest.raises(CheckpointError, match=r"y\.pth"):
        _load_pyfunc(str(hostile / "data" / "y.pth"))
    assert not marker.exists()


@pytest.mark.mlflow
def test_a_model_is_a_checkpoint_for_every_reader(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a process of its own, as commands do it."""
    assert recorded.deliver() == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", recorded.store)
    run_id = recorded.run.info.run_id
    with fetched(f"runs:/{run_id}/model_epoch_3") as file:
        whole = (recorded.run_dir / "models" / "model_epoch_3.pth").read_bytes()
        assert Path(file).read_bytes() == whole
    assert not Path(file).exists()
    with pytest.raises(CheckpointError, match=f"name one of the run's models: runs:/{run_id}/mod"):
        export_checkpoint(f"runs:/{run_id}", str(tmp_path / "other.pth"))
    assert not (tmp_path / "other.pth").exists()


@pytest.mark.parametrize(
    "uri",
    [
        "runs:/",
        "models:/",
        "models://m-1",
        "runs:/../x",
        "runs:/a//b",
        "models:/a/./b",
        "runs:/a/..",
    ],
)
def test_an_odd_address_is_refused(uri: str) -> None:
    with pytest.raises(CheckpointError, match="is no address of a model"), fetched(uri):
        pass


def test_a_store_that_is_not_there_is_named_and_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"no MLflow store at '.*mlflow.db'; set MLFLOW_TRA"):
        policy_from_checkpoint("models:/m-1")
    assert not list(tmp_path.iterdir())


def test_an_error_names_the_model_and_not_its_copy(
    trained: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copy.pth").write_bytes(b"no checkpoint")
    monkeypatch.setattr(
        "raymimic.checkpoints.sources.fetch_checkpoint", lambda *_: tmp_path / "copy.pth"
    )
    with pytest.raises(CheckpointError, match="'models:/m-1'") as caught:
        policy_from_checkpoint("models:/m-1")
    assert "copy.pth" not in str(caught.value)


def test_rows_go_on_with_their_episodes_only_if_asked_to(trained: Recorded) -> None:
    model = _load_pyfunc(str(trained.run_dir / "last.pth"))
    obs = {OBS: np.zeros((2, 11), np.float32)}
    with pytest.raises(EnvError, match="2 rows cannot go on with 0 episodes"):
        model.predict(obs, {"start_episode": False})
    assert model.predict(obs).shape == (2, 3)
    assert model.predict(obs, {"start_episode": False}).shape == (2, 3)
    with pytest.raises(EnvError, match="3 rows cannot go on with 2 episodes"):
        model.predict({OBS: np.zeros((3, 11), np.float32)}, {"start_episode": False})
    with pytest.raises(EnvError, match=r"have \[1, 2\] rows"):
        model.predict({**obs, "more": np.zeros((1, 1))})
    with pytest.raises(EnvError, match="needs observation 'flat'"):
        model.predict({"other": np.zeros((1, 1))})


def test_a_damaged_record_of_a_model_is_none(trained: Recorded) -> None:
    """A journal may be a stranger's: each of these would name files or break MLflow's entities."""
    (record, *_) = trained.records("model")
    assert is_record(record)
    for change in (
        {"name": "../x"},
        {"name": ""},
        {"sha256": "../../x"},
        {"epoch": -1},
        {"inputs": [{"name": "flat", "dtype": "object", "shape": [3]}]},
        {"inputs": [{"name": "flat", "dtype": "float32", "shape": [0]}]},
        {"inputs": {}},
        {"copy": None},
    ):
        assert not is_record({**record, **change}), change
    (data,) = trained.records("datasets")
    (entry,) = data["datasets"]
    for change in ({"digest": "x" * 37}, {"name": ""}, {"context": "x"}, {"sizes": {"a": "b"}}):
        assert not is_record({**data, "datasets": [{**entry, **change}]}), change
    kept = trained.records("models")[-1]
    assert is_record(kept)
    assert not is_record({**kept, "kept": {"x": []}})


def test_examples_of_images_stay_small(tmp_path: Path) -> None:
    for size, keys in ((12, ["camera_0", "flat"]), (200, [])):
        path = write_cameras(tmp_path / f"{size}.hdf5", lengths=(2, 2), sizes=[(size, size)])
        config = small_config("bc", **{"train.data": str(path), "train.batch_size": 2})
        config.observation.modalities.obs.rgb = ["camera_0"]
        interface = model_interface(config, inspect_data(config, BC.reads(config)))
        assert interface is not None
        assert sorted(interface.example) == keys
    assert [tensor.shape for tensor in interface.inputs] == [(3,), (200, 200, 3)]
