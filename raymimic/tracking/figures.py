"""Pictures of a training.

They are drawn with matplotlib's objects on an Agg canvas, so that no global state (a display, the
current figure, a user's style) takes part.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
REFERENCE_STYLES = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
INK = "#444444"
# The scores of an evaluation that are drawn, and their axes' labels.
_RETURN, _SUCCESS = "Return", "Success_Rate"
_SCORES = {_RETURN: "return of an episode", _SUCCESS: "episodes that solved the task"}
# The prefixes of losses, and the styles of their lines.
_TRAIN, _VALID = "Train", "Valid"
_SPLITS: dict[str, Literal["-", "--"]] = {_TRAIN: "-", _VALID: "--"}
# Least ratio of the largest to the smallest of a panel's losses at which its scale is logarithmic.
_LOG_RATIO = 20.0
# Letters in one line of a picture's title, and of a panel's.
_TITLE = 90
_PANEL_TITLE = 36
_WIDTH, _SCORE_HEIGHT, _LOSS_HEIGHT = 10.0, 4.2, 2.4  # inch

History = Sequence[Mapping[str, Any]]
_Curve = tuple[list[int], list[float]]


def learning_curve(
    history: History,
    out_png: Path,
    references: Mapping[str, Mapping[str, float]] | None = None,
    title: str = "",
) -> bool:
    """Draws returns and success rates with their 95% bands by epoch, and the losses below them.

    There is a panel for each quantity that has values, and none for others: success rates appear
    once an episode has solved its task. A panel of losses holds one kind of loss (`loss_panels`),
    the validation's dashed.

    Args:
        history: one mapping an epoch: `epoch`, and any of `Rollout/Return/<env>`,
            `Rollout/Success_Rate/<env>`, their `…_CI_Low` and `…_CI_High`, `Train/<…loss>`,
            `Valid/<…loss>`. An absent or infinite value leaves no mark. Entries of one epoch
            add up.
        out_png: file of the picture [1500 pixels wide]; replaced in one step.
        references: by environment, name to return, drawn as horizontal lines (the mean of the
            data, ...).
        title: title of the picture.

    Returns:
        whether there was anything to draw. If not, no file is written.

    Raises:
        OSError: the picture cannot be written.
    """
    scores = [score for score in _SCORES if _environments(history, score)]
    losses = loss_panels(history)
    if not scores and not losses:
        return False
    columns = 2 if len(losses) in (1, 2, 4) else 3
    rows = math.ceil(len(losses) / columns)
    heights = [_SCORE_HEIGHT] * len(scores) + [_LOSS_HEIGHT] * rows
    figure = new_figure(_WIDTH, sum(heights) + 0.6, fill(title, _TITLE))
    grid = figure.add_gridspec(len(heights), 6, height_ratios=heights)
    for row, score in enumerate(scores):
        axes = figure.add_subplot(grid[row, :])
        _draw_scores(axes, history, score, (references or {}) if score == _RETURN else {})
    for index, names in enumerate(losses):
        row, column = divmod(index, columns)
        left, width = column * 6 // columns, 6 // columns
        if index == len(losses) - 1:  # the last one fills its row
            width = 6 - left
        panel = figure.add_subplot(grid[len(scores) + row, left : left + width])
        _draw_losses(panel, history, names, explain=index == 0)
    last = max(int(entry["epoch"]) for entry in history)
    for axes in figure.axes:
        axes.set_xlim(0, last + 0.5)
    save_figure(figure, out_png)
    return True


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """An empty picture of 150 pixels an inch.

    Args:
        width: width [inch].
        height: height [inch].
        title: title of the picture.
    """
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=13, color=INK, parse_math=False)
    return figure


def save_figure(figure: Figure, out_png: Path) -> None:
    """Writes a picture in one step, so that nobody sees half of it.

    Raises:
        OSError: it cannot be written.
    """
    out_png.parent.mkdir(parents=True, exist_ok=True)
    temporary = out_png.with_name(out_png.name + ".tmp")
    figure.savefig(temporary, format="png")
    temporary.replace(out_png)


def series(history: History, key: str) -> tuple[list[int], list[float]]:
    """A metric's finite values by epoch.

    Args:
        history: see `learning_curve`.
        key: the metric.

    Returns:
        epochs in rising order and the values; the later of two values for an epoch counts.
    """
    values = {
        int(entry["epoch"]): float(entry[key])
        for entry in history
        if key in entry and math.isfinite(entry[key])
    }
    epochs = sorted(values)
    return epochs, [values[epoch] for epoch in epochs]


def loss_panels(history: History) -> list[list[str]]:
    """Chooses the panels of losses by the names and values of metrics, for any algorithm.

    A loss is named `loss` or `…_loss`, in any case. Losses of one name but for its digits, such as
    those of two critics, share a panel. Left out are a total `X/Loss` of losses in deeper groups
    (`X/Actor/Loss`), unless a validation chooses checkpoints by it; a loss that equals an earlier
    one; and one that is always zero.

    Args:
        history: see `learning_curve`.

    Returns:
        names without their `Train/` or `Valid/`, by panel, in the order of their appearance.
    """
    names = dict.fromkeys(
        match[1]
        for key in _keys(history)
        if (match := re.fullmatch(r"(?:Train|Valid)/((?:.*[/_])?loss)", key, re.IGNORECASE))
    )
    panels: dict[str, list[str]] = {}
    drawn: list[list[_Curve]] = []
    for name in names:
        curves = [series(history, f"{split}/{name}") for split in _SPLITS]
        chooses = name == "Loss" and curves[1] != ([], [])
        told = curves in drawn or not any(any(values) for _, values in curves)
        if told or (_is_total(name, names) and not chooses):
            continue
        drawn.append(curves)
        panels.setdefault(_without_digits(name), []).append(name)
    return list(panels.values())


def _without_digits(name: str) -> str:
    return re.sub(r"\d+", "", name)


def _is_total(name: str, losses: Iterable[str]) -> bool:
    """Whether a loss stands above losses in deeper groups."""
    group, _, last = name.rpartition("/")
    prefix = f"{group}/" if group else ""
    return last.lower() == "loss" and any(
        other.startswith(prefix) and "/" in other.removeprefix(prefix) for other in losses
    )


def _keys(history: History) -> list[str]:
    return list(dict.fromkeys(key for entry in history for key in entry))


def _environments(history: History, score: str) -> list[str]:
    """The environments that a score has a finite value of; for success rates, one above zero."""
    prefix = f"Rollout/{score}/"
    found = {}
    for key in _keys(history):
        if key.startswith(prefix):
            found[key.removeprefix(prefix)] = series(history, key)[1]
    if score == _SUCCESS and not any(any(values) for values in found.values()):
        return []
    return [env for env, values in found.items() if values]


def _draw_scores(
    axes: Axes,
    history: History,
    score: str,
    references: Mapping[str, Mapping[str, float]],
) -> None:
    envs = _environments(history, score)
    several = len(envs) > 1
    for env, colour in zip(envs, _cycle(COLOURS, len(envs)), strict=True):
        epochs, means = series(history, f"Rollout/{score}/{env}")
        marker = "o" if len(epochs) <= 30 else ""
        axes.plot(epochs, means, color=colour, marker=marker, markersize=4, label=env, zorder=3)
        low = dict(zip(*series(history, f"Rollout/{score}_CI_Low/{env}"), strict=True))
        high = dict(zip(*series(history, f"Rollout/{score}_CI_High/{env}"), strict=True))
        banded = [epoch for epoch in epochs if epoch in low and epoch in high]
        if banded:
            axes.fill_between(
                banded,
                [low[epoch] for epoch in banded],
                [high[epoch] for epoch in banded],
                color=colour,
                alpha=0.2,
                linewidth=0,
                label=f"{env}, 95% interval" if several else "95% interval",
            )
        lines = references.get(env, {})
        for (label, value), style in zip(
            lines.items(), _cycle(REFERENCE_STYLES, len(lines)), strict=True
        ):
            axes.axhline(
                value,
                color=colour if several else INK,
                linestyle=style,
                linewidth=1.2,
                label=f"{env}, {label}: {value:.4g}" if several else f"{label}: {value:.4g}",
            )
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=3 if several else 4,
        frameon=False,
        fontsize=10,
        labelcolor=INK,
        borderaxespad=0.3,
    )
    axes.set_ylabel(_SCORES[score], fontsize=11, color=INK)
    if score == _SUCCESS:
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _by_epoch(axes)


def _draw_losses(axes: Axes, history: History, names: Sequence[str], explain: bool) -> None:
    """Draws losses of one kind.

    Args:
        axes: the panel.
        history: see `learning_curve`.
        names: of the losses.
        explain: whether the legend tells training from validation, if both are there.
    """
    shown: list[float] = []
    for name, colour in zip(names, _cycle(COLOURS, len(names)), strict=True):
        for split, style in _SPLITS.items():
            epochs, values = series(history, f"{split}/{name}")
            marker = "o" if len(epochs) == 1 else ""
            axes.plot(
                epochs, values, style, color=colour, marker=marker, markersize=4, linewidth=1.3
            )
            shown += values
    handles = []
    if 1 < len(names) <= len(COLOURS):
        handles += [
            Line2D([], [], color=colour, label=name.rpartition("/")[2])
            for name, colour in zip(names, COLOURS, strict=False)
        ]
    if explain and any(series(history, f"{_VALID}/{name}")[0] for name in names):
        handles += [
            Line2D([], [], color=INK, linestyle=_SPLITS[_TRAIN], label="training"),
            Line2D([], [], color=INK, linestyle=_SPLITS[_VALID], label="validation"),
        ]
    if handles:
        axes.legend(handles=handles, fontsize=8, labelcolor=INK, edgecolor="none", framealpha=0.7)
    title = names[0] if len(names) == 1 else _without_digits(names[0])
    if len(title) > _PANEL_TITLE:
        title = "/\n".join(title.rsplit("/", 1))
    axes.set_title(title, fontsize=10, color=INK, loc="left", parse_math=False)
    if min(shown) > 0 and max(shown) / min(shown) >= _LOG_RATIO:
        axes.set_yscale("log")
    _by_epoch(axes)


def _by_epoch(axes: Axes) -> None:
    axes.set_xlabel("epoch", fontsize=10, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    tidy(axes)


def tidy(axes: Axes) -> None:
    """Gives axes the style of all pictures: a light grid, no box."""
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#bbbbbb")


def _cycle(items: Sequence[Any], count: int) -> list[Any]:
    return [items[index % len(items)] for index in range(count)]
