"""The delivery in this process: a spool against a real store of MLflow's, and one that refuses."""

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from old_layout import to_old_records

from raymimic.tracking import delivery
from raymimic.tracking.journal import JournalWriter, pending, run_id_of, spool_dir_of
from raymimic.tracking.tables import TABLES_TAG

Deliver = Callable[..., int]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database, which MLflow takes seconds to create."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    spool_dir_of(folder).mkdir(parents=True)
    return folder


@pytest.fixture
def deliver(run_dir: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> Deliver:
    """Delivers the run's spool until nothing is left; the streams of the process come back."""
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")

    def run(server: str = store, owner: int | None = None, folder: Path = run_dir) -> int:
        return delivery.run(spool_dir_of(folder), folder, server, owner, patience_s=0.0)

    return run


def write(
    run_dir: Path,
    *records: dict[str, Any],
    pid: int | None = None,
    trial: bool = False,
    experiment: str = "tests",
) -> None:
    """Writes a start record, the given ones, and closes the journal."""
    start = {
        "type": "start",
        "key": str(run_dir),
        "tracking_uri": "sqlite:///elsewhere.db",
        "experiment": experiment,
        "run_name": "one",
        "trial": trial,
        "params": {"algo.alpha": "2.5"},
        "tags": {"algo": "td3_bc"},
        "host": socket.gethostname(),
        "pid": os.getpid() if pid is None else pid,
    }
    writer = JournalWriter(spool_dir_of(run_dir))
    for record in (start, *records):
        writer.append({"time": 1_700_000_000_000, **record})
    writer.close()


def epoch(number: int) -> dict[str, Any]:
    metrics = {"Train/Loss": 1 / number}
    return {"type": "epoch", "epoch": number, "step": 5 * number, "metrics": metrics}


def evaluation(number: int, *returns: float | None, knows: bool = False) -> dict[str, Any]:
    """An evaluation of a namespaced environment; an episode without a return has failed."""
    ended = [value for value in returns if value is not None]
    summary = {"Failed_Episodes": len(returns) - len(ended), "Return": sum(ended) / len(ended)}
    summary |= {"Return_Std": 0.5, "Horizon": 3.0, "Success_Rate": 0.0, "Lifted_Success_Rate": 0.5}
    rows = [
        {
            **{"seed": 2**60 + i, "episode_return": value, "success": False if knows else None},
            **{"length": None if value is None else 3, "error": "fell" if value is None else None},
        }
        for i, value in enumerate(returns)
    ]
    metrics = {f"Rollout/{name}/ns/Env-v0": value for name, value in summary.items()}
    metrics["Timing/rollout_s"] = 1.5
    episodes = {"ns/Env-v0": rows}
    return {**epoch(number), "type": "evaluation", "metrics": metrics, "episodes": episodes}


def points(store: str, run: Run, name: str) -> list[tuple[int, float]]:
    history = MlflowClient(store).get_metric_history(run.info.run_id, name)
    return [(point.step, point.value) for point in history]


def table(store: str, run: Run, name: str) -> list[dict[str, Any]]:
    """A table's rows, read as MLflow reads them."""
    client = MlflowClient(store)
    frame = client.load_table(run.info.experiment_id, name, [run.info.run_id])
    return [{k: None if v != v else v for k, v in row.items()} for row in frame.to_dict("records")]


def test_evaluations_have_a_section_of_their_environment_and_tables(
    deliver: Deliver, run_dir: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)  # `load_table` asks the global one
    first, second = evaluation(1, 1.0, None, 2.0, 5.0), evaluation(2, 4.0, knows=True)
    # The evaluation of epoch 1 comes late, and a resumed training logs it again.
    failed = {"type": "finish", "status": "FAILED"}
    write(run_dir, epoch(1), epoch(2), first, first, second, failed)
    assert deliver() == 0
    run = MlflowClient(store).get_run(run_id_of(run_dir))
    # MLflow's compare page begins with the first.
    assert [name.rpartition("/")[2] for name in run.data.metrics][:3] == [
        *("Return", "Success_Rate", "Horizon")
    ]
    assert set(run.data.metrics) == {
        *(f"Rollout/ns:Env-v0/{name}" for name in ("Return", "Horizon", "Success_Rate")),
        *(f"Rollout/ns:Env-v0/{name}" for name in ("Failed_Episodes", "Lifted_Success_Rate")),
        *("Train/Loss", "Timing/rollout_s", "epoch"),
    }
    assert points(store, run, "Rollout/ns:Env-v0/Return") == [(5, pytest.approx(8 / 3)), (10, 4.0)]
    assert points(store, run, "Rollout/ns:Env-v0/Success_Rate") == [(10, 0.0)]
    assert points(store, run, "Rollout/ns:Env-v0/Failed_Episodes") == [(5, 1.0), (10, 0.0)]
    assert points(store, run, "epoch") == [(5, 1.0), (10, 2.0)]

    rows = table(store, run, "evaluations.json")
    assert [(row["epoch"], row["gradient_steps"]) for row in rows] == [(1, 5), (2, 10)]
    names = ("return_min", "return_q25", "return_median", "return_q75", "return_max")
    assert [[row[name] for name in names] for row in rows] == [[1.0, 1.5, 2.0, 3.5, 5.0], [4.0] * 5]
    assert [(row["episodes"], row["success_rate"]) for row in rows] == [(4, None), (1, 0.0)]
    assert rows[0]["environment"] == "ns/Env-v0"
    assert [row["lifted_success_rate"] for row in rows] == [0.5, 0.5]
    rows = table(store, run, "episodes.json")
    assert [(row["epoch"], row["episode"], row["return"], row["error"]) for row in rows] == [
        *((1, 0, 1.0, None), (1, 1, None, "fell"), (1, 2, 2.0, None), (1, 3, 5.0, None)),
        (2, 0, 4.0, None),
    ]
    assert int(rows[0]["seed"]) == 2**60

    # A killed training's later evaluation reaches the tables too.
    write(run_dir, evaluation(3, 6.0), pid=2**22 + 1)
    assert deliver() == 0
    # A metric that has begun goes on.
    assert points(store, run, "Rollout/ns:Env-v0/Success_Rate") == [(10, 0.0), (15, 0.0)]
    assert [row["epoch"] for row in table(store, run, "evaluations.json")] == [1, 2, 3]
    assert MlflowClient(store).get_run(run.info.run_id).info.status == "KILLED"


def test_a_run_and_a_sweep_of_0_1_0_go_on_in_their_own_names_and_steps(
    deliver: Deliver, run_dir: Path, store: str
) -> None:
    client, end = MlflowClient(store), {"type": "finish", "status": "FINISHED"}
    write(run_dir, epoch(1), evaluation(1, 3.0), {"type": "finish", "status": "FAILED"})
    assert deliver() == 0
    run = client.get_run(to_old_records(run_dir, client))
    write(run_dir, epoch(1), evaluation(1, 3.0), epoch(2), evaluation(2, 4.0, knows=True), end)
    assert deliver() == 0
    trial = run_dir / "trials" / "late"
    write(trial, epoch(1), evaluation(1, 3.0), end, trial=True)
    assert deliver(folder=trial) == 0
    begun_later = client.get_run(run_id_of(trial))
    assert begun_later.data.tags["mlflow.parentRunId"] == run.info.run_id
    for old, epochs in ((client.get_run(run.info.run_id), 2), (begun_later, 1)):
        own = [3.0, 4.0][:epochs]
        assert points(store, old, "Rollout/Return/ns/Env-v0") == list(enumerate(own, 1))
        assert points(store, old, "gradient_steps") == [(e, 5 * e) for e in range(1, epochs + 1)]
        assert not any("ns:Env-v0" in name or name == "epoch" for name in old.data.metrics)
        assert "Rollout/Success_Rate/ns/Env-v0" in old.data.metrics
        assert client.list_artifacts(old.info.run_id) == []
        assert TABLES_TAG not in old.data.tags


def test_a_finished_run_arrives_whole(deliver: Deliver, run_dir: Path, store: str) -> None:
    write(run_dir, epoch(1), epoch(2), {"type": "finish", "status": "FAILED"})
    assert pending(spool_dir_of(run_dir)) == 4
    assert deliver() == 0
    assert pending(spool_dir_of(run_dir)) == 0
    run = MlflowClient(store).get_run(run_id_of(run_dir))
    assert run.info.status == "FAILED"
    assert (run.data.params, run.data.tags["algo"]) == ({"algo.alpha": "2.5"}, "td3_bc")
    history = MlflowClient(store).get_metric_history(run.info.run_id, "Train/Loss")
    assert [(point.step, point.value) for point in history] == [(5, 1.0), (10, 0.5)]

    # Delivered again, and logged again by a resumed training, nothing stands there twice.
    write(run_dir, epoch(1), epoch(2), epoch(3), {"type": "finish", "status": "FINISHED"})
    assert deliver() == 0
    history = MlflowClient(store).get_metric_history(run.info.run_id, "Train/Loss")
    assert [point.step for point in history] == [5, 10, 15]
    assert MlflowClient(store).get_run(run.info.run_id).info.status == "FINISHED"


def test_only_an_experiment_that_raymimic_makes_gets_a_kind(
    deliver: Deliver, run_dir: Path, store: str
) -> None:
    client = MlflowClient(store)
    client.create_experiment("theirs")
    for name in ("made", "theirs"):
        folder = run_dir / name
        write(folder, {"type": "finish", "status": "FINISHED"}, experiment=name)
        assert deliver(folder=folder) == 0
    kinds = [
        experiment.tags.get("mlflow.experimentKind")
        for name in ("made", "theirs")
        if (experiment := client.get_experiment_by_name(name)) is not None
    ]
    assert kinds == ["custom_model_development", None]


def test_a_description_is_replaced_until_the_user_edits_it(
    deliver: Deliver, run_dir: Path, store: str
) -> None:
    client, name = MlflowClient(store), "mlflow.note.content"

    def described(text: str) -> str:
        write(run_dir, {"type": "note", "text": text}, {"type": "finish", "status": "FINISHED"})
        assert deliver() == 0
        return client.get_run(run_id_of(run_dir)).data.tags[name]

    assert described("first | one\n\n`x`") == "first | one\n\n`x`"
    assert described("second") == "second"
    assert described("x" * 9000) == "x" * 8000
    client.set_tag(run_id_of(run_dir), name, "mine")
    assert described("third") == "mine"


def test_system_metrics_arrive_once_under_steps_of_their_own(
    deliver: Deliver, run_dir: Path, store: str
) -> None:
    name = "system/cpu_utilization_percentage"
    load = [{"type": "system", "step": i, "metrics": {name: 50.0 + i}} for i in range(3)]
    write(run_dir, load[0], epoch(1), load[1], {"type": "finish", "status": "FAILED"})
    assert deliver() == 0
    (spool_dir_of(run_dir) / "cursor.json").unlink()  # of a crash before it was written
    write(run_dir, epoch(1), load[2], {"type": "finish", "status": "FINISHED"})
    assert deliver() == 0
    run = MlflowClient(store).get_run(run_id_of(run_dir))
    assert points(store, run, name) == [(0, 50.0), (1, 51.0), (2, 52.0)]
    assert points(store, run, "epoch") == [(5, 1.0)]


def test_the_run_of_a_killed_training_is_closed(
    deliver: Deliver, run_dir: Path, store: str
) -> None:
    write(run_dir, epoch(1), pid=2**22 + 1)  # no process has this id
    assert deliver() == 0
    run = MlflowClient(store).get_run(run_id_of(run_dir))
    assert (run.info.status, run.info.end_time) == ("KILLED", 1_700_000_000_000)


def test_a_run_that_still_trains_stays_open(deliver: Deliver, run_dir: Path, store: str) -> None:
    write(run_dir, epoch(1))  # by this process
    assert deliver() == 0
    assert MlflowClient(store).get_run(run_id_of(run_dir)).info.status == "RUNNING"


def test_a_store_that_refuses_keeps_the_records_in_the_spool(
    deliver: Deliver, run_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(run_dir, epoch(1), {"type": "finish", "status": "FINISHED"})
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        server = f"http://127.0.0.1:{closed.getsockname()[1]}"
        assert deliver(server) == delivery.EXIT_UNDELIVERED
    assert pending(spool_dir_of(run_dir)) == 3
    assert run_id_of(run_dir) is None
    (line,) = capfd.readouterr().out.splitlines()
    assert line.startswith(f"WARNING MLflow at {server} cannot be reached (")
    assert line.endswith(f"is kept in {spool_dir_of(run_dir)}: it is delivered when MLflow answers")


def test_a_parent_hears_whether_the_store_takes_records(
    deliver: Deliver, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gone = 2**22 + 1  # no process has this id
    run, trial = (tmp_path / name for name in ("a/run", "s/trials/trial"))
    write(run, epoch(1), pid=gone)
    write(trial, epoch(1), pid=gone, trial=True)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        server = f"http://127.0.0.1:{closed.getsockname()[1]}"
        for folder in (run, trial):
            assert deliver(server, gone, folder) == delivery.EXIT_UNDELIVERED
            warning, state = capfd.readouterr().out.splitlines()
            assert warning.startswith("WARNING MLflow at ")
            assert state == f"{delivery.STATE} 1"
    # A store that answers is not to blame for a sweep's run that is not there yet.
    assert deliver(owner=gone, folder=trial) == delivery.EXIT_UNDELIVERED
    assert capfd.readouterr().out == ""


def test_an_empty_or_foreign_journal_is_left_alone(deliver: Deliver, run_dir: Path) -> None:
    (spool_dir_of(run_dir) / "journal.jsonl").write_text("")
    assert deliver() == 0
    write(run_dir, epoch(1))
    assert deliver(owner=os.getpid() + 1) == 0  # of another training than the newest one
    assert run_id_of(run_dir) is None
