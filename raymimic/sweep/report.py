"""What comes out of a sweep, as files: the table, the pictures, the best config."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raymimic.errors import OutputError, TrainingError
from raymimic.sweep.result import FinalScore, TrialResult
from raymimic.sweep.spec import SweepSpec, Trial
from raymimic.sweep.stats import (
    Importance,
    expected_online_performance,
    importances,
    is_number,
)
from raymimic.sweep.table import (
    SettingRow,
    describe,
    number,
    table,
    table_csv,
    table_lines,
    varied_paths,
)
from raymimic.utils import storage

# More axes of parallel coordinates than this cannot be read.
_MOST_AXES = 8


@dataclass(frozen=True)
class Report:
    """A sweep's outcome.

    Attributes:
        best_setting_id: the setting whose mean over seeds is best.
        headline: its score, in a sentence.
        rows: the table, the best setting first.
        files: what was written.
        episodes: evaluation episodes that the search consumed.
    """

    best_setting_id: str
    headline: str
    rows: list[SettingRow]
    files: list[Path]
    episodes: int

    @property
    def table(self) -> list[dict[str, Any]]:
        """The rows as plain values."""
        return [row.to_dict() for row in self.rows]


def write_report(
    spec: SweepSpec,
    results: Sequence[TrialResult],
    folder: Path,
    final: FinalScore | None = None,
) -> Report:
    """Writes ``table.csv``, ``table.json``, ``best_config.json`` and the pictures.

    Args:
        spec: the sweep.
        results: one for each trial that began.
        folder: where the files go; those of an earlier report are replaced.
        final: the winner's score on episodes that the search never saw.

    Raises:
        TrainingError: no trial has a score.
        OutputError: the folder cannot be written.
    """
    rows = table(results, spec.mode, spec.seeds)
    scored = [row for row in rows if row.score]
    if not scored:
        raise TrainingError(
            f"no trial of sweep '{spec.name}' has a score for '{spec.metric}', so there is nothing "
            "to compare; results.jsonl says why each failed"
        )
    best = scored[0]
    found = importances([row.setting for row in scored], _means(scored))
    episodes = sum(result.episodes for result in results)
    headline = _headline(spec, best, final)
    config = spec.config_for(Trial(best.setting_id, best.setting, best.seeds[0]))
    outcome = {
        "sweep": spec.name,
        "algo": spec.algo,
        "dataset": spec.dataset,
        "metric": spec.metric,
        "mode": spec.mode,
        "search": spec.search,
        "scheduler": spec.scheduler,
        "headline": headline,
        "final": final,
        "best_setting_id": best.setting_id,
        "search_episodes": episodes,
        "settings": [row.to_dict() for row in rows],
        "expected_online_performance": {
            "best": asdict(expected_online_performance(_means(scored), spec.mode)),
            "last": asdict(expected_online_performance(_lasts(scored), spec.mode))
            if _lasts(scored)
            else None,
        },
        "importance": [asdict(one) for one in found],
        "notes": _notes(spec, rows),
    }
    written = {
        "table.csv": table_csv(rows),
        "table.json": json.dumps(outcome, indent=2, allow_nan=False) + "\n",
        "best_config.json": config.dump() + "\n",
    }
    for name, content in written.items():
        storage.write_bytes(str(folder / name), content.encode())
    files = [folder / name for name in written]
    try:
        files += _draw(spec, rows, results, found, folder)
    except OSError as error:
        raise OutputError(
            f"cannot write the pictures of sweep '{spec.name}' to '{folder}': "
            f"{error.strerror or error}; make room there"
        ) from error
    return Report(best.setting_id, headline, rows, files, episodes)


def report_lines(spec: SweepSpec, report: Report) -> list[str]:
    """What a person reads at the end: the table, what it cost, the headline."""
    notes = [f"note: {note}" for note in _notes(spec, report.rows)]
    return [
        f"{spec.metric} by setting, best checkpoint of each seed:",
        *table_lines(report.rows, spec.labels),
        f"the search consumed {report.episodes} evaluation episodes",
        *notes,
        report.headline,
    ]


def _headline(spec: SweepSpec, best: SettingRow, final: FinalScore | None) -> str:
    what = f"best: {describe(best.setting, spec.labels) or best.setting_id}"
    if final is not None:
        # New episodes are scored by what they return, whichever statistic the search looked at.
        score = "success rate" if spec.metric.startswith("Rollout/Success_Rate") else "return"
        return (
            f"{what}: {score} {number(final['mean'])} [{number(final['low'])}, "
            f"{number(final['high'])}] in {final['episodes']} episodes that the search never saw "
            f"(seeds of training: {', '.join(final['by_seed'])})"
        )
    mean = number(best.score.mean if best.score else None)
    return (
        f"{what}: {spec.metric} {mean}, which is flattered: the search chose the setting and the "
        "checkpoints by these very episodes"
    )


def _notes(spec: SweepSpec, rows: Sequence[SettingRow]) -> list[str]:
    """What a reader of the table has to know."""
    notes = []
    partly = sum(not row.complete for row in rows)
    if partly:
        notes.append(
            f"{partly} of {len(rows)} settings lack trials that came to their end with a score; "
            "they are ranked after the others"
        )
    if len(spec.seeds) == 1:
        notes.append("one seed each: the intervals tell of episodes, not of other trainings")
    elif len(spec.seeds) < 4:
        notes.append(
            f"{len(spec.seeds)} seeds each: the intervals are narrower than they should be"
        )
    if spec.search == "optuna" or spec.scheduler == "pbt":
        notes.append(
            "later settings follow from the scores of earlier ones, so the expected online "
            "performance, which supposes random draws, is that of this search and too high"
        )
    if spec.scheduler == "pbt":
        notes.append("a setting is what its trial began with; perturbations changed it on the way")
    if spec.scheduler in ("asha", "median"):
        notes.append("the last checkpoint of a stopped trial is an early one")
    return notes


def _draw(
    spec: SweepSpec,
    rows: Sequence[SettingRow],
    results: Sequence[TrialResult],
    found: Sequence[Importance],
    folder: Path,
) -> list[Path]:
    from raymimic.sweep import pictures  # matplotlib takes its time

    scored = [row for row in rows if row.score]
    names, metric, mode, title = spec.labels, spec.metric, spec.mode, spec.name
    drawn = [folder / "learning_curves.png"]
    pictures.learning_curves(rows, results, names, metric, drawn[-1], title)
    if len(scored) < 2:
        return drawn
    drawn.append(folder / "online_budget.png")
    pictures.budget_curve(_means(scored), _lasts(scored), metric, mode, drawn[-1], title)
    numeric = [one.path for one in found if _numeric(one.path, scored)][:2]
    if len(numeric) == 2:
        order = varied_paths(row.setting for row in scored)
        across, up = sorted(numeric, key=order.index)
        drawn.append(folder / "heat_map.png")
        pictures.heat_map(scored, across, up, names, metric, mode, drawn[-1], title)
    if found:
        kept = {one.path for one in found[:_MOST_AXES]}
        axes = [path for path in varied_paths(row.setting for row in scored) if path in kept]
        drawn.append(folder / "parallel_coordinates.png")
        pictures.parallel_coordinates(scored, axes, names, metric, mode, drawn[-1], title)
    if any(one.share is not None for one in found):
        drawn.append(folder / "importance.png")
        pictures.importance_bars(found, names, len(scored), drawn[-1], title)
    return drawn


def _numeric(path: str, rows: Sequence[SettingRow]) -> bool:
    settings: list[Mapping[str, Any]] = [row.setting for row in rows if path in row.setting]
    return all(is_number(setting[path]) for setting in settings)


def _means(rows: Sequence[SettingRow]) -> list[float]:
    return [row.score.mean for row in rows if row.score]


def _lasts(rows: Sequence[SettingRow]) -> list[float]:
    return [row.last for row in rows if row.last is not None]
