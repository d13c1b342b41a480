"""The report of a sweep, as files and as text: table, pictures, best config."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raymimic import storage
from raymimic.errors import OutputError, TrainingError
from raymimic.sweep.outcome.result import FinalScore, TrialResult
from raymimic.sweep.outcome.stats import Importance, expected_online_performance
from raymimic.sweep.outcome.table import (
    SettingRow,
    SweepOutcome,
    describe,
    short_name,
    table_csv,
    table_lines,
)
from raymimic.sweep.spec.sweep_spec import SweepSpec, Trial
from raymimic.terminal import readable

# Most settings that a terminal shows.
_MOST_ROWS = 20
# Number of seeds to the cases [%] in which a 95% interval holds the true mean (see `estimate`).
_COVERAGE = {2: 50, 3: 73, 4: 80, 5: 83}


@dataclass(frozen=True)
class SweepReport:
    """A sweep's report.

    Attributes:
        outcome: the results and their comparison.
        headline: the best setting and its score, in a sentence.
        files: the files that were written.
    """

    outcome: SweepOutcome
    headline: str
    files: list[Path]

    @property
    def rows(self) -> list[SettingRow]:
        """The table, the best setting first."""
        return self.outcome.rows

    @property
    def best_setting_id(self) -> str:
        """The setting whose mean over seeds is best."""
        return self.rows[0].setting_id

    @property
    def table(self) -> list[dict[str, Any]]:
        """The rows as plain values."""
        return [row.to_dict() for row in self.rows]

    @property
    def episodes(self) -> int:
        """Number of evaluation episodes that the search consumed."""
        return sum(row.episodes for row in self.rows)


def write_report(
    spec: SweepSpec,
    results: Sequence[TrialResult],
    folder: Path,
    final: FinalScore | None = None,
    references: Mapping[str, float] | None = None,
) -> SweepReport:
    """Writes `table.csv`, `table.json`, `best_config.json` and the pictures.

    Args:
        spec: the sweep.
        results: one for each trial that began.
        folder: folder of the files; an earlier report's are replaced.
        final: the winner's score on episodes that the search never saw.
        references: scores to compare with in a picture, by name.

    Raises:
        TrainingError: no trial has a score.
        OutputError: the folder cannot be written.
    """
    outcome = SweepOutcome.of(spec, results, references)
    if not outcome.scored:
        raise TrainingError(
            f"no trial of sweep '{spec.name}' has a score for '{spec.metric}', so there is nothing "
            "to compare; results.jsonl says why each failed"
        )
    best = outcome.rows[0]
    config = spec.config_for(Trial(best.setting_id, best.setting, best.seeds[0]))
    report = SweepReport(outcome, _headline(spec, best, final), [])
    lasts = outcome.lasts
    content = {
        "sweep": spec.name,
        "algo": spec.algo,
        "dataset": spec.dataset,
        "metric": spec.metric,
        "mode": spec.mode,
        "search": spec.search,
        "scheduler": spec.scheduler,
        "headline": report.headline,
        "final": final,
        "best_setting_id": best.setting_id,
        "search_episodes": report.episodes,
        "settings": report.table,
        "expected_online_performance": {
            "best": asdict(expected_online_performance(outcome.means, spec.mode)),
            "last": asdict(expected_online_performance(lasts, spec.mode)) if lasts else None,
        },
        "importance": [asdict(importance) for importance in outcome.importances],
        "schedules": {result.trial_id: result.schedule for result in results if result.schedule},
        "notes": _notes(outcome),
    }
    written = {
        "table.csv": table_csv(spec, outcome.rows),
        "table.json": json.dumps(content, indent=2, allow_nan=False) + "\n",
        "best_config.json": config.dump() + "\n",
    }
    for name, text in written.items():
        storage.write_bytes(str(folder / name), text.encode())
        report.files.append(folder / name)
    from raymimic.sweep.outcome.pictures import draw_pictures  # imports matplotlib

    try:
        report.files.extend(draw_pictures(outcome, folder))
    except OSError as error:
        raise OutputError(
            f"cannot write the pictures of sweep '{spec.name}' to '{folder}': "
            f"{error.strerror or error}; make room there"
        ) from error
    return report


def sweep_report_lines(spec: SweepSpec, report: SweepReport) -> list[str]:
    """The text at a sweep's end: the table, its cost, the headline."""
    outcome = report.outcome
    lines = [
        f"{spec.metric} by setting, of each seed's best checkpoint ('last': of its last one):",
        *table_lines(spec, report.rows, _MOST_ROWS),
        f"the search consumed {report.episodes} evaluation episodes",
    ]
    shares = [_share(spec, one) for one in outcome.importances if one.share is not None]
    if shares:
        lines.append(f"share of the variance of the settings' ranks: {', '.join(shares)}")
    expected = expected_online_performance(outcome.means, spec.mode).expected
    if len(expected) > 1:
        tried = sorted({1, 2, 4, 8, 16, 32, len(expected)})
        at = [f"{readable(expected[n - 1])} ({n})" for n in tried if n <= len(expected)]
        lines.append(f"expected best of n settings tried online: {', '.join(at)}")
    lines += [f"note: {note}" for note in _notes(outcome)]
    return [*lines, report.headline]


def _share(spec: SweepSpec, importance: Importance) -> str:
    name = short_name(spec, importance.path)
    return f"{name} {importance.share:.2f} (p = {importance.p_value:.2g})"


def _headline(spec: SweepSpec, best: SettingRow, final: FinalScore | None) -> str:
    setting = f"best: {describe(spec, best.setting) or best.setting_id}"
    if final is not None:
        # A new episode has a return or a success, whichever statistic the search looked at.
        score = "success rate" if spec.metric.startswith("Rollout/Success_Rate") else "return"
        mean, low, high = (
            readable(value) for value in (final["mean"], final["low"], final["high"])
        )
        return (
            f"{setting}: {score} {mean}, 95% interval [{low}, {high}], in {final['episodes']} "
            f"episodes that the search never saw (seeds of training: {', '.join(final['by_seed'])})"
        )
    mean = readable(best.score.mean if best.score else None)
    return (
        f"{setting}: {spec.metric} {mean}, which is flattered: the search chose the setting and "
        "the checkpoints by these very episodes"
    )


def _notes(outcome: SweepOutcome) -> list[str]:
    """Warnings for readers of the table."""
    spec, rows = outcome.spec, outcome.rows
    notes = []
    partly = sum(not row.complete for row in rows)
    if partly:
        after = "; they are ranked after the others" if partly < len(rows) else ""
        notes.append(
            f"{partly} of {len(rows)} settings lack trials that came to their end with a score"
            + after
        )
    without = len(rows) - len(outcome.scored)
    if without:
        notes.append(
            f"{without} of {len(rows)} settings have no score and are in no picture; without the "
            "worst, the expected online performance is too good"
        )
    seeds = len(spec.seeds)
    if seeds == 1:
        notes.append("one seed each: the intervals cover episodes, not other seeds of the training")
    elif seeds in _COVERAGE:
        notes.append(
            f"{seeds} seeds each: a bootstrap of so few is too narrow; its 95% interval may hold "
            f"the true mean in only {_COVERAGE[seeds]}% of cases"
        )
    if spec.search == "optuna" or spec.scheduler == "pbt":
        notes.append(
            "later settings follow from the scores of earlier ones, so the expected online "
            "performance, which assumes random draws, is too high"
        )
    if spec.scheduler == "pbt":
        notes.append(
            "each row has the setting of a trial's best score; its weights were trained with "
            "other settings before (schedules), which best_config.json does not repeat"
        )
    if spec.scheduler in ("asha", "median"):
        notes.append("the last checkpoint of a stopped trial is an early one")
    return notes
