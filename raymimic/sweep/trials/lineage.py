"""Weights that pass from one trial to another under population based training.

The checkpoint whose evaluation gave the score is copied, through Ray Tune. A trial that took over
another's weights goes on in a new folder.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray.train import Checkpoint

from raymimic import storage
from raymimic.checkpoints.logs import EpochLog
from raymimic.checkpoints.store import CheckpointStore
from raymimic.config import BaseConfig
from raymimic.sweep.spec.sweep_spec import SweepSpec
from raymimic.sweep.trials.messages import STEP, TuneTracker

# Files in a checkpoint of Ray Tune's; a run of 0.1.0 has no record of epochs.
_MODEL, _EPOCHS, _ORIGIN = "model.pth", "epochs.jsonl", "origin.json"


@dataclass(frozen=True)
class Adoption:
    """A trial's change to another trial's weights.

    Attributes:
        donor: id of the trial that the weights come from.
        step: gradient steps that the weights were trained for.
    """

    donor: str
    step: int

    def run_dir(self, home: str) -> str:
        """The folder in which a trial goes on with the weights.

        Args:
            home: the trial's folder.
        """
        return f"{home}_from_{self.donor}_{self.step}"


@dataclass(frozen=True)
class Lineage:
    """The origin of a trial's present weights, and the folder in which it trains them.

    Attributes:
        trial_id: the trial.
        run_dir: folder of its training.
        step: gradient steps until the checkpoint from which it goes on, as far as Ray Tune knows.
    """

    trial_id: str
    run_dir: str
    step: int = 0

    def after(self, checkpoint: Checkpoint | None, home: str) -> Lineage:
        """The lineage of a process that Ray Tune starts with a checkpoint.

        Args:
            checkpoint: the trial's own newest one, a donor's, or None.
            home: folder of the trial.
        """
        if checkpoint is None:
            return self
        with checkpoint.as_directory() as path:
            origin = json.loads((Path(path) / _ORIGIN).read_text())
            donor, step = origin["trial_id"], origin["step"]
            if donor == self.trial_id:
                return Lineage(donor, origin["run_dir"], step)
            run_dir = Adoption(donor, step).run_dir(home)
            store = CheckpointStore(run_dir, None)
            if store.last is None:  # else a lost process of this trial has begun there
                epochs = Path(path) / _EPOCHS
                store.adopt(
                    (Path(path) / _MODEL).read_bytes(),
                    epochs.read_bytes() if epochs.exists() else None,
                    origin["epoch"],
                )
        return Lineage(self.trial_id, run_dir, step)

    @contextmanager
    def offered(self, epoch: int, step: int) -> Iterator[Checkpoint | None]:
        """Hands out an evaluated checkpoint as Ray Tune's; None if it is no longer kept.

        Args:
            epoch: epoch of the checkpoint.
            step: gradient steps until then.
        """
        store = CheckpointStore(self.run_dir, None)
        paths = [store.path(entry) for entry in store.entries if entry.epoch == epoch]
        if not paths:
            yield None
            return
        origin = asdict(self) | {"epoch": epoch, "step": step}
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / _MODEL).write_bytes(storage.read_bytes(paths[0]))
            epochs = EpochLog(self.run_dir).read_bytes()
            if epochs is not None:
                (Path(folder) / _EPOCHS).write_bytes(epochs)
            (Path(folder) / _ORIGIN).write_text(json.dumps(origin))
            yield Checkpoint.from_directory(folder)


def find_offered(logs: str, adoption: Adoption) -> str | None:
    """Finds the checkpoint that a trial was to adopt when the sweep's driver was killed.

    Args:
        logs: folder or URI of Ray Tune's experiments.
        adoption: the donor and its step.

    Returns:
        the checkpoint's folder; None if it is gone.
    """
    for experiment in storage.subfolders(logs):
        offered = storage.join(logs, experiment, adoption.donor)
        for name in storage.subfolders(offered):
            path = storage.join(offered, name)
            with suppress(FileNotFoundError):
                origin = json.loads(storage.read_bytes(storage.join(path, _ORIGIN)))
                if origin["step"] == adoption.step:
                    return path
    return None


def checkpoint_at(path: str) -> Checkpoint:
    """Ray Tune's handle of a checkpoint that `find_offered` found."""
    filesystem, name = storage.for_arrow(path)
    return Checkpoint(name, filesystem)


class PbtTracker(TuneTracker):
    """Hands Ray Tune the evaluated checkpoint too, at the steps where trials are compared.

    A restarted trial repeats its reports without the checkpoint, else Ray Tune would drop an older
    one that another trial may still need.

    Args:
        spec: the sweep.
        config: the trial's config.
        report: `ray.tune.report`.
        lineage: the trial's lineage.
    """

    def __init__(
        self, spec: SweepSpec, config: BaseConfig, report: Callable[..., None], lineage: Lineage
    ) -> None:
        super().__init__(spec.metric, config.experiment.rollout.n, report)
        self._lineage, self._interval = lineage, spec.scheduler_options["interval_steps"]

    def report(self, score: Mapping[str, Any], **attached: Any) -> None:
        """Adds the checkpoint to the report."""
        step = score.get(STEP, 0)
        if step <= self._lineage.step or step % self._interval:
            super().report(score)
            return
        with self._lineage.offered(score["epoch"], step) as checkpoint:
            super().report(score, checkpoint=checkpoint)
