"""What is known of one trial of a sweep, as a line of ``results.jsonl`` holds it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypedDict, get_args

from raymimic.errors import OutputError

Status = Literal["finished", "failed", "stopped", "running"]


class FinalScore(TypedDict):
    """The winner's score on episodes that the search never saw.

    Attributes:
        setting_id: the winner.
        mean: over all episodes.
        low: lower end of the mean's 95% interval.
        high: its upper end.
        episodes: how many were played.
        by_seed: mean by the seed of the training, as text.
    """

    setting_id: str
    mean: float
    low: float
    high: float
    episodes: int
    by_seed: dict[str, float]


@dataclass(frozen=True)
class TrialResult:
    """One training with one setting and one seed.

    Attributes:
        trial_id: its name within the sweep.
        setting_id: name of its setting, the same for every seed.
        setting: value by config path; under PBT those of the best score.
        seed: of the training.
        status: how it stands; "stopped" was ended early, by the scheduler or the budget.
        curve: score of each evaluation by the gradient step of the evaluated checkpoint, in
            rising order of steps.
        best: best score of the curve; ``None`` before the first evaluation.
        last: score of the last evaluated checkpoint; ``None`` likewise.
        best_checkpoint: path or URI of the checkpoint that scored best.
        run_dir: folder of the training.
        episodes: that its evaluations have played.
        error: why it failed, in one sentence.
        episode_scores: score of every episode in the evaluation that gave ``best``; empty where
            they are not known.
        schedule: under PBT, the settings that it has had, the first one too: ``step`` (gradient
            step from which it held), ``from`` (trial whose weights it went on with; ``None`` for
            its own), ``setting`` and ``episodes`` (played until then), in rising order of steps.
            Empty elsewhere.
    """

    trial_id: str
    setting_id: str
    setting: dict[str, Any]
    seed: int
    status: Status
    curve: list[tuple[int, float]]
    best: float | None
    last: float | None
    best_checkpoint: str | None
    run_dir: str
    episodes: int
    error: str | None = None
    episode_scores: list[float] = field(default_factory=list)
    schedule: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything as values that JSON knows; scores that are not finite become ``None``."""
        values = asdict(self)
        values["curve"] = [[step, _finite(score)] for step, score in self.curve]
        values["best"], values["last"] = _finite(self.best), _finite(self.last)
        values["episode_scores"] = [_finite(score) for score in self.episode_scores]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrialResult":
        """The result that :meth:`to_dict` wrote.

        Raises:
            OutputError: it is not one.
        """
        known = {f.name for f in fields(cls)}
        missing = known - {"error", "episode_scores", "schedule"} - set(values)
        unknown = set(values) - known
        if missing or unknown or values["status"] not in get_args(Status):
            what = (
                f"lacks {sorted(missing)}"
                if missing
                else f"has unknown {sorted(unknown)}"
                if unknown
                else f"has status '{values['status']}'"
            )
            raise OutputError(
                f"the result of trial '{values.get('trial_id', '?')}' {what}; it was written by "
                "another version of raymimic or damaged: delete its line in results.jsonl"
            )
        entries = dict(values)
        entries["curve"] = [(int(step), _number(score)) for step, score in values["curve"]]
        entries["episode_scores"] = [_number(s) for s in values.get("episode_scores", [])]
        return cls(**entries)


def _finite(score: float | None) -> float | None:
    return score if score is not None and math.isfinite(score) else None


def _number(score: float | None) -> float:
    return math.nan if score is None else float(score)
