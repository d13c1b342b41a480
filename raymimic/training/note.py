"""The description of a training's run: Markdown, as MLflow's pages show it above all else."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from raymimic import storage
from raymimic.checkpoints.records import Evaluation
from raymimic.config import BaseConfig
from raymimic.data.training_data import data_label
from raymimic.terminal import readable
from raymimic.tracking.episode_rows import knows_success
from raymimic.tracking.markdown import code, commands, table
from raymimic.user_modules import modules_of

# Evaluations in the table.
_LAST = 5


@dataclass(frozen=True)
class ChosenCheckpoint:
    """The checkpoint that a training leaves to its user.

    Attributes:
        path: path or URI of its file.
        epoch: the epoch at whose end it was taken.
        is_best: whether a score chose it; otherwise it is the newest.
        validation_loss: of that epoch; None where it was not measured.
    """

    path: str
    epoch: int
    is_best: bool
    validation_loss: float | None = None


def run_note(
    config: BaseConfig,
    run_dir: str,
    evaluations: Mapping[int, Evaluation],
    chosen: ChosenCheckpoint | None = None,
) -> str:
    """Describes a run: its best result, its last evaluations, and the commands to go on with.

    Args:
        config: the whole config.
        run_dir: folder or URI of the run.
        evaluations: by epoch.
        chosen: the best checkpoint, or the newest; None while the training goes on.
    """
    parts = [f"**{config.algo_name}** on {code(data_label(config))}"]
    if chosen is not None:
        parts.append(_headline(chosen, evaluations.get(chosen.epoch)))
    newest = [evaluations[epoch] for epoch in sorted(evaluations, reverse=True)[:_LAST]]
    rows = [row for evaluation in newest for row in _rows(evaluation)]
    if rows:
        heads = ("epoch", "environment", "return", "95 % interval", "success", "episodes")
        parts.append(table(heads, rows))
    parts.append(commands(_commands(config, run_dir, chosen)))
    return "\n\n".join(parts)


def _headline(chosen: ChosenCheckpoint, evaluation: Evaluation | None) -> str:
    name = "Best checkpoint" if chosen.is_best else "Last checkpoint"
    if evaluation is None or not evaluation.returns:
        loss = chosen.validation_loss
        score = "" if loss is None else f"validation loss {readable(loss)} "
        return f"{name}: {score}at epoch {chosen.epoch}"
    scores = []
    for _, env, value, interval, success, episodes in _rows(evaluation):
        solved = "" if success == "-" else f", success {success}"
        scores.append(
            f"return {value}, 95 % interval {interval}{solved}, in {episodes} episodes of {env}"
        )
    return f"{name}: {'; '.join(scores)}, at epoch {chosen.epoch}"


def _rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """A row for each environment of an evaluation."""
    rows: list[tuple[str, ...]] = []
    for env, mean in evaluation.returns.items():
        low, high = _interval(evaluation, "Return", env)
        played = evaluation.played.get(env, [])
        count = len(played) or len(evaluation.episodes.get(env, []))
        rows.append(
            (
                str(evaluation.epoch),
                code(env),
                readable(mean),
                f"[{readable(low)}, {readable(high)}]",
                _success(evaluation, env) if knows_success(played) else "-",
                str(count or "-"),
            )
        )
    return rows


def _success(evaluation: Evaluation, env: str) -> str:
    rate = evaluation.success_rates.get(env)
    if rate is None:
        return "-"
    low, high = _interval(evaluation, "Success_Rate", env)
    return f"{rate:.0%}" + ("" if math.isnan(low) else f" [{low:.0%}, {high:.0%}]")


def _interval(evaluation: Evaluation, measure: str, env: str) -> tuple[float, float]:
    """The 95 % interval of a mean; NaN where an earlier version has left it out."""
    low, high = (
        evaluation.metrics.get(f"Rollout/{measure}_CI_{end}/{env}", math.nan)
        for end in ("Low", "High")
    )
    return low, high


def _commands(
    config: BaseConfig, run_dir: str, chosen: ChosenCheckpoint | None
) -> list[tuple[str, list[str]]]:
    """Commands by their purpose, each as words for a shell."""
    modules = modules_of(config)
    imports = ["--import", *modules] if modules else []
    address = config.ray.address
    named = address not in (None, "auto", "local") and config.ray.num_workers > 0
    cluster = ["--set", f"ray.address={address}"] if named else []
    found = [
        ("go on", ["raymimic", "train", "--resume", run_dir, *imports, *cluster]),
        (
            "repeat it from the beginning",
            ["raymimic", "train", "--config", storage.join(run_dir, "config.json")],
        ),
    ]
    if chosen is not None:
        found.insert(0, ("evaluate", ["raymimic", "evaluate", chosen.path, *imports]))
    return found
