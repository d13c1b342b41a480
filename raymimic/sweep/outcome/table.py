"""A sweep's table: one row for each setting, the best first."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from typing import Any

from raymimic.sweep.outcome.result import TrialResult
from raymimic.sweep.outcome.stats import Estimate, Importance, estimate, importances
from raymimic.sweep.spec.space import Choice, value_name
from raymimic.sweep.spec.sweep_spec import SweepSpec
from raymimic.terminal import readable

# Most letters of a value in a table or a picture.
_LONGEST = 28
_COLUMNS = ("mean", "95% interval", "IQM", "last")


@dataclass(frozen=True)
class SettingRow:
    """One setting's row: the results of its trials.

    Attributes:
        rank: rank from 1; None without a score.
        setting_id: the setting's id within the sweep.
        setting: value by config path.
        trials: number of trials by status.
        seeds: seeds of the trials that have a score.
        complete: whether each of its trials came to its end with a score. Other settings are
            ranked after the complete ones: a mean over the surviving seeds flatters.
        score: mean over seeds of the best checkpoint's score, with its interval.
        last: mean over the same seeds of the last checkpoint's score; None where a trial has no
            finite one. The best checkpoint is picked among many evaluations and so partly lucky;
            the last is not.
        by_seed: best score by seed.
        last_by_seed: last score by seed.
        episodes: number of evaluation episodes that its trials played.
        best_checkpoint: path or URI of the best trial's checkpoint.
    """

    rank: int | None
    setting_id: str
    setting: dict[str, Any]
    trials: dict[str, int]
    seeds: list[int]
    complete: bool
    score: Estimate | None
    last: float | None
    by_seed: dict[int, float]
    last_by_seed: dict[int, float]
    episodes: int
    best_checkpoint: str | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The mean's 95% interval; None where a single number is known."""
        if self.score is None or (len(self.seeds) == 1 and self.score.low == self.score.high):
            return None
        return self.score.low, self.score.high

    def to_dict(self) -> dict[str, Any]:
        """The row as plain values, with the score's parts beside the others."""
        values = asdict(self)
        score = values.pop("score") or dict.fromkeys(("mean", "iqm"))
        score["low"], score["high"] = self.interval or (None, None)
        for by in ("by_seed", "last_by_seed"):
            values[by] = {str(seed): value for seed, value in values[by].items()}
        return values | score


def table(
    results: Iterable[TrialResult],
    mode: str = "max",
    seeds: Iterable[int] = (),
    resamples: int = 10_000,
) -> list[SettingRow]:
    """Ranks settings by their mean over seeds.

    Args:
        results: at most one for each trial, in any order and state.
        mode: "max", or "min" where less is better.
        seeds: seeds of each setting; a setting that lacks one of them is not complete.
        resamples: number of bootstrap samples; a table that is drawn again and again needs fewer.

    Returns:
        complete settings, then settings that lack trials, then those without a score; the best
        first in each part.
    """
    seeds = set(seeds)
    by_setting: dict[str, list[TrialResult]] = {}
    for result in results:
        by_setting.setdefault(result.setting_id, []).append(result)
    rows = [_row(trials, mode, seeds, resamples) for trials in by_setting.values()]
    sign = -1.0 if mode == "max" else 1.0
    rows.sort(
        key=lambda row: (
            row.score is None,
            not row.complete,
            sign * row.score.mean if row.score else 0.0,
        )
    )
    return [
        replace(row, rank=rank if row.score else None) for rank, row in enumerate(rows, start=1)
    ]


@dataclass(frozen=True)
class SweepOutcome:
    """The results of a sweep and their comparison.

    Attributes:
        spec: the sweep.
        results: one for each trial that began.
        rows: the table.
        importances: the hyperparameters' main effects, the greatest first; empty under PBT, where
            a trial's weights have been through many settings.
        references: scores to compare with, by name, such as the mean return of the data.
    """

    spec: SweepSpec
    results: Sequence[TrialResult]
    rows: list[SettingRow]
    importances: list[Importance]
    references: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        spec: SweepSpec,
        results: Sequence[TrialResult],
        references: Mapping[str, float] | None = None,
    ) -> SweepOutcome:
        """Compares a sweep's results."""
        rows = table(results, spec.mode, spec.seeds)
        outcome = cls(spec, results, rows, [], references or {})
        if spec.scheduler == "pbt":
            return outcome
        settings = [row.setting for row in outcome.scored]
        return replace(outcome, importances=importances(settings, outcome.means))

    @property
    def scored(self) -> list[SettingRow]:
        """The rows that have a score."""
        return [row for row in self.rows if row.score]

    @property
    def means(self) -> list[float]:
        """Their scores."""
        return [row.score.mean for row in self.rows if row.score]

    @property
    def lasts(self) -> list[float]:
        """Their last checkpoints' scores; empty if one diverged, as the rest would be too good."""
        lasts = [row.last for row in self.scored if row.last is not None]
        return lasts if len(lasts) == len(self.scored) else []


def format_value(value: Any) -> str:
    """A hyperparameter's value for people: 0.005, 1e-05, relu, [256, 256], the end of a path."""
    if isinstance(value, float):
        return f"{value:.4g}"
    words = str(value)
    return words if len(words) <= _LONGEST else f"…{words[-_LONGEST:]}"


def short_name(spec: SweepSpec, path: str) -> str:
    """A hyperparameter's short name, also where names of trials leave it out."""
    return spec.labels[path] or path.rsplit(".", 1)[-1]


def format_setting_value(spec: SweepSpec, path: str, setting: Mapping[str, Any]) -> str:
    """A setting's value at a path, or the sweep's name for the value; "" where it has none."""
    if path not in setting:
        return ""
    value, dimension = setting[path], spec.space[path]
    if isinstance(dimension, Choice) and dimension.value_names:
        return value_name(spec.space, path, setting)
    if isinstance(value, str) and len(value) > _LONGEST:
        # Long paths, such as datasets', are shown by the parts in which they differ.
        parts = [str(other).split("/") for other in dimension.ends]
        first, last = _common(parts), _common([part[::-1] for part in parts])
        words = value.split("/")
        value = "/".join(words[first : len(words) - last]) or value
    return format_value(value)


def _common(lists: Iterable[Sequence[str]]) -> int:
    """Number of entries that the lists share at their beginning."""
    columns = zip(*lists, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def describe(spec: SweepSpec, setting: Mapping[str, Any]) -> str:
    """A setting for people: `alpha 2.5, target_tau 0.005`."""
    parts = [
        f"{spec.labels[path]} {format_setting_value(spec, path, setting)}".strip()
        for path in _shown(spec)
        if path in setting
    ]
    return ", ".join(parts)


def _shown(spec: SweepSpec) -> list[str]:
    """The paths that name settings and trials; all paths where all are hidden."""
    return [path for path, one in spec.space.items() if not one.hidden] or list(spec.space)


def table_lines(spec: SweepSpec, rows: Sequence[SettingRow], limit: int | None = None) -> list[str]:
    """The table for a terminal.

    Args:
        spec: the sweep.
        rows: see `table`.
        limit: most settings to show; a last line counts the others.
    """
    paths = _shown(spec)
    cells = [["#", *(spec.labels[path] or "setting" for path in paths), *_COLUMNS, "seeds", ""]]
    for row in rows[:limit]:
        score = row.score
        low_high = "[{}, {}]".format(*map(readable, row.interval)) if row.interval else "-"
        # Finished trials need no word.
        others = [f"{n} {status}" for status, n in row.trials.items() if status != "finished"]
        cells.append(
            [
                str(row.rank or "-"),
                *(format_setting_value(spec, path, row.setting) for path in paths),
                readable(score.mean if score else None),
                low_high,
                readable(score.iqm if score else None),
                readable(row.last),
                str(len(row.seeds)),
                ", ".join(others),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for *line, rest in cells:
        padded = [cell.rjust(width) for cell, width in zip(line, widths, strict=False)]
        lines.append("  ".join([*padded, rest]).rstrip())
    if limit is not None and limit < len(rows):
        lines.append(f"and {len(rows) - limit} settings more")
    return lines


def table_csv(spec: SweepSpec, rows: Sequence[SettingRow]) -> str:
    """The table for spreadsheets: whole config paths, full precision, a column for each seed."""
    seeds = sorted({seed for row in rows for seed in row.by_seed})
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    values = ("mean", "low", "high", "iqm", "last", "complete")
    by_seed = [(by, seed) for by in ("best", "last") for seed in seeds]
    writer.writerow(
        ["rank", "setting_id", *spec.space, *values]
        + [f"{by}_seed_{seed}" for by, seed in by_seed]
        + ["episodes", "best_checkpoint"]
    )
    for row in rows:
        content = row.to_dict() | {"complete": str(row.complete).lower()}
        scores = {"best": row.by_seed, "last": row.last_by_seed}
        writer.writerow(
            [row.rank, row.setting_id, *map(row.setting.get, spec.space)]
            + [content[value] for value in values]
            + [scores[by].get(seed) for by, seed in by_seed]
            + [row.episodes, row.best_checkpoint]
        )
    return stream.getvalue()


def _row(trials: Sequence[TrialResult], mode: str, seeds: set[int], resamples: int) -> SettingRow:
    trials = sorted(trials, key=lambda trial: trial.seed)
    by_seed = {t.seed: t.best for t in trials if t.best is not None and math.isfinite(t.best)}
    last = {t.seed: t.last for t in trials if t.last is not None and math.isfinite(t.last)}
    scored = [trial for trial in trials if trial.seed in by_seed]
    score, checkpoint = None, None
    if scored:
        episodes = [trial.episode_scores for trial in scored]
        score = estimate(list(by_seed.values()), episodes, resamples)
        choose = max if mode == "max" else min
        checkpoint = choose(scored, key=lambda trial: by_seed[trial.seed]).best_checkpoint
    ended = all(t.status == "finished" or t.stopped_by_scheduler for t in trials)
    return SettingRow(
        rank=None,
        setting_id=trials[0].setting_id,
        setting=trials[0].setting,
        trials=dict(Counter(str(trial.status) for trial in trials)),
        seeds=list(by_seed),
        complete=ended and len(scored) == len(trials) and seeds <= set(by_seed),
        score=score,
        last=sum(last.values()) / len(last) if last and set(by_seed) <= set(last) else None,
        by_seed=by_seed,
        last_by_seed=last,
        episodes=sum(trial.episodes for trial in trials),
        best_checkpoint=checkpoint,
    )
