"""One run of a training: the prepared training, its folder, its trackers and its terminal."""

from dataclasses import dataclass, field

from raymimic.tracking.tracker import TrackerGroup
from raymimic.training.prepare import Prepared
from raymimic.training.progress import ProgressReporter
from raymimic.training.run_folder import RunFolder


@dataclass(frozen=True)
class Run:
    """One run of a training.

    Attributes:
        prepared: config, data and environments.
        folder: where the results lie; this process holds it.
        tracker: gets the records, once the workers have loaded data and model.
        progress: prints and logs for the user.
        tags: facts about the run, for the tracker.
        alone: whether nothing restarts the run but its user; a sweep restarts its trials.
    """

    prepared: Prepared
    folder: RunFolder
    tracker: TrackerGroup
    progress: ProgressReporter
    tags: dict[str, str] = field(default_factory=dict)
    alone: bool = True
