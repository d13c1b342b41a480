"""A sweep's table: one row for each setting, the best first."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from typing import Any

from raymimic.sweep.result import TrialResult
from raymimic.sweep.space import Choice, value_name
from raymimic.sweep.spec import SweepSpec
from raymimic.sweep.stats import Estimate, Importance, estimate, importances

# Letters of a value that a table or a picture has room for.
_LONGEST = 28
_COLUMNS = ("mean", "95% interval", "IQM", "last")


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


@dataclass(frozen=True)
class Outcome:
    """What a sweep's trials have found.

    Attributes:
        spec: the sweep.
        results: one for each trial that began.
        rows: the table.
        importances: of the hyperparameters, the greatest first; none under PBT, where one trial's
            weights have been through many settings.
    """

    spec: SweepSpec
    results: Sequence[TrialResult]
    rows: list[SettingRow]
    importances: list[Importance]

    @classmethod
    def of(cls, spec: SweepSpec, results: Sequence[TrialResult]) -> Outcome:
        """Compares a sweep's results."""
        outcome = cls(spec, results, table(results, spec.mode, spec.seeds), [])
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
        """Their last checkpoints' scores; none where one has diverged, as the others flatter."""
        lasts = [row.last for row in self.scored if row.last is not None]
        return lasts if len(lasts) == len(self.scored) else []


def text(value: Any) -> str:
    """A hyperparameter's value for people: 0.005, 1e-05, relu, [256, 256], the end of a path."""
    if isinstance(value, float):
        return f"{value:.4g}"
    words = str(value)
    return words if len(words) <= _LONGEST else f"…{words[-_LONGEST:]}"


def short_name(spec: SweepSpec, path: str) -> str:
    """A hyperparameter's short name, also where names of trials do without."""
    return spec.labels[path] or path.rsplit(".", 1)[-1]


def word(spec: SweepSpec, path: str, setting: Mapping[str, Any]) -> str:
    """What a setting has at a path, by the name that the sweep gives it; "" where it has none."""
    if path not in setting:
        return ""
    value, dimension = setting[path], spec.space[path]
    if isinstance(dimension, Choice) and dimension.value_names:
        return value_name(spec.space, path, setting)
    if isinstance(value, str) and len(value) > _LONGEST:
        # Of long paths, such as datasets', the parts in which they differ.
        parts = [str(other).split("/") for other in dimension.ends]
        first, last = _common(parts), _common([part[::-1] for part in parts])
        own = value.split("/")
        value = "/".join(own[first : len(own) - last]) or value
    return text(value)


def _common(lists: Iterable[Sequence[str]]) -> int:
    """How many entries the lists share at their beginning."""
    columns = zip(*lists, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def describe(spec: SweepSpec, setting: Mapping[str, Any]) -> str:
    """A setting for people: ``alpha 2.5, target_tau 0.005``."""
    parts = [
        f"{spec.labels[path]} {word(spec, path, setting)}".strip()
        for path in _shown(spec)
        if path in setting
    ]
    return ", ".join(parts)


def _shown(spec: SweepSpec) -> list[str]:
    """The paths by which settings are named, as trials are; all, where all are hidden."""
    return [path for path, one in spec.space.items() if not one.hidden] or list(spec.space)


def number(score: float | None) -> str:
    """A score for people, with as many decimals as its size leaves meaning to."""
    if score is None or not math.isfinite(score):
        return "-"
    size = abs(score)
    return f"{score:.0f}" if size >= 100 else f"{score:.1f}" if size >= 10 else f"{score:.3g}"


def table_lines(spec: SweepSpec, rows: Sequence[SettingRow], limit: int | None = None) -> list[str]:
    """The table for a terminal.

    Args:
        spec: the sweep.
        rows: see :func:`table`.
        limit: shows only so many, and says how many more there are.
    """
    paths = _shown(spec)
    cells = [["#", *(spec.labels[path] or "setting" for path in paths), *_COLUMNS, "seeds", ""]]
    for row in rows[:limit]:
        score = row.score
        low_high = "[{}, {}]".format(*map(number, row.interval)) if row.interval else "-"
        # What is finished needs no word.
        others = [f"{n} {status}" for status, n in row.trials.items() if status != "finished"]
        cells.append(
            [
                str(row.rank or "-"),
                *(word(spec, path, row.setting) for path in paths),
                number(score.mean if score else None),
                low_high,
                number(score.iqm if score else None),
                number(row.last),
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
        found = row.to_dict() | {"complete": str(row.complete).lower()}
        scores = {"best": row.by_seed, "last": row.last_by_seed}
        writer.writerow(
            [row.rank, row.setting_id, *map(row.setting.get, spec.space)]
            + [found[value] for value in values]
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
