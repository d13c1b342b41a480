"""Which checkpoints exist, and which are kept."""

from pathlib import Path
from typing import Any

import torch

from raymimic.config import config_factory
from raymimic.training.checkpoint import CheckpointStore, Outcome


def save_settings(**settings: Any) -> Any:
    config = config_factory("td3_bc")
    with config.values_unlocked():
        for key, value in settings.items():
            config.experiment.save[key] = value
    return config.experiment.save


def store(folder: Path, **settings: Any) -> CheckpointStore:
    defaults = {"on_best_rollout_return": True, "on_best_rollout_success_rate": False}
    return CheckpointStore(str(folder), save_settings(**(defaults | settings)))


def commit(
    to: CheckpointStore, epoch: int, keep: list[str] | None = None, pending: bool = False
) -> None:
    to.commit({"model": {"w": torch.full((3,), float(epoch))}}, epoch, keep or [], pending)


def outcome(epoch: int, value: float, success: float = 0.0) -> Outcome:
    return Outcome(epoch, {}, {"env": value}, {"env": success})


def files(folder: Path) -> set[str]:
    return {p.name for p in (folder / "models").glob("*.pth")}


def test_only_the_last_checkpoint_is_kept_where_nothing_asks_for_more(tmp_path: Path) -> None:
    s = store(tmp_path)
    for epoch in (1, 2, 3):
        commit(s, epoch)
    assert files(tmp_path) == {"model_epoch_3.pth"}
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
    s.settle(outcome(1, 10.0))
    assert s.best is not None
    assert s.best.epoch == 1
    s.settle(outcome(2, 7.0))
    assert files(tmp_path) == {"model_epoch_1.pth", "model_epoch_3.pth"}
    commit(s, 4, pending=True)
    s.settle(outcome(4, 11.0))
    assert files(tmp_path) == {"model_epoch_4.pth"}
    assert s.scores.best_return == {"env": 11.0}


def test_outcomes_survive_and_are_settled_once(tmp_path: Path) -> None:
    s = store(tmp_path)
    commit(s, 1, pending=True)
    s.settle(outcome(1, 10.0))
    again = store(tmp_path)
    again.settle(outcome(1, 99.0))
    assert [o.returns for o in again.outcomes] == [{"env": 10.0}]
    assert again.scores.best_return == {"env": 10.0}


def test_success_ranks_before_return_where_success_is_what_is_saved(tmp_path: Path) -> None:
    s = store(tmp_path, on_best_rollout_return=False, on_best_rollout_success_rate=True)
    for epoch, (value, success) in enumerate([(50.0, 0.0), (1.0, 0.5), (9.0, 0.5)], 1):
        commit(s, epoch, pending=True)
        s.settle(outcome(epoch, value, success))
    assert s.best is not None
    assert s.best.epoch == 3


def test_nothing_but_the_last_is_kept_where_saving_is_disabled(tmp_path: Path) -> None:
    s = store(tmp_path, enabled=False)
    commit(s, 1, keep=["epochs"], pending=True)
    s.settle(outcome(1, 10.0))
    commit(s, 2)
    assert files(tmp_path) == {"model_epoch_2.pth"}
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
