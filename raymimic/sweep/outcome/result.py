"""The result of one trial of a sweep, a line of `results.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self, TypedDict, get_args

from raymimic.errors import OutputError
from raymimic.sweep.spec.sweep_spec import Trial

TrialStatus = Literal["finished", "failed", "stopped", "running"]


class FinalScore(TypedDict):
    """The winner's score on episodes that the search never saw.

    Attributes:
        setting_id: the winning setting.
        mean: mean score over all episodes.
        low: lower end of the mean's 95% interval.
        high: upper end of the interval.
        episodes: number of episodes.
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
        trial_id: the trial's id within the sweep.
        setting_id: id of its setting, the same for every seed.
        setting: value by config path; under PBT the setting of the best score.
        seed: seed of the training.
        status: the trial's state; scheduler or budget ended a `stopped` trial early.
        curve: score of each evaluation by the gradient step of the evaluated checkpoint, in
            rising order of steps.
        best: best score of the curve; None before the first evaluation.
        last: score of the last evaluated checkpoint; None before the first evaluation.
        best_checkpoint: path or URI of the checkpoint that scored best.
        run_dir: folder of the training.
        episodes: number of episodes that its evaluations have played.
        error: why the trial failed or the budget stopped it, in one sentence.
        episode_scores: score of every episode in the evaluation that gave `best`; empty where
            they are unknown.
        schedule: under PBT, the phases of the trial, in rising order of steps, else empty. A phase
            has `step` (gradient step at which it begins), `from` (trial whose weights it begins
            with; None for its own), `setting`, and `episodes` (played before it).
    """

    trial_id: str
    setting_id: str
    setting: dict[str, Any]
    seed: int
    status: TrialStatus
    curve: list[tuple[int, float]]
    best: float | None
    last: float | None
    best_checkpoint: str | None
    run_dir: str
    episodes: int
    error: str | None = None
    episode_scores: list[float] = field(default_factory=list)
    schedule: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def begun(cls, trial: Trial, run_dir: str) -> Self:
        """The result of a trial that runs and has no score yet.

        Args:
            trial: setting and seed.
            run_dir: folder of the training.
        """
        return cls(
            trial_id=trial.trial_id,
            setting_id=trial.setting_id,
            setting=trial.setting,
            seed=trial.seed,
            status="running",
            curve=[],
            best=None,
            last=None,
            best_checkpoint=None,
            run_dir=run_dir,
            episodes=0,
        )

    @property
    def stopped_by_scheduler(self) -> bool:
        """Whether the scheduler stopped the trial for its scores; the budget leaves an error."""
        return self.status == "stopped" and self.error is None

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON's values; scores that are not finite become None."""
        values = asdict(self)
        values["curve"] = [[step, _finite(score)] for step, score in self.curve]
        values["best"], values["last"] = _finite(self.best), _finite(self.last)
        values["episode_scores"] = [_finite(score) for score in self.episode_scores]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrialResult:
        """Reads a result that `to_dict` wrote.

        Raises:
            OutputError: keys are missing or unknown.
        """
        names = {f.name for f in fields(cls)}
        missing = names - {"error", "episode_scores", "schedule"} - set(values)
        unknown = set(values) - names
        if missing or unknown or values["status"] not in get_args(TrialStatus):
            problem = (
                f"lacks {sorted(missing)}"
                if missing
                else f"has unknown {sorted(unknown)}"
                if unknown
                else f"has status '{values['status']}'"
            )
            raise OutputError(
                f"the result of trial '{values.get('trial_id', '?')}' {problem}; it was written by "
                "another version of raymimic or damaged: delete its line in results.jsonl"
            )
        content = dict(values)
        content["curve"] = [(int(step), _number(score)) for step, score in values["curve"]]
        content["episode_scores"] = [_number(s) for s in values.get("episode_scores", [])]
        return cls(**content)


def _finite(score: float | None) -> float | None:
    return score if score is not None and math.isfinite(score) else None


def _number(score: float | None) -> float:
    return math.nan if score is None else float(score)
