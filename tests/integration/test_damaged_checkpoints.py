"""Checkpoints and lists that are damaged or lost, and the runs that resume from them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checks import assert_refused, assert_same, state_of
from mlflow.tracking import MlflowClient
from old_layout import to_old_layout, to_old_records
from run_records import epochs_of, evaluations_of, manifest_path
from tiny import Ran, train_args, train_here

from raymimic.checkpoints.reading import load_dict_from_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("evaluations_here")]

EPOCHS, LATER = 6, 8
SETTINGS = [
    *("ray.commit_interval_s=0", "experiment.save.every_n_epochs=4", "experiment.validate=true"),
    *("train.hdf5_filter_key=train", "train.hdf5_validation_filter_key=valid"),
    *("experiment.rollout.enabled=true", "experiment.rollout.rate=2", "experiment.rollout.n=2"),
    *("experiment.rollout.horizon=10", "experiment.render_video=false"),
    *("experiment.save.on_best_rollout_return=true", "experiment.save.on_best_validation=true"),
]


@pytest.fixture(scope="module")
def runs(hopper: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of 6 epochs, and one of 8 that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs")
    short, whole = (
        train_here(folder, *train_args(hopper, *SETTINGS, f"train.num_epochs={epochs}"))
        for epochs in (EPOCHS, LATER)
    )
    return short, whole


@pytest.fixture
def run(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the run of 6 epochs, which may be damaged."""
    return Path(shutil.copytree(runs[0], tmp_path / "copy" / "test" / runs[0].name))


def listed(run: Path) -> dict[str, Any]:
    """The list of checkpoints and the evaluations, but for times and digests."""
    content: dict[str, Any] = json.loads(manifest_path(run).read_text())
    for entry in content["checkpoints"]:
        entry.pop("evaluated", None)
        digest = entry.pop("sha256", None)  # 0.1.0 has none
        assert digest is None or len(digest) == 64
    return content | {"outcomes": evaluations_of(run), "dropped": None}


def resume(cli: Callable[..., Ran], run: Path, *args: str) -> Ran:
    settings = ["--set", f"train.num_epochs={LATER}"]
    return cli("train", "--resume", str(run), "--json", *args, *settings)


def assert_as_uninterrupted(ran: Ran, whole: Path, older_until: int = 0) -> None:
    """The result is that of the whole run; an older version wrote neither steps nor episodes."""
    newest = json.dumps({"last_checkpoint": str(whole / "models" / f"model_epoch_{LATER}.pth")})
    assert_same(state_of(ran), state_of(Ran(0, newest, "")))
    lists = [listed(Path(ran.result["run_dir"])), listed(whole)]
    for outcome in (outcome for each in lists for outcome in each["outcomes"]):
        assert outcome["epoch"] <= older_until or (outcome["step"] and outcome["played"])
        if outcome["epoch"] <= older_until:
            outcome.pop("step", None)
            outcome.pop("played", None)
    assert lists[0] == lists[1]
    best = [e["file"] for e in listed(whole)["checkpoints"] if "best" in e["keep"]]
    assert [Path(ran.result["best_checkpoint"]).name] == best


def flip(path: Path, share: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(share * (len(data) - 1))] ^= 4
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "nothing": lambda models: None,
    "empty": lambda models: (models / "model_epoch_6.pth").write_bytes(b""),
    "truncated": lambda models: os.truncate(models / "model_epoch_6.pth", 9000),
    "a bit of the weights": lambda models: flip(models / "model_epoch_6.pth", 0.7),
    "no list": lambda models: (models.parent / "checkpoints.json").unlink(),
    "neither list nor newest": lambda models: [
        (models.parent / name).unlink() for name in ("checkpoints.json", "models/model_epoch_6.pth")
    ],
    "no evaluations": lambda models: (models.parent / "evaluations.jsonl").unlink(),
    "the last two": lambda models: [
        flip(models / f"model_epoch_{epoch}.pth", 0.5) for epoch in (5, 6)
    ],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_ends_as_an_uninterrupted_one(cli, runs, run, damage):
    DAMAGE[damage](run / "models")
    (run / "models" / "mine.txt").write_text("mine")
    ran = resume(cli, run)
    assert_as_uninterrupted(ran, runs[1])
    assert ran.err == ""
    assert (run / "models" / "mine.txt").read_text() == "mine"
    log = (run / "logs" / "log.txt").read_text()
    assert ("warning: " in log) == (damage != "nothing")
    said = dict.fromkeys(("nothing", "no list", "neither list nor newest", "no evaluations"))
    said["the last two"] = 4
    if (epoch := said.get(damage, 5)) is not None:
        assert f"goes on from 'model_epoch_{epoch}.pth'" in log
        assert "model_epoch_6.pth' is truncated or damaged" in log
    assert ("was lost and is rebuilt" in log) == ("list" in damage)
    assert ("lacks the evaluations of epochs" in log) == ("evaluations" in damage)


@pytest.mark.parametrize("digests", [False, True])
@pytest.mark.parametrize("damage", ["nothing", "truncated"])
def test_a_run_of_an_older_version_goes_on_in_its_layout(cli, runs, run, damage, digests):
    to_old_layout(run, digests=digests)
    DAMAGE[damage](run / "models")
    before = {path.name for path in run.iterdir()}
    ran = resume(cli, run)
    assert_as_uninterrupted(ran, runs[1], older_until=EPOCHS)
    assert {path.name for path in run.iterdir()} == before
    assert (run / "models" / "checkpoints.json").exists()


def test_the_epochs_of_a_resumed_run_are_an_uninterrupted_ones(cli, runs, run):
    newest = resume(cli, run).result["last_checkpoint"]
    lines = (run / "epochs.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == epochs_of(newest)
    assert [epoch["epoch"] for epoch in epochs_of(newest)] == list(range(1, LATER + 1))


def test_damaged_and_lost_records(cli, runs, run):
    for name in ("epochs.jsonl", "evaluations.jsonl"):
        data = (run / name).read_bytes()
        flip(run / name, 0.4)
        assert_refused(resume(cli, run), str(run / name), "is damaged", "move it away")
        (run / name).write_bytes(data)
    (run / "epochs.jsonl").unlink()
    ran = resume(cli, run)
    assert ran.status == 0
    assert "warning: " in ran.out
    assert "epochs.jsonl' was lost: training goes on" in ran.out
    whole = runs[1] / "models" / f"model_epoch_{LATER}.pth"
    ours, theirs = (
        load_dict_from_checkpoint(str(path)) for path in (ran.result["last_checkpoint"], whole)
    )
    assert_same(ours["model"], theirs["model"])
    assert listed(run) == listed(runs[1])


def test_a_run_without_a_whole_checkpoint(cli, run):
    models = run / "models"
    for path in models.glob("*.pth"):
        path.write_bytes(b"")
    before = {path.name for path in models.iterdir()}
    assert_refused(resume(cli, run), "model_epoch_6.pth", str(models), "start a new run")
    (run / "checkpoints.json").unlink()
    assert_refused(resume(cli, run), "model_epoch_6.pth", str(models), "start a new run")
    assert {path.name for path in models.iterdir()} == before
    assert not (run / "checkpoints.json").exists()


def test_a_run_that_has_lost_all_its_checkpoints(cli, run):
    shutil.rmtree(run / "models")
    assert_refused(resume(cli, run), "no checkpoint at", "restore one in", str(run / "models"))
    (run / "checkpoints.json").unlink()
    assert_refused(resume(cli, run), str(run / "models"), "no checkpoint any more")


@pytest.mark.parametrize("text", ["{}", "\0\xff"])
def test_a_list_that_is_none(cli, run, text):
    path = run / "checkpoints.json"
    path.write_text(text)
    before = {path.name for path in (run / "models").iterdir()}
    assert_refused(resume(cli, run), str(path), "move it away")
    assert {path.name for path in (run / "models").iterdir()} == before


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "null",
        lambda text: '{"algo_name": "td3_bc"}',
        lambda text: json.dumps(json.loads(text) | {"train": None}),
        lambda text: json.dumps(json.loads(text) | {"train": []}),
        lambda text: json.dumps(json.loads(text) | {"experiment": 5}),
        lambda text: json.dumps(json.loads(text) | {"algo_name": ["td3_bc"]}),
        lambda text: json.dumps(json.loads(text) | {"algo_name": "td4_bc"}),
        lambda text: json.dumps(json.loads(text) | {"codec": 1}),
        lambda text: "[" * 100_000,
    ],
)
def test_a_config_that_is_none(cli, run, change):
    path = run / "config.json"
    path.write_text(change(path.read_text()))
    assert_refused(resume(cli, run), str(path))


# -- from an earlier checkpoint --


def test_going_on_from_an_earlier_checkpoint(cli, runs, run):
    ran = resume(cli, run, "--from", "models/model_epoch_4.pth")
    assert_as_uninterrupted(ran, runs[1])
    assert ran.err == ""
    assert "training goes on from 'model_epoch_4.pth', after epoch 4" in ran.out
    kept = run / "replaced" / "1"
    files = {str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()}
    assert files == {
        *("checkpoints.json", "epochs.jsonl", "evaluations.jsonl"),
        *("models/model_epoch_5.pth", "models/model_epoch_6.pth"),
    }
    again = resume(cli, run, "--from", str(run / "models" / "model_epoch_7.pth"))
    assert_as_uninterrupted(again, runs[1])
    assert {p.name for p in (run / "replaced").iterdir()} == {"1", "2"}
    # Nothing is lost: the former end of the run goes on as before.
    shutil.copytree(kept, run, dirs_exist_ok=True)
    assert_as_uninterrupted(resume(cli, run), runs[1])


def test_a_checkpoint_that_cannot_be_gone_on_from(cli, runs, run, hopper, tmp_path):
    elsewhere = str(runs[1] / "models" / "model_epoch_8.pth")
    before = listed(run)
    assert_refused(resume(cli, run, "--from", elsewhere), elsewhere, "copy it there")
    assert_refused(resume(cli, run, "--from", "none.pth"), "none.pth", "no checkpoint at")
    flip(run / "models" / "model_epoch_4.pth", 0.5)
    assert_refused(resume(cli, run, "--from", "model_epoch_4.pth"), "model_epoch_4.pth", "damaged")
    args = ["--dataset", str(hopper), "--from", "model_epoch_4.pth"]
    assert_refused(cli("train", "--algo", "td3_bc", *args), "--from", "--resume")
    other = cli(*train_args(hopper, *SETTINGS, "algo.alpha=1"), "--json").result["last_checkpoint"]
    shutil.copyfile(other, run / "models" / "other.pth")
    assert_refused(resume(cli, run, "--from", "other.pth"), "algo.alpha was 1 and now is 2.5")
    assert listed(run) == before
    assert not (run / "replaced").exists()


@pytest.mark.mlflow
def test_mlflow_has_each_epoch_once(cli, hopper, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    records = ["mlflow.enabled=true", f"mlflow.tracking_uri={uri}", "mlflow.experiment_name=e"]
    first = cli(*train_args(hopper, *SETTINGS, *records, "train.num_epochs=4"), "--json")
    run = Path(first.result["run_dir"])
    again = resume(cli, run, "--from", "model_epoch_3.pth", "--set", "experiment.rollout.n=3")
    assert again.status == 0, again.err
    assert again.result["mlflow_run_id"] != first.result["mlflow_run_id"]
    client = MlflowClient(uri)
    for ran, epochs, evaluated in ((first, 4, (2, 4)), (again, LATER, (2, 4, 6, 8))):
        run_id = ran.result["mlflow_run_id"]
        points = client.get_metric_history(run_id, "Train/Loss")
        assert sorted(p.step for p in points) == [5 * e for e in range(1, epochs + 1)]
        points = client.get_metric_history(run_id, "Rollout/Hopper-v5/Return")
        assert sorted(p.step for p in points) == [5 * e for e in evaluated]
        assert client.get_run(run_id).info.status == "FINISHED"
    tags = client.get_run(again.result["mlflow_run_id"]).data.tags
    assert tags["replaces.run_id"] == first.result["mlflow_run_id"]
    assert tags["replaces.from_epoch"] == "3"
    aside = json.loads((run / "replaced" / "1" / "mlflow_run.json").read_text())
    assert aside["run_id"] == first.result["mlflow_run_id"]
    synced = cli("mlflow", "sync", str(run / "replaced" / "1"))
    assert synced.status == 0, synced.err

    # As if 0.1.0 had written the run: it goes on in the names and steps of then.
    to_old_layout(run, digests=False)
    old_id = to_old_records(run, client)
    more = cli("train", "--resume", str(run), "--set", "train.num_epochs=10", "--json")
    assert (more.status, more.result["mlflow_run_id"]) == (0, old_id), more.err
    for name in ("Train/Loss", "gradient_steps"):
        points = client.get_metric_history(old_id, name)
        assert sorted(p.step for p in points) == list(range(1, 11))
    points = client.get_metric_history(old_id, "Rollout/Return/Hopper-v5")
    assert sorted(p.step for p in points) == [2, 4, 6, 8, 10]
    assert not any("Hopper-v5/" in name for name in client.get_run(old_id).data.metrics)
