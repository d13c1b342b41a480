"""Sweeps whose results lie behind a URI, of which the driver's machine may be lost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow_server import Server
from sweeps import EPOCHS, RATE, STEPS, SWEEP, Tune, result_of, results_in
from waiting import pids, wait_for

from raymimic import storage
from raymimic.sweep.spec.sweep_file import sweep_from_dict
from raymimic.sweep.trials.folder import SweepFolder
from raymimic.sweep.trials.trial import trial_config
from raymimic.training.run_folder import RunFolder

pytestmark = pytest.mark.ray


def children_of(client: MlflowClient, parent: Any) -> dict[str, Any]:
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    found = client.search_runs([parent.info.experiment_id], query)
    assert len({run.data.tags["trial"] for run in found}) == len(found)
    return {run.data.tags["trial"]: run for run in found}


def one_runs(results: dict[str, dict[str, Any]]) -> bool:
    states = [(result["status"], len(result["curve"])) for result in results.values()]
    return any(status == "running" and scores >= 2 for status, scores in states)


def ended_ones(results: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, result in results.items() if result["status"] == "finished"}


def test_a_sweep_goes_on_where_only_its_uri_is_left(
    tune: Callable[..., Tune], tmp_path: Path, server: Server
) -> None:
    server.start()
    store = f"local://{tmp_path}/store"
    places = {"mlflow.tracking_uri": server.uri, "ray.storage_path": store}
    sweep = SWEEP | {"set": SWEEP["set"] | places | {"mlflow.experiment_name": "remote"}}
    killed = tune("remote", sweep, "--max-concurrent", "2")

    def one_has_ended_and_one_runs(results: dict[str, dict[str, Any]]) -> bool:
        ended = ended_ones(results)
        if not ended or not one_runs(results):
            return False
        return ended_ones(results_in(killed.found_in(tmp_path / "store"))) == ended

    killed.wait_for(one_has_ended_and_one_runs, "a trial to have ended and another to run")
    killed.kill()
    before = killed.results()
    uri_dir = killed.found_in(tmp_path / "store")
    over = ended_ones(results_in(uri_dir))
    ended = {name: (uri_dir / "trials" / name / "ended.json").stat() for name in over}
    assert not list((tmp_path / "out").rglob("*.pth"))

    client = MlflowClient(server.uri)

    def runs() -> list[Any]:
        experiment = client.get_experiment_by_name("remote")
        return [] if experiment is None else client.search_runs([experiment.experiment_id])

    # The deliveries outlive their driver: the parent is closed too, and trials that never ended.
    delivery = f"raymimic.tracking.delivery\0{tmp_path}/out/"
    wait_for(lambda: not pids("", delivery), "the runs of the killed driver to be closed")
    states = {run.data.tags.get("trial"): run.info.status for run in runs()}
    # The driver may have been killed before it opened the run of a trial without scores.
    assert states.keys() >= {None, *(name for name in before if before[name]["curve"])}
    # The one that has just ended may have been closed by its driver or without it.
    assert {states[name] for name in over} <= {"KILLED", "FINISHED"}
    assert {status for name, status in states.items() if name not in over} == {"KILLED"}
    assert over
    for run in runs():  # as if the driver had been killed before it closed any of them
        client.set_terminated(run.info.run_id, "KILLED")

    (tmp_path / "out").rename(tmp_path / "lost")
    outcome = tune("remote", sweep, "--resume").outcome()
    assert outcome["sweep_dir"].startswith(f"{store}/remote/")
    assert outcome["best_config"] == f"{outcome['sweep_dir']}/best_config.json"
    after = results_in(uri_dir)
    assert {result["status"] for result in after.values()} == {"finished"}
    steps = [STEPS * epoch for epoch in range(RATE, EPOCHS + 1, RATE)]
    for name, result in after.items():
        assert result["run_dir"] == f"{outcome['sweep_dir']}/trials/{name}"
        assert [step for step, _ in result["curve"]] == steps
        known = before.get(name, {"curve": []})["curve"]
        assert result["curve"][: len(known)] == known
        best = result["best_checkpoint"].removeprefix("local://")
        assert Path(best).is_file()
    for name, stat in ended.items():
        assert (uri_dir / "trials" / name / "ended.json").stat().st_mtime == stat.st_mtime
        log = (uri_dir / "trials" / name / "logs" / "log.txt").read_text()
        assert log.count("training td3_bc") == 1
    names = {"table.csv", "table.json", "best_config.json", "learning_curves.png", "clock.json"}
    assert names <= {path.name for path in uri_dir.iterdir()}
    assert not list((tmp_path / "out").rglob("*.pth"))

    parent = client.get_run(outcome["mlflow_parent_run_id"])
    children = children_of(client, parent)
    assert parent.info.status == "FINISHED"
    assert len(runs()) == 1 + len(after)
    assert children.keys() == after.keys()
    for name, child in children.items():
        assert child.info.status == "FINISHED"
        assert child.data.tags["sweep"] == "remote"
        assert child.data.tags["environment"] == "Hopper-v5"
        assert len(child.data.params) < 70
        assert child.data.tags["seed"] == child.data.params["train.seed"]
        points = client.get_metric_history(child.info.run_id, "Rollout/Hopper-v5/Return")
        assert [point.step for point in points] == steps
        curve = [score for _, score in after[name]["curve"]]
        assert [point.value for point in points] == pytest.approx(curve, abs=1e-9)
        assert float(child.data.params["algo.alpha"]) == after[name]["setting"]["algo.alpha"]
    different = {
        key
        for one in children.values()
        for key, value in one.data.params.items()
        if any(other.data.params[key] != value for other in children.values())
    }
    assert different == {"algo.alpha", "train.seed"}
    assert sum(result["episodes"] for result in after.values()) == 4 * 2 * len(steps)
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"table.csv", "table.json", "best_config.json", "figures"} <= artifacts
    assert parent.data.metrics["final/mean"] == pytest.approx(outcome["final"]["mean"])
    means = [row["mean"] for row in outcome["table"]]
    assert means == sorted(means, reverse=True)
    best = outcome["table"][0]["by_seed"]
    assert means[0] == pytest.approx(sum(best.values()) / len(best))
    (output,) = parent.outputs.model_outputs
    (checkpoint,) = client.list_logged_model_artifacts(output.model_id, "data")
    assert checkpoint.path.endswith(".pth")
    for run in (parent, *children.values()):
        assert [entry.dataset.name for entry in run.inputs.dataset_inputs] == ["hopper.hdf5"]
    assert outcome["final"]["episodes"] == 2 * 3


def test_two_sweeps_of_one_name_share_nothing_behind_a_uri(tmp_path: Path) -> None:
    places = {"ray.storage_path": f"local://{tmp_path}/store", "mlflow.enabled": False}
    specs = []
    for machine in ("a", "b"):  # each with local folders of its own
        places["train.output_dir"] = str(tmp_path / machine)
        content = SWEEP | {"name": "s", "set": SWEEP["set"] | places}
        specs.append(sweep_from_dict(content | {"dataset": str(tmp_path / "hopper.hdf5")}))
    first, second = (SweepFolder.create(spec) for spec in specs)
    assert first.uri != second.uri
    assert first.local.is_relative_to(tmp_path / "a" / "s")
    trial = specs[0].trials()[0]
    run_dir = storage.join(first.trials, trial.trial_id)
    at = RunFolder.at(run_dir, trial_config(specs[0], trial)).local
    assert at == first.local / "trials" / trial.trial_id

    first.add(result_of(trial, curve=[(20, 1.0)], best=1.0, last=1.0, episodes=2, run_dir=run_dir))
    first.mirror()
    second.mirror()
    first.release()
    second.release()
    storage.remove_tree(second.uri)
    assert SweepFolder.find(specs[1]).results().keys() == {trial.trial_id}
