"""TensorBoard event files beside the run (`experiment.logging.log_tb`)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymimic.config import BaseConfig
from raymimic.tracking.tracker import RunInfo, Status, Tracker

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


def make_tracker(config: BaseConfig, run: RunInfo) -> TensorBoardTracker | None:
    """The tracker of a training with `experiment.logging.log_tb`; sweeps have none."""
    if run.kind == "training" and config.experiment.logging.log_tb:
        return TensorBoardTracker()
    return None


class TensorBoardTracker(Tracker):
    """Writes metrics by epoch to `<run_dir>/logs/tb`, where robomimic puts them.

    A resumed run's epochs are all logged again, so its event files are written again. Parameters,
    tags and files are not written: `config.json` and the files lie beside the folder.
    """

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None

    def start(
        self, run_dir: Path, config: Mapping[str, Any], tags: Mapping[str, str]
    ) -> str | None:
        """See `Tracker.start`; there is no name to return."""
        from tensorboardX import SummaryWriter

        folder = run_dir / "logs" / "tb"
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder))
        return None

    def log_epoch(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker.log_epoch`; the x-axis is the epoch."""
        assert self._writer is not None, "start() comes first"
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.add_scalar("gradient_steps", step, epoch)
        self._writer.flush()

    def finish(self, status: Status) -> None:
        """See `Tracker.finish`; closes the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
