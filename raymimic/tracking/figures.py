"""Pictures of a training.

Drawn with matplotlib's objects on an Agg canvas, so that nothing global (a display, the
current figure, a user's style) takes part.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
REFERENCE_STYLES = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
INK = "#444444"
MAX_LOSS_PANELS = 4
RETURN_PREFIX = "Rollout/Return/"


def learning_curve(
    history: Sequence[Mapping[str, Any]],
    out_png: Path,
    references: Mapping[str, float] | None = None,
    title: str = "",
) -> None:
    """Draws returns with their 95% bands by epoch, and below them up to four losses.

    Args:
        history: one mapping an epoch: ``epoch``, and any of ``Rollout/Return/<env>``,
            ``Rollout/Return_CI_Low/<env>``, ``Rollout/Return_CI_High/<env>``,
            ``Train/<...Loss...>``, ``Valid/<...Loss...>``. What is absent or not finite
            in an epoch leaves no mark there. Entries of one epoch add up.
        out_png: the picture [1500 pixels wide]; replaced in one step.
        references: name to return, drawn as horizontal lines (the mean of the data, ...).
        title: put over the picture.

    Raises:
        OSError: the picture cannot be written.
    """
    losses = _loss_names(history)
    loss_rows = math.ceil(len(losses) / 2)
    figure = new_figure(10, 5 + 2.6 * loss_rows, title)
    grid = figure.add_gridspec(1 + loss_rows, 2, height_ratios=[5] + [2.6] * loss_rows)
    _draw_returns(figure.add_subplot(grid[0, :]), history, references or {})
    for index, name in enumerate(losses):
        alone = index == len(losses) - 1 and index % 2 == 0
        columns = slice(None) if alone else index % 2
        _draw_loss(figure.add_subplot(grid[1 + index // 2, columns]), history, name)
    last = max((int(entry["epoch"]) for entry in history), default=0)
    for axes in figure.axes:
        axes.set_xlim(0, last + 0.5)
    save_figure(figure, out_png)


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """An empty picture of 150 pixels an inch.

    Args:
        width: in inches.
        height: in inches.
        title: put over the picture.
    """
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=14, color=INK)
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


def series(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """A metric's finite values by epoch.

    Args:
        history: see :func:`learning_curve`.
        key: the metric.

    Returns:
        epochs in rising order and the values; of two values for an epoch the later counts.
    """
    values = {
        int(entry["epoch"]): float(entry[key])
        for entry in history
        if key in entry and math.isfinite(entry[key])
    }
    epochs = sorted(values)
    return epochs, [values[epoch] for epoch in epochs]


def _keys(history: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for entry in history for key in entry))


def _loss_names(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Losses without their ``Train/`` or ``Valid/``, in the order of their appearance."""
    matches = [re.fullmatch(r"(?:Train|Valid)/(.*Loss.*)", key) for key in _keys(history)]
    names = dict.fromkeys(match[1] for match in matches if match)
    return list(names)[:MAX_LOSS_PANELS]


def _draw_returns(
    axes: Axes, history: Sequence[Mapping[str, Any]], references: Mapping[str, float]
) -> None:
    names = [key for key in _keys(history) if key.startswith(RETURN_PREFIX)]
    for name, colour in zip(names, _cycle(COLOURS, len(names)), strict=True):
        env = name.removeprefix(RETURN_PREFIX)
        epochs, means = series(history, name)
        marker = "o" if len(epochs) <= 30 else ""
        axes.plot(epochs, means, color=colour, marker=marker, markersize=4, label=env, zorder=3)
        low = dict(zip(*series(history, f"Rollout/Return_CI_Low/{env}"), strict=True))
        high = dict(zip(*series(history, f"Rollout/Return_CI_High/{env}"), strict=True))
        banded = [epoch for epoch in epochs if epoch in low and epoch in high]
        if banded:
            axes.fill_between(
                banded,
                [low[epoch] for epoch in banded],
                [high[epoch] for epoch in banded],
                color=colour,
                alpha=0.2,
                linewidth=0,
                label="95% interval" if len(names) == 1 else f"{env}, 95% interval",
            )
    for (label, value), style in zip(
        references.items(), _cycle(REFERENCE_STYLES, len(references)), strict=True
    ):
        axes.axhline(
            value, color=INK, linestyle=style, linewidth=1.2, label=f"{label}: {value:.0f}"
        )
    if names or references:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=4,
            frameon=False,
            fontsize=10,
            labelcolor=INK,
            borderaxespad=0.3,
        )
    if not names:
        axes.text(0.5, 0.5, "no evaluation yet", transform=axes.transAxes, ha="center", color=INK)
        axes.set_yticks([])
    axes.set_ylabel("return of an episode", fontsize=11, color=INK)
    _by_epoch(axes)


def _draw_loss(axes: Axes, history: Sequence[Mapping[str, Any]], name: str) -> None:
    drawn = 0
    for split, colour in zip(("Train", "Valid"), COLOURS, strict=False):
        epochs, values = series(history, f"{split}/{name}")
        if epochs:
            marker = "o" if len(epochs) == 1 else ""
            axes.plot(epochs, values, color=colour, marker=marker, linewidth=1.2, label=split)
            drawn += 1
    if drawn == 2:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    axes.set_title(name, fontsize=10, color=INK, loc="left")
    _by_epoch(axes)


def _by_epoch(axes: Axes) -> None:
    axes.set_xlabel("epoch", fontsize=10, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    tidy(axes)


def tidy(axes: Axes) -> None:
    """Gives axes the look that all pictures share: a light grid, no box."""
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#bbbbbb")


def _cycle(items: Sequence[Any], count: int) -> list[Any]:
    return [items[index % len(items)] for index in range(count)]
