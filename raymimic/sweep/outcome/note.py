"""The description of a sweep's run: Markdown, as MLflow's pages show it above all else."""

from raymimic import storage
from raymimic.sweep.outcome.report import SweepReport
from raymimic.sweep.outcome.table import SettingRow, describe
from raymimic.sweep.spec.sweep_spec import SweepSpec
from raymimic.terminal import readable
from raymimic.tracking.markdown import code, commands, table

# Most settings in the table: MLflow takes 8,000 characters.
_MOST_ROWS = 20


def sweep_note(spec: SweepSpec, report: SweepReport, sweep_dir: str, dataset: str) -> str:
    """Describes a sweep: the best setting, all settings, and the commands to go on with.

    Args:
        spec: the sweep.
        report: its results.
        sweep_dir: folder or URI of the sweep.
        dataset: name of the data.
    """
    rows, seeds = report.rows, ", ".join(map(str, spec.seeds))
    heads = ("#", "setting", spec.metric, "95 % interval", "last checkpoint", "seeds")
    parts = [
        f"**{spec.algo}** on {code(dataset)}: {len(rows)} settings, seeds {seeds}",
        report.headline,
        table(heads, [_cells(spec, row) for row in rows[:_MOST_ROWS]]),
    ]
    if len(rows) > _MOST_ROWS:
        parts.append(f"and {len(rows) - _MOST_ROWS} settings more in `table.csv`")
    best_config = storage.join(sweep_dir, "best_config.json")
    found = [("train the best setting again", ["raymimic", "train", "--config", best_config])]
    if rows[0].best_checkpoint is not None:
        found.insert(0, ("evaluate", ["raymimic", "evaluate", rows[0].best_checkpoint]))
    return "\n\n".join([*parts, commands(found)])


def _cells(spec: SweepSpec, row: SettingRow) -> list[str]:
    interval = "[{}, {}]".format(*map(readable, row.interval)) if row.interval else "-"
    return [
        str(row.rank or "-"),
        code(describe(spec, row.setting) or row.setting_id),
        readable(row.score.mean if row.score else None),
        interval,
        readable(row.last),
        str(len(row.seeds)),
    ]
