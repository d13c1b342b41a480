"""The records of a training: its epochs, its kept checkpoints, and their evaluations.

They travel between processes that do not load torch.
"""

from dataclasses import dataclass, field

from raymimic.tracking.episode_rows import EpisodeRow


@dataclass(frozen=True)
class EpochRecord:
    """The record of one epoch of training.

    Attributes:
        epoch: its number, from 1.
        step: gradient steps done at its end.
        metrics: by full name, such as `Train/Loss`.
        time: when it ended, seconds since 1970.
    """

    epoch: int
    step: int
    metrics: dict[str, float]
    time: float


@dataclass(frozen=True)
class Evaluation:
    """The result of the evaluation of one checkpoint.

    Attributes:
        epoch: the epoch at whose end the checkpoint was taken.
        metrics: all numbers to log, by full metric name.
        returns: mean return by environment.
        success_rates: success rate in 0..1 by environment.
        episodes: return of every episode by environment, without those that failed.
        step: gradient steps of the checkpoint; 0 where an earlier version played it.
        played: every episode by environment, in the order of their seeds; empty where an earlier
            version played it.
    """

    epoch: int
    metrics: dict[str, float]
    returns: dict[str, float]
    success_rates: dict[str, float]
    episodes: dict[str, list[float]] = field(default_factory=dict)
    step: int = 0
    played: dict[str, list[EpisodeRow]] = field(default_factory=dict)


@dataclass(frozen=True)
class KeptCheckpoint:
    """A checkpoint that is kept beyond being one of the last two.

    Attributes:
        path: path or URI of its file.
        epoch: the epoch at whose end it was taken.
        sha256: of its content, in hexadecimal.
        reasons: see `StoredCheckpoint.keep`; `last` for the newest where nothing else is kept.
    """

    path: str
    epoch: int
    sha256: str
    reasons: tuple[str, ...]
