"""Which checkpoints exist, and which are kept."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from old_layout import to_old_layout

from raymimic.checkpoints.content import CheckpointContent, TrainingSection
from raymimic.checkpoints.digests import MANIFEST
from raymimic.checkpoints.logs import EpochLog, EvaluationLog
from raymimic.checkpoints.reading import load_dict_from_checkpoint
from raymimic.checkpoints.records import EpochRecord, Evaluation
from raymimic.checkpoints.store import CheckpointStore
from raymimic.config import config_factory
from raymimic.errors import CheckpointError
from raymimic.tracking.episode_rows import EpisodeRow


def save_settings(**settings: Any) -> Any:
    config = config_factory("td3_bc")
    with config.values_unlocked():
        for key, value in settings.items():
            config.experiment.save[key] = value
    return config.experiment.save


def store(folder: Path, **settings: Any) -> CheckpointStore:
    defaults = {"on_best_rollout_return": True, "on_best_rollout_success_rate": False}
    return CheckpointStore(str(folder), save_settings(**(defaults | settings)))


def content(epoch: int) -> CheckpointContent:
    """A checkpoint to go on from, as far as the store is concerned."""
    return CheckpointContent(
        model={"w": torch.full((3,), float(epoch))},
        algo_name="td3_bc",
        config=json.dumps(config_factory("td3_bc").to_dict()),
        shape_metadata={"ac_dim": 1, "all_shapes": {"flat": [1]}, "all_obs_keys": ["flat"]},
        raymimic=TrainingSection(step=epoch, arithmetic="", dataset_digest="", training_state={}),
    )


def record(epoch: int) -> EpochRecord:
    return EpochRecord(epoch, epoch, {"Train/Loss": 1.0 / epoch}, 0.0)


def commit(
    to: CheckpointStore, epoch: int, keep: list[str] | None = None, pending: bool = False
) -> None:
    to.commit(content(epoch), [record(epoch)], epoch, keep or [], pending)


def evaluation(epoch: int, value: float, success: float = 0.0) -> Evaluation:
    return Evaluation(epoch, {}, {"env": value}, {"env": success})


def settle(to: CheckpointStore, epoch: int, value: float, success: float = 0.0) -> None:
    """Writes an evaluation as the driver does, and settles it as rank 0 does."""
    found = evaluation(epoch, value, success)
    EvaluationLog(str(Path(to.folder).parent)).append(found)
    to.settle(found)


def files(folder: Path) -> set[str]:
    return {p.name for p in (folder / "models").glob("*.pth")}


def test_the_last_two_checkpoints_are_kept_where_nothing_asks_for_more(tmp_path: Path) -> None:
    s = store(tmp_path)
    for epoch in (1, 2, 3):
        commit(s, epoch)
    assert files(tmp_path) == {"model_epoch_2.pth", "model_epoch_3.pth"}
    again = store(tmp_path)
    assert again.last is not None
    assert again.last.epoch == 3
    state = torch.load(again.path(again.last), weights_only=True)
    assert state["model"]["w"].tolist() == [3.0] * 3
    assert state["variable_state"]["epoch"] == 3


def test_a_checkpoint_waits_for_its_evaluation_and_the_best_one_stays(tmp_path: Path) -> None:
    s = store(tmp_path)
    commit(s, 1, pending=True)
    commit(s, 2, pending=True)
    commit(s, 3)
    assert files(tmp_path) == {f"model_epoch_{i}.pth" for i in (1, 2, 3)}
    settle(s, 1, 10.0)
    assert s.best is not None
    assert s.best.epoch == 1
    settle(s, 2, 7.0)
    commit(s, 4, pending=True)
    assert files(tmp_path) == {f"model_epoch_{i}.pth" for i in (1, 3, 4)}
    settle(s, 4, 11.0)
    assert files(tmp_path) == {"model_epoch_3.pth", "model_epoch_4.pth"}
    assert s.scores.best_return == {"env": 11.0}


def test_evaluations_survive_and_are_settled_once(tmp_path: Path) -> None:
    s = store(tmp_path)
    commit(s, 1, pending=True)
    settle(s, 1, 10.0)
    again = store(tmp_path)
    again.settle(evaluation(1, 99.0))
    assert [o.returns for o in again.evaluations] == [{"env": 10.0}]
    assert again.scores.best_return == {"env": 10.0}


@pytest.mark.parametrize("by_return", [False, True])
def test_success_ranks_before_return_where_success_is_saved(
    by_return: bool, tmp_path: Path
) -> None:
    s = store(tmp_path, on_best_rollout_return=by_return, on_best_rollout_success_rate=True)
    for epoch, (value, success) in enumerate([(50.0, 0.0), (1.0, 0.5), (9.0, 0.5)], 1):
        commit(s, epoch, pending=True)
        settle(s, epoch, value, success)
    assert s.best is not None
    assert s.best.epoch == 3


def test_the_return_decides_where_the_environment_tells_no_success(tmp_path: Path) -> None:
    s = CheckpointStore(str(tmp_path), config_factory("td3_bc").experiment.save)  # by both
    for epoch, value in enumerate([1.0, 50.0, 9.0, 8.0], 1):
        commit(s, epoch, pending=True)
        row = EpisodeRow(seed=0, episode_return=value, length=9, success=None, error=None)
        outcome = dataclasses.replace(evaluation(epoch, value), played={"env": [row]})
        EvaluationLog(str(tmp_path)).append(outcome)
        s.settle(outcome)
    assert s.best is not None
    assert s.best.epoch == 2
    assert [e.epoch for e in s.entries] == [2, 3, 4]  # none is kept for a success of 0
    assert s.best.keep == ["best", "best_return/env"]


def test_nothing_but_the_last_two_is_kept_where_saving_is_disabled(tmp_path: Path) -> None:
    s = store(tmp_path, enabled=False)
    commit(s, 1, keep=["epochs"], pending=True)
    settle(s, 1, 10.0)
    commit(s, 2)
    commit(s, 3)
    assert files(tmp_path) == {"model_epoch_2.pth", "model_epoch_3.pth"}
    assert s.best is None


def test_only_the_newest_best_validation_is_kept(tmp_path: Path) -> None:
    s = store(tmp_path)
    commit(s, 1, keep=["best_validation"])
    commit(s, 2, keep=["best_validation", "epochs"])
    commit(s, 3)
    assert files(tmp_path) == {"model_epoch_2.pth", "model_epoch_3.pth"}
    assert s.scores.record_validation(2.0)
    assert not s.scores.record_validation(2.0)
    assert s.scores.record_validation(1.0)


def test_a_file_that_the_list_does_not_name_does_not_exist(tmp_path: Path) -> None:
    s = store(tmp_path)
    commit(s, 1)
    (tmp_path / "models" / "model_epoch_9.pth").write_bytes(b"half an upload")
    again = store(tmp_path)
    assert again.last is not None
    assert again.last.epoch == 1


# -- damage and loss --


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return found


def whole_run(folder: Path) -> CheckpointStore:
    """Epochs 1 to 5; 2 and 4 are evaluated, 2 is the best, and 4 waits for its evaluation."""
    s = store(folder)
    for epoch in range(1, 6):
        commit(s, epoch, pending=epoch in (2, 4))
        if epoch == 3:
            settle(s, 2, 10.0)
    return s


def test_every_bit_that_is_altered_is_noticed(tmp_path: Path) -> None:
    whole_run(tmp_path)
    newest = tmp_path / "models" / "model_epoch_5.pth"
    data = newest.read_bytes()
    for offset in range(0, len(data), max(1, len(data) // 150)):
        altered = bytearray(data)
        altered[offset] ^= 1 << offset % 8
        newest.write_bytes(altered)
        s = store(tmp_path)
        ckpt = s.load_last()
        assert ckpt is not None
        assert ckpt.epoch == 4
        assert s.last is not None
        assert s.last.epoch == 4
        (note,) = s.notes
        assert "model_epoch_5.pth" in note
        assert "goes on from 'model_epoch_4.pth'" in note
    newest.write_bytes(data)
    s = store(tmp_path)
    assert s.load_last() is not None
    assert s.notes == []


def test_every_reader_compares_with_the_list(tmp_path: Path) -> None:
    whole_run(tmp_path)
    path = tmp_path / "models" / "model_epoch_5.pth"
    load_dict_from_checkpoint(str(path))
    path.write_bytes((tmp_path / "models" / "model_epoch_4.pth").read_bytes())
    with pytest.raises(CheckpointError, match=r"model_epoch_5\.pth' .* was replaced"):
        load_dict_from_checkpoint(str(path))
    for content in ("[" * 100_000, "null", "{}", '{"checkpoints": [1]}'):  # a stranger's
        (tmp_path / MANIFEST).write_text(content)
        load_dict_from_checkpoint(str(path))


@pytest.mark.parametrize("left", [0, 1, 100, 0.5])
def test_what_is_left_of_a_checkpoint_counts_for_nothing(tmp_path: Path, left: float) -> None:
    whole_run(tmp_path)
    newest = tmp_path / "models" / "model_epoch_5.pth"
    size = len(newest.read_bytes())
    newest.write_bytes(newest.read_bytes()[: int(left * size) if left == 0.5 else int(left)])
    s = store(tmp_path)
    s.load_last()
    assert s.last is not None
    assert s.last.epoch == 4
    # Evaluations that training on gives anew are forgotten; the others are kept.
    assert [o.epoch for o in s.evaluations] == [2]
    assert s.best is not None
    assert s.best.epoch == 2
    s.tidy(evaluates=True)
    assert newest.exists()
    commit(s, 5)
    again = store(tmp_path)
    again.load_last()
    assert again.notes == []
    assert again.last is not None
    assert again.last.epoch == 5


def test_a_run_without_a_whole_checkpoint_says_so(tmp_path: Path) -> None:
    whole_run(tmp_path)
    for path in (tmp_path / "models").glob("*.pth"):
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(
        CheckpointError, match=r"no checkpoint of the run can be used .*start a new"
    ):
        store(tmp_path).load_last()
    assert len(files(tmp_path)) == 3


def test_a_lost_list_is_made_anew_as_it_was(tmp_path: Path) -> None:
    whole_run(tmp_path)
    before = manifest(tmp_path)
    (tmp_path / MANIFEST).unlink()
    (tmp_path / "models" / "notes.txt").write_text("mine")
    (tmp_path / "models" / "model_epoch_9_of_mine.pth").write_bytes(b"mine")
    s = store(tmp_path)
    assert s.last is None  # a mere reader sees no list
    s.load_last()
    s.tidy(evaluates=True)
    (note,) = s.notes
    assert "rebuilt" in note
    assert not (tmp_path / MANIFEST).exists()
    settle(s, 4, 9.0)
    after = manifest(tmp_path)
    for entry in before["checkpoints"]:
        entry["evaluated"] |= entry["pending"]
        entry["pending"] = False
    assert after["checkpoints"] == before["checkpoints"]
    assert [e.epoch for e in store(tmp_path).evaluations] == [2, 4]
    assert (tmp_path / "models" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "models" / "model_epoch_9_of_mine.pth").read_bytes() == b"mine"


def test_a_lost_list_of_an_older_version_keeps_all_and_evaluates_it_again(tmp_path: Path) -> None:
    whole_run(tmp_path)
    to_old_layout(tmp_path, digests=False)
    (tmp_path / "models" / MANIFEST).unlink()
    s = store(tmp_path)
    s.load_last()
    assert [e.epoch for e in s.pending] == [2, 4, 5]
    for epoch, value in ((2, 10.0), (4, 9.0), (5, 3.0)):
        s.settle(evaluation(epoch, value))
    assert s.best is not None
    assert s.best.epoch == 2
    commit(s, 6)
    assert {p.name for p in tmp_path.iterdir()} == {"models"}  # it keeps its layout
    assert files(tmp_path) == {f"model_epoch_{i}.pth" for i in (2, 4, 5, 6)}


@pytest.mark.parametrize("digests", [False, True])
def test_a_run_of_an_older_version_goes_on_in_its_layout(tmp_path: Path, digests: bool) -> None:
    whole_run(tmp_path)
    to_old_layout(tmp_path, digests=digests)
    s = store(tmp_path)
    ckpt = s.load_last()
    assert ckpt is not None
    assert ckpt.epoch == 5
    assert s.history == [record(epoch) for epoch in range(1, 6)]
    assert s.notes == []
    s.tidy(evaluates=True)
    s.settle(evaluation(4, 11.0))
    commit(s, 6)
    assert {p.name for p in tmp_path.iterdir()} == {"models"}
    listed = json.loads((tmp_path / "models" / MANIFEST).read_text())
    assert [o["epoch"] for o in listed["outcomes"]] == [2, 4]
    assert {frozenset(entry) for entry in listed["checkpoints"]} == {
        frozenset(("epoch", "file", "keep", "pending", "sha256"))
    }
    again = store(tmp_path)
    newest = again.load_last()
    assert newest is not None
    assert newest.training.epochs is None
    assert again.history == [record(epoch) for epoch in range(1, 7)]
    assert again.best is not None
    assert again.best.epoch == 4
    last = tmp_path / "models" / "model_epoch_6.pth"
    last.write_bytes(last.read_bytes()[:-1])
    assert store(tmp_path).load_last() is not None


# -- epochs and evaluations --


@pytest.fixture(params=["disk", "URI"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A run's folder on a disk, and one behind a URI, which cannot append."""
    return str(tmp_path) if request.param == "disk" else f"local://{tmp_path}"


def open_at(place: str, **settings: Any) -> CheckpointStore:
    return CheckpointStore(place, save_settings(on_best_rollout_return=True, **settings))


def test_epochs_of_a_commit_that_was_not_completed_are_dropped(place: str) -> None:
    s = open_at(place)
    for epoch in (1, 2):
        commit(s, epoch)
    before = EpochLog(place).read_bytes()
    EpochLog(place).append([record(3), record(4)])  # killed before the checkpoint was written
    again = open_at(place)
    assert again.load_last() is not None
    assert again.history == [record(1), record(2)]
    assert EpochLog(place).read_bytes() != before  # reading changes nothing
    again.tidy(evaluates=False)
    assert EpochLog(place).read_bytes() == before
    again.commit(content(4), [record(3), record(4)], 4, [], False)
    whole = open_at(place)
    assert whole.load_last() is not None
    assert whole.history == [record(epoch) for epoch in (1, 2, 3, 4)]
    assert whole.notes == []


def test_epochs_before_the_first_commit_are_dropped(place: str) -> None:
    EpochLog(place).append([record(1)])
    s = open_at(place)
    assert s.load_last() is None
    s.tidy(evaluates=False)
    commit(s, 1)
    again = open_at(place)
    again.load_last()
    assert again.history == [record(1)]


def test_a_line_that_was_cut_short_is_dropped(tmp_path: Path) -> None:
    whole_run(tmp_path)
    for name in ("epochs.jsonl", "evaluations.jsonl"):
        with (tmp_path / name).open("ab") as file:
            file.write(b'{"epoch": 6, "st')
    s = store(tmp_path)
    s.load_last()
    s.tidy(evaluates=True)
    commit(s, 6)
    EvaluationLog(str(tmp_path)).drop_after(5)
    settle(s, 4, 1.0)
    again = store(tmp_path)
    again.load_last()
    assert [r.epoch for r in again.history] == [1, 2, 3, 4, 5, 6]
    assert [e.epoch for e in again.evaluations] == [2, 4]


def test_each_altered_byte_of_the_epochs_is_noticed(tmp_path: Path) -> None:
    whole_run(tmp_path)
    log = tmp_path / "epochs.jsonl"
    data = log.read_bytes()
    for offset in range(0, len(data), 7):
        log.write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
        with pytest.raises(
            CheckpointError, match=r"epochs\.jsonl' is damaged.*move it away"
        ) as error:
            store(tmp_path).load_last()
        assert "\n" not in str(error.value)
    log.write_bytes(data[:-30])
    with pytest.raises(CheckpointError, match="is damaged"):
        store(tmp_path).load_last()


def test_a_training_goes_on_without_the_epochs_that_were_lost(place: str, tmp_path: Path) -> None:
    s = open_at(place)
    for epoch in (1, 2, 3):
        commit(s, epoch)
    EpochLog(place).retain(lambda line: False)
    (tmp_path / "epochs.jsonl").unlink(missing_ok=True)
    again = open_at(place)
    assert again.load_last() is not None
    (note,) = again.notes
    assert "was lost: training goes on" in note
    assert "up to 3" in note
    again.tidy(evaluates=True)
    commit(again, 4)
    commit(again, 5)
    later = open_at(place)
    assert later.load_last() is not None
    assert [r.epoch for r in later.history] == [4, 5]
    assert later.notes == []


def test_an_evaluation_that_rank_0_never_heard_of_is_settled(place: str) -> None:
    s = open_at(place)
    commit(s, 1, pending=True)
    EvaluationLog(place).append(evaluation(1, 10.0))  # then the workers were killed
    again = open_at(place)
    assert again.pending == []
    assert again.best is not None
    assert again.scores.best_return == {"env": 10.0}
    again.settle(evaluation(1, 99.0))
    assert [e.returns for e in again.evaluations] == [{"env": 10.0}]
    commit(again, 2)
    commit(again, 3)
    commit(again, 4)
    assert [e.epoch for e in open_at(place).entries] == [1, 3, 4]


def test_evaluations_that_were_lost_are_made_again(tmp_path: Path) -> None:
    s = whole_run(tmp_path)
    settle(s, 4, 9.0)
    (tmp_path / "evaluations.jsonl").unlink()
    again = store(tmp_path)
    again.load_last()
    assert [e.epoch for e in again.pending] == [2, 4]
    (note,) = again.notes
    assert "lacks the evaluations of epochs 2, 4" in note
    for epoch, value in ((4, 9.0), (2, 10.0)):
        settle(again, epoch, value)
    assert again.best is not None
    assert again.best.epoch == 2


def test_a_damaged_evaluation_is_said_in_one_sentence(tmp_path: Path) -> None:
    whole_run(tmp_path)
    log = tmp_path / "evaluations.jsonl"
    data = log.read_bytes()
    for text in (
        data.replace(b"10.0", b"11.0"),
        b"null\n",
        b"{}\n",
        b"\xff\n",
        b"[" * 9999 + b"\n",
    ):
        log.write_bytes(text)
        with pytest.raises(
            CheckpointError, match=r"evaluations\.jsonl' is damaged in line 1"
        ) as error:
            store(tmp_path)
        assert "\n" not in str(error.value)


def test_evaluations_of_epochs_that_are_trained_again_are_dropped(place: str) -> None:
    log = EvaluationLog(place)
    for epoch in (2, 4, 6):
        log.append(evaluation(epoch, 1.0))
    log.drop_after(4)
    assert [e.epoch for e in log.read()] == [2, 4]
    log.append(evaluation(6, 2.0))
    log.append(evaluation(4, 3.0))  # after a restart, again
    assert [(e.epoch, e.returns["env"]) for e in log.read()] == [(2, 1.0), (6, 2.0), (4, 3.0)]


def test_another_ones_checkpoint_brings_its_epochs(place: str, tmp_path: Path) -> None:
    donor = store(tmp_path / "donor")
    for epoch in (1, 2, 3):
        commit(donor, epoch)
    data = (tmp_path / "donor" / "models" / "model_epoch_2.pth").read_bytes()
    epochs = EpochLog(str(tmp_path / "donor")).read_bytes()
    for _ in range(2):  # killed and begun again
        open_at(place).adopt(data, epochs, 2)
    s = open_at(place)
    assert s.load_last() is not None
    assert s.history == [record(1), record(2)]
    assert s.notes == []


# -- last.pth --


def test_last_is_a_link_to_the_newest_checkpoint(tmp_path: Path) -> None:
    s = store(tmp_path)
    for epoch in (1, 2):
        commit(s, epoch)
        last = tmp_path / "last.pth"
        assert last.samefile(tmp_path / "models" / f"model_epoch_{epoch}.pth")
        assert load_dict_from_checkpoint(str(last))["variable_state"]["epoch"] == epoch
    last.unlink()
    last.write_bytes(b"another's")
    with pytest.raises(CheckpointError, match="was replaced"):
        load_dict_from_checkpoint(str(last))


def test_last_is_a_copy_at_the_end_where_no_link_is_possible(tmp_path: Path) -> None:
    place = f"local://{tmp_path}"
    s = open_at(place)
    commit(s, 1)
    s.finish()
    newest = tmp_path / "models" / "model_epoch_1.pth"
    assert (tmp_path / "last.pth").read_bytes() == newest.read_bytes()
    commit(open_at(place), 2)  # a training that goes on
    assert not (tmp_path / "last.pth").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is damaged"),
        ('{"checkpoints": [', "is damaged"),
        ("[" * 100_000, "is damaged"),
        ("null", "null stands where"),
        ("{}", "'checkpoints' is missing"),
        ("[]", "stands where an object"),
        ('{"checkpoints": {}, "outcomes": [], "scores": {}}', "'checkpoints' is {}"),
        ('{"checkpoints": [7], "outcomes": [], "scores": {}}', "7 stands where"),
        ('{"checkpoints": [], "outcomes": [], "scores": {}, "codec": 1}', "key 'codec'.*newer"),
    ],
)
def test_what_is_no_list_is_said_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match=said) as error:
        store(tmp_path)
    assert MANIFEST in str(error.value)
    assert "move it away" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../../x.pth"},
        {"file": "/etc/passwd.pth"},
        {"file": "a\\b.pth"},
        {"file": "x\0.pth"},
        {"file": ""},
        {"file": "checkpoints.json"},
        {"file": None},
        {"epoch": "5"},
        {"epoch": -1},
        {"epoch": True},
        {"epoch": 4},
        {"keep": "epochs"},
        {"keep": [1]},
        {"pending": 1},
        {"sha256": 1},
        {"codec": "zstd"},
    ],
)
def test_an_entry_that_cannot_be_is_said_in_one_sentence(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    whole_run(tmp_path)
    altered = manifest(tmp_path)
    altered["checkpoints"][-1] |= change
    (tmp_path / MANIFEST).write_text(json.dumps(altered))
    outside = tmp_path.parent / "x.pth"
    outside.write_bytes(b"another's")
    with pytest.raises(CheckpointError, match=MANIFEST) as error:
        store(tmp_path)
    assert "\n" not in str(error.value)
    assert outside.read_bytes() == b"another's"


def test_what_a_killed_commit_left_goes_and_all_else_stays(tmp_path: Path) -> None:
    models = tmp_path / "models"
    s = store(tmp_path)
    commit(s, 1)
    commit(s, 2)
    dropped, listed = (models / "model_epoch_1.pth").read_bytes(), manifest(tmp_path)
    commit(s, 3)
    (models / "model_epoch_1.pth").write_bytes(dropped)  # killed before it was deleted
    store(tmp_path).tidy(evaluates=True)
    assert files(tmp_path) == {"model_epoch_2.pth", "model_epoch_3.pth"}
    (models / "model_epoch_1.pth").write_bytes(dropped + b"now mine")
    store(tmp_path).tidy(evaluates=True)
    assert (models / "model_epoch_1.pth").exists()
    (models / "model_epoch_1.pth").write_bytes(dropped)

    (tmp_path / MANIFEST).write_text(json.dumps(listed))  # killed before it was replaced
    (models / ".model_epoch_4.pth.123.tmp").write_bytes(b"half")
    (tmp_path / ".checkpoints.json.123.tmp").write_bytes(b"half")
    (models / ".mine.tmp").write_bytes(b"mine")
    store(tmp_path).tidy(evaluates=True)
    assert {p.name for p in models.iterdir()} == {
        *("model_epoch_1.pth", "model_epoch_2.pth", ".mine.tmp")
    }
    assert {p.name for p in tmp_path.iterdir()} == {MANIFEST, "epochs.jsonl", "last.pth", "models"}
    foreign = store(tmp_path / "other")
    commit(foreign, 7)
    (models / "model_epoch_7.pth").write_bytes(
        (tmp_path / "other/models/model_epoch_7.pth").read_bytes()
    )
    store(tmp_path).tidy(evaluates=True)
    assert (models / "model_epoch_7.pth").exists()


def test_going_back_keeps_what_came_after(tmp_path: Path) -> None:
    whole_run(tmp_path)
    before = manifest(tmp_path)
    s = store(tmp_path)
    entry, ckpt = s.find("model_epoch_2.pth")
    s.go_back_to(entry, ckpt, str(tmp_path / "aside"))
    assert files(tmp_path) == {"model_epoch_2.pth"}
    assert files(tmp_path / "aside") == {"model_epoch_4.pth", "model_epoch_5.pth"}
    assert manifest(tmp_path / "aside") == before
    again = store(tmp_path)
    assert again.best is not None
    assert again.best.epoch == 2
    assert [o.epoch for o in again.evaluations] == [2]


def test_a_file_that_the_user_put_there_is_chosen_and_stays(tmp_path: Path) -> None:
    s = whole_run(tmp_path)
    (tmp_path / "models" / "backup.pth").write_bytes(
        (tmp_path / "models" / "model_epoch_4.pth").read_bytes()
    )
    entry, ckpt = s.find("backup.pth")
    s.go_back_to(entry, ckpt, str(tmp_path / "aside"))
    for epoch in (5, 6, 7):
        commit(s, epoch)
    assert "backup.pth" in files(tmp_path)
    with pytest.raises(CheckpointError, match="none\\.pth"):
        s.find("none.pth")


def test_which_is_best_follows_what_is_saved(tmp_path: Path) -> None:
    s = store(tmp_path)
    for epoch, (value, success) in enumerate([(50.0, 0.0), (1.0, 0.5), (9.0, 0.2)], 1):
        commit(s, epoch, ["epochs"], pending=True)
        settle(s, epoch, value, success)
    assert s.best is not None
    assert s.best.epoch == 1
    # A resumed run may save by something else: all evaluations count then.
    s = store(tmp_path, on_best_rollout_return=False, on_best_rollout_success_rate=True)
    commit(s, 4, pending=True)
    settle(s, 4, 2.0, 0.1)
    assert s.best is not None
    assert s.best.epoch == 2
