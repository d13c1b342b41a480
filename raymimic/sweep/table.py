"""A sweep's table: one row for each setting, the best first."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from raymimic.sweep.result import TrialResult
from raymimic.sweep.stats import Estimate, estimate

# Letters of a value that a table or a picture has room for.
_LONGEST = 28


@dataclass(frozen=True)
class SettingRow:
    """What the trials of one setting found.

    Attributes:
        rank: from 1; ``None`` without a score.
        setting_id: its name within the sweep.
        setting: value by config path.
        trials: number of trials by status.
        seeds: of the trials that have a score.
        complete: whether each of its trials came to its end with a score. Settings that lack some
            are ranked after the others: a mean over the seeds that survived flatters.
        score: mean over seeds of the best checkpoint's score, with its interval.
        last: mean over the same seeds of the last checkpoint's score; ``None`` where one has
            none that is finite. The best is picked among many
            evaluations and so partly lucky; this one is not.
        by_seed: best score by seed.
        last_by_seed: last score by seed.
        episodes: evaluation episodes that its trials played.
        best_checkpoint: of the trial with the best score.
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
        """The mean's 95% interval; ``None`` where one number is all that is known."""
        if self.score is None or (len(self.seeds) == 1 and self.score.low == self.score.high):
            return None
        return self.score.low, self.score.high

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values; the score's parts stand beside the others."""
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
        seeds: that each setting is to be trained with; one that lacks a trial is not complete.
        resamples: of the bootstrap; a table that is drawn again and again needs fewer.

    Returns:
        settings that are complete, then those that lack trials, then those without a score; the
        best first in each part.
    """
    seeds = set(seeds)
    by_setting: dict[str, list[TrialResult]] = {}
    for result in results:
        by_setting.setdefault(result.setting_id, []).append(result)
    rows = [_row(of_one, mode, seeds, resamples) for of_one in by_setting.values()]
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


def varied_paths(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Config paths of all settings, in the order of their appearance."""
    return list(dict.fromkeys(path for setting in settings for path in setting))


def text(value: Any) -> str:
    """A hyperparameter's value for people: 0.005, 1e-05, relu, [256, 256], the end of a path."""
    if isinstance(value, float):
        return f"{value:.4g}"
    words = "" if value is None else str(value)
    return words if len(words) <= _LONGEST else f"…{words[-_LONGEST:]}"


def describe(setting: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """A setting for people: ``alpha 2.5, target_tau 0.005``."""
    return ", ".join(f"{names.get(path, path)} {text(value)}" for path, value in setting.items())


def number(score: float | None) -> str:
    """A score for people, with as many decimals as its size leaves meaning to."""
    if score is None or not math.isfinite(score):
        return "-"
    size = abs(score)
    return f"{score:.0f}" if size >= 100 else f"{score:.1f}" if size >= 10 else f"{score:.3g}"


def table_lines(
    rows: Sequence[SettingRow], names: Mapping[str, str], limit: int | None = None
) -> list[str]:
    """The table for a terminal.

    Args:
        rows: see :func:`table`.
        names: short ones for config paths.
        limit: shows only so many, and says how many more there are.
    """
    paths = varied_paths(row.setting for row in rows)
    head = ["#", *(names.get(path, path) for path in paths)]
    head += ["mean", "95% interval", "IQM", "last", "seeds", "trials"]
    shown = rows if limit is None else rows[:limit]
    cells = [head]
    for row in shown:
        score = row.score
        interval = "[{}, {}]".format(*map(number, row.interval)) if row.interval else "-"
        cells.append(
            [
                str(row.rank or "-"),
                *(text(row.setting.get(path)) for path in paths),
                number(score.mean if score else None),
                interval,
                number(score.iqm if score else None),
                number(row.last),
                str(len(row.seeds)),
                " ".join(f"{count} {status}" for status, count in row.trials.items()),
            ]
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    lines = []
    for line in cells:
        padded = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        padded[-1] = line[-1]
        lines.append("  ".join(padded).rstrip())
    if len(shown) < len(rows):
        lines.append(f"and {len(rows) - len(shown)} settings more")
    return lines


def table_csv(rows: Sequence[SettingRow]) -> str:
    """The table for spreadsheets: whole config paths, full precision, a column for each seed."""
    paths = varied_paths(row.setting for row in rows)
    seeds = sorted({seed for row in rows for seed in row.by_seed})
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["rank", "setting_id", *paths, "mean", "low", "high", "iqm", "last", "complete"]
        + [f"best_seed_{seed}" for seed in seeds]
        + [f"last_seed_{seed}" for seed in seeds]
        + ["episodes", "best_checkpoint"]
    )
    for row in rows:
        values = row.to_dict()
        writer.writerow(
            [row.rank, row.setting_id, *(row.setting.get(path) for path in paths)]
            + [values[key] for key in ("mean", "low", "high", "iqm", "last")]
            + [str(row.complete).lower()]
            + [row.by_seed.get(seed) for seed in seeds]
            + [row.last_by_seed.get(seed) for seed in seeds]
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
    # What the budget stopped has an error; what the scheduler stopped was given up for its score.
    ended = all(
        t.status == "finished" or (t.status == "stopped" and t.error is None) for t in trials
    )
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
