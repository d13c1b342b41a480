"""Rank 0 settles every evaluation, however late it comes, and alone writes the manifest."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from tiny import small_config

from raymimic.algo.bc import BC
from raymimic.checkpoints.logs import EvaluationLog
from raymimic.checkpoints.records import Evaluation
from raymimic.checkpoints.store import CheckpointStore
from raymimic.config import BaseConfig
from raymimic.data.training_data import inspect_data
from raymimic.errors import TrainingError
from raymimic.training.link import Committed, Event, Started
from raymimic.training.worker import WorkerSpec, train_loop
from raymimic.user_modules import ImportPath


@dataclass
class LateLink:
    """A driver whose evaluations come back some questions after the last commit.

    Attributes:
        run_dir: the run's folder.
        stops: the driver gives up instead.
    """

    run_dir: Path
    stops: bool = False
    events: list[Event] = field(default_factory=list)
    questions: int = 0

    def send(self, event: Event) -> None:
        self.events.append(event)

    def evaluations(self) -> list[Evaluation]:
        committed = [event for event in self.events if isinstance(event, Committed)]
        if len(committed) < 2:
            return []
        self.questions += 1
        if self.stops or self.questions != 3:
            return []
        found = [
            Evaluation(event.epoch, {}, {"env": -float(event.epoch)}, {"env": 0.0})
            for event in committed
        ]
        for evaluation in found:
            EvaluationLog(str(self.run_dir)).append(evaluation)
        return found

    def stopped(self) -> str | None:
        return "the driver gave up" if self.stops and self.questions > 3 else None

    def may_begin(self) -> bool:
        return True


@pytest.fixture
def config(hopper: Path) -> BaseConfig:
    made = small_config("bc")
    made.train.data = str(hopper)
    made.train.num_epochs, made.train.batch_size = 2, 16
    made.experiment.epoch_every_n_steps = 2
    made.experiment.rollout.rate = 1
    made.experiment.save.on_best_rollout_return = True
    made.ray.threads_per_worker = 1
    return made


def train(config: BaseConfig, link: LateLink) -> None:
    spec = WorkerSpec(
        algo_name="bc",
        config=config.dump(),
        run_dir=str(link.run_dir),
        import_path=ImportPath.of_this_process(),
        env_metadata={},
        evaluates=True,
        dataset_digest=inspect_data(config, BC.reads(config)).digest,
    )
    train_loop(spec, link, rank=0, world_size=1, device=torch.device("cpu"))


def test_training_ends_when_all_evaluations_are_settled(config: BaseConfig, tmp_path: Path) -> None:
    link = LateLink(tmp_path)
    train(config, link)
    store = CheckpointStore(str(tmp_path), config.experiment.save)
    assert [(e.epoch, e.pending, e.evaluated) for e in store.entries] == [
        *((1, False, True), (2, False, True)),
    ]
    assert store.best is not None
    assert store.best.epoch == 1
    assert (tmp_path / "last.pth").samefile(tmp_path / "models" / "model_epoch_2.pth")
    assert [e.epoch for e in store.evaluations] == [1, 2]


def test_a_training_that_is_stopped_goes_on_with_its_pending_evaluations(
    config: BaseConfig, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="stopped by its driver"):
        train(config, LateLink(tmp_path, stops=True))
    link = LateLink(tmp_path)
    link.events += [Committed(epoch, "", [], True) for epoch in (1, 2)]
    train(config, link)
    (started,) = (event for event in link.events if isinstance(event, Started))
    assert sorted(started.pending) == [1, 2]
    assert [record.epoch for record in started.history] == [1, 2]
    assert CheckpointStore(str(tmp_path), config.experiment.save).pending == []
