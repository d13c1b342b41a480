"""Pictures of a sweep, in the style of a training's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import blended_transform_factory

from raymimic.rollout.stats import bootstrap_interval
from raymimic.sweep.result import TrialResult
from raymimic.sweep.stats import Importance, expected_online_performance, is_number
from raymimic.sweep.table import SettingRow, describe, number, text
from raymimic.tracking.figures import COLOURS, INK, new_figure, save_figure, tidy

GREY = "#bdbdbd"
# Settings that have a colour of their own; more would not be told apart.
_NAMED = 5
# Values that differ by more are drawn on a logarithmic scale.
_LOG_RATIO = 10.0
_MOST_CELLS = 12


def learning_curves(
    rows: Sequence[SettingRow],
    results: Sequence[TrialResult],
    names: Mapping[str, str],
    metric: str,
    out_png: Path,
    title: str = "",
) -> None:
    """Draws scores by gradient step: the best settings with their bands, the others in grey.

    A point is the mean over the setting's trials, its band the 95% bootstrap interval over them;
    steps that some of them did not reach are left out.

    Args:
        rows: the best first.
        results: their trials.
        names: of the hyperparameters.
        metric: of the scores.
        out_png: the picture.
        title: put over it.

    Raises:
        OSError: the picture cannot be written.
    """
    figure = new_figure(10, 6, title)
    axes = figure.add_subplot()
    scored = [row for row in rows if row.score]
    for index, row in reversed(list(enumerate(scored))):
        trials = [r for r in results if r.setting_id == row.setting_id and r.best is not None]
        curves = [dict(trial.curve) for trial in trials]
        shared = set.intersection(*(set(curve) for curve in curves))
        steps = sorted(s for s in shared if all(math.isfinite(curve[s]) for curve in curves))
        at = [[curve[step] for curve in curves] for step in steps]
        means = [sum(values) / len(values) for values in at]
        marker = "o" if len(steps) <= 30 else ""
        if index >= _NAMED:
            label = "other settings" if index == _NAMED else None
            axes.plot(steps, means, color=GREY, linewidth=1, label=label, zorder=1)
            continue
        colour = COLOURS[index]
        label = describe(row.setting, names) or row.setting_id
        axes.plot(
            *(steps, means),
            color=colour,
            marker=marker,
            markersize=4,
            label=label,
            zorder=9 - index,
        )
        if len(curves) > 1:
            ends = [bootstrap_interval(values, resamples=2000) for values in at]
            axes.fill_between(
                steps,
                [low for low, _ in ends],
                [high for _, high in ends],
                color=colour,
                alpha=0.12,
                linewidth=0,
                zorder=2,
            )
    handles, texts = axes.get_legend_handles_labels()
    bands = any(len(row.seeds) > 1 for row in scored)
    legend = axes.legend(
        handles[::-1],
        texts[::-1],
        title="best settings first; bands: 95% interval over seeds" if bands else None,
        title_fontsize=9,
        alignment="left",
        loc="upper left",
        bbox_to_anchor=(0.0, -0.11),
        ncols=2,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    legend.get_title().set_color(INK)
    axes.set_xlabel("gradient steps", fontsize=10, color=INK)
    axes.set_ylabel(_of(metric), fontsize=11, color=INK)
    tidy(axes)
    save_figure(figure, out_png)


def heat_map(
    rows: Sequence[SettingRow],
    across: str,
    up: str,
    names: Mapping[str, str],
    metric: str,
    mode: str,
    out_png: Path,
    title: str = "",
) -> None:
    """Draws scores over two numeric hyperparameters.

    Settings on a grid are cells, each the mean over its settings where other hyperparameters
    vary too; settings drawn from ranges are points, since nothing is known between them.

    Args:
        rows: those with a score and both hyperparameters are drawn.
        across: config path of the horizontal one.
        up: of the vertical one.
        names: of the hyperparameters.
        metric: of the scores.
        mode: "max" or "min"; what is good is bright.
        out_png: the picture.
        title: put over it.

    Raises:
        OSError: the picture cannot be written.
    """
    points = [
        (float(row.setting[across]), float(row.setting[up]), row.score.mean)
        for row in rows
        if row.score and is_number(row.setting.get(across)) and is_number(row.setting.get(up))
    ]
    xs = sorted({x for x, _, _ in points})
    ys = sorted({y for _, y, _ in points})
    figure = new_figure(8, 6.5, title)
    axes = figure.add_subplot()
    colours = _Scale([score for _, _, score in points], mode)
    filled = len({(x, y) for x, y, _ in points}) / (len(xs) * len(ys))
    if filled > 0.5 and max(len(xs), len(ys)) <= _MOST_CELLS:
        _draw_cells(axes, points, xs, ys, colours, mode)
    else:
        _draw_points(axes, points, colours, mode)
    axes.set_xlabel(names.get(across, across), fontsize=11, color=INK)
    axes.set_ylabel(names.get(up, up), fontsize=11, color=INK, labelpad=8)
    _colour_bar(figure, axes, colours, metric)
    save_figure(figure, out_png)


def parallel_coordinates(
    rows: Sequence[SettingRow],
    paths: Sequence[str],
    names: Mapping[str, str],
    metric: str,
    mode: str,
    out_png: Path,
    title: str = "",
) -> None:
    """Draws each setting as a line through its values, with its score at the right end.

    Args:
        rows: those with a score are drawn.
        paths: hyperparameters, one axis each.
        names: theirs.
        metric: of the scores.
        mode: "max" or "min"; what is good is bright, and at the top of the last axis.
        out_png: the picture.
        title: put over it.

    Raises:
        OSError: the picture cannot be written.
    """
    scored = [row for row in rows if row.score]
    scores = [row.score.mean for row in scored if row.score]
    figure = new_figure(max(7.0, 2.0 * (len(paths) + 2)), 6, title)
    axes = figure.add_subplot()
    columns = [_Axis([row.setting.get(path) for row in scored]) for path in paths]
    columns.append(_Axis(scores, linear=True, flipped=mode == "min"))
    colours = _Scale(scores, mode)
    # The best is drawn last, over the others.
    for index in range(len(scored) - 1, -1, -1):
        heights = [column.heights[index] for column in columns]
        best = index == 0
        axes.plot(
            *_smooth(heights),
            color=colours.rgba(scores[index]),
            linewidth=3.0 if best else 1.4,
            alpha=1.0 if best else 0.75,
            zorder=3 + best,
            solid_capstyle="round",
            path_effects=[withStroke(linewidth=5.0, foreground=INK)] if best else None,
        )
    for place, column in enumerate(columns):
        axes.axvline(place, color="#888888", linewidth=1, zorder=2)
        last = place == len(columns) - 1
        for height, label in column.ticks:
            axes.annotate(
                label,
                (place, height),
                xytext=(6 if last else -6, 0),
                textcoords="offset points",
                ha="left" if last else "right",
                va="center",
                fontsize=9,
                color=INK,
                zorder=6,
                bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.75},
            )
    heads = [*(names.get(path, path) for path in paths), _of(metric)]
    axes.set_xticks(range(len(columns)), heads, fontsize=10, color=INK)
    axes.set_yticks([])
    axes.set_ylim(-0.06, 1.06)
    axes.set_xlim(-0.35, len(columns) - 1 + 0.35)
    axes.tick_params(length=0, pad=8)
    for side in axes.spines.values():
        side.set_visible(False)
    _colour_bar(figure, axes, colours, metric)
    save_figure(figure, out_png)


def importance_bars(
    found: Sequence[Importance],
    names: Mapping[str, str],
    settings: int,
    out_png: Path,
    title: str = "",
) -> None:
    """Draws how much each hyperparameter alone says of the score.

    Args:
        found: the greatest first.
        names: of the hyperparameters.
        settings: that were compared.
        out_png: the picture.
        title: put over it.

    Raises:
        OSError: the picture cannot be written.
    """
    figure = new_figure(9, 1.9 + 0.55 * len(found), title)
    axes = figure.add_subplot()
    beside = blended_transform_factory(axes.transAxes, axes.transData)
    for place, one in enumerate(found):
        sure = one.p_value is not None and one.p_value < 0.05
        if one.share is not None:
            axes.barh(place, one.share, height=0.6, color=COLOURS[0] if sure else GREY)
        notes = ["too few settings to tell" if one.p_value is None else f"p = {one.p_value:.2g}"]
        if one.trend is not None:
            notes.append(f"correlation {one.trend:+.2f}")
        axes.text(
            1.02, place, ", ".join(notes), transform=beside, va="center", fontsize=9, color=INK
        )
    axes.set_yticks(range(len(found)), [names.get(one.path, one.path) for one in found])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel(
        f"share of the variance of the ranks of {settings} settings (epsilon squared); "
        "grey: chance would do (p ≥ 0.05)",
        fontsize=9,
        color=INK,
    )
    tidy(axes)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", labelsize=10)
    save_figure(figure, out_png)


def budget_curve(
    best: Sequence[float],
    last: Sequence[float],
    metric: str,
    mode: str,
    out_png: Path,
    title: str = "",
) -> None:
    """Draws the expected online performance by the number of settings tried.

    Args:
        best: score of each setting's best checkpoint.
        last: score of each setting's last checkpoint, where there is one.
        metric: of the scores.
        mode: "max" or "min".
        out_png: the picture.
        title: put over it.

    Raises:
        OSError: the picture cannot be written.
    """
    figure = new_figure(9, 5.5, title)
    axes = figure.add_subplot()
    lines = (("best checkpoint of each setting", best), ("last checkpoint of each setting", last))
    # Where no checkpoint beats the last, both lines are one; dashes let the other be seen.
    styles = zip(COLOURS, ("-", "--"), strict=False)
    for (label, scores), (colour, style) in zip(lines, styles, strict=True):
        if not scores:
            continue
        budget = expected_online_performance(scores, mode)
        expected, deviation = np.array(budget.expected), np.array(budget.deviation)
        tried = np.arange(1, len(scores) + 1)
        marker = "o" if len(scores) <= 30 else ""
        axes.plot(tried, expected, style, color=colour, marker=marker, markersize=4, label=label)
        # No draw is better than the best.
        ends = np.clip([expected - deviation, expected + deviation], min(scores), max(scores))
        axes.fill_between(tried, ends[0], ends[1], color=colour, alpha=0.13, linewidth=0)
    legend = axes.legend(
        title="bands: standard deviation over draws",
        title_fontsize=9,
        alignment="left",
        loc="lower right" if mode == "max" else "upper right",
        frameon=False,
        fontsize=10,
        labelcolor=INK,
    )
    legend.get_title().set_color(INK)
    axes.set_xlabel("settings tried online, drawn at random", fontsize=10, color=INK)
    axes.set_ylabel(f"expected best {_of(metric)}", fontsize=11, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(left=0.5)
    tidy(axes)
    save_figure(figure, out_png)


class _Axis:
    """One axis of parallel coordinates.

    Args:
        column: a value for each line; ``None`` where a setting lacks it.
        linear: keeps numbers from a logarithmic scale.
        flipped: turns it upside down.

    Attributes:
        heights: of each line, between 0 and 1.
        ticks: heights and what is written there.
    """

    def __init__(self, column: Sequence[Any], linear: bool = False, flipped: bool = False) -> None:
        if all(is_number(value) for value in column):
            values = [float(value) for value in column]
            scale = math.log10 if not linear and _logarithmic(values) else float
            low, high = scale(min(values)), scale(max(values))
            span = high - low
            self.heights = [(scale(v) - low) / span if span else 0.5 for v in values]
            distinct = sorted(set(values))
            if len(distinct) > 6:
                marks = np.linspace(low, high, 5).tolist()
                distinct = [10.0**mark if scale is math.log10 else mark for mark in marks]
            at = [(scale(v) - low) / span if span else 0.5 for v in distinct]
            write = number if linear else text
            # Numbers that a setting really has keep their digits; marks in between need fewer.
            few = [
                float(f"{v:.2g}") if len(set(values)) > 6 and not linear else v for v in distinct
            ]
            self.ticks = [(height, write(value)) for height, value in zip(at, few, strict=True)]
        else:
            words = [text(value) or "absent" for value in column]
            order = sorted(set(words))
            step = {word: (i + 0.5) / len(order) for i, word in enumerate(order)}
            self.heights = [step[word] for word in words]
            self.ticks = [(height, word) for word, height in step.items()]
        if flipped:
            self.heights = [1.0 - height for height in self.heights]
            self.ticks = [(1.0 - height, label) for height, label in self.ticks]


def _smooth(heights: Sequence[float]) -> tuple[list[float], list[float]]:
    """A line that crosses each axis at a right angle, so that it can be followed through it."""
    xs: list[float] = []
    ys: list[float] = []
    part = np.linspace(0.0, 1.0, 25)
    ease = part**2 * (3.0 - 2.0 * part)
    for place in range(len(heights) - 1):
        xs += (place + part).tolist()
        ys += (heights[place] + (heights[place + 1] - heights[place]) * ease).tolist()
    return xs, ys


def _draw_cells(
    axes: Axes,
    points: Sequence[tuple[float, float, float]],
    xs: Sequence[float],
    ys: Sequence[float],
    colours: _Scale,
    mode: str,
) -> None:
    sums, counts = np.zeros((len(ys), len(xs))), np.zeros((len(ys), len(xs)))
    for x, y, score in points:
        sums[ys.index(y), xs.index(x)] += score
        counts[ys.index(y), xs.index(x)] += 1
    cells = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    axes.set_facecolor("#f2f2f2")  # where nothing was tried
    axes.imshow(cells, origin="lower", aspect="auto", cmap=colours.colormap, norm=colours.normalize)
    best = np.unravel_index(
        np.nanargmax(cells) if mode == "max" else np.nanargmin(cells), cells.shape
    )
    for (row, column), value in np.ndenumerate(cells):
        if math.isnan(value):
            continue
        light = float(np.dot(colours.rgba(value)[:3], (0.299, 0.587, 0.114))) > 0.5
        axes.text(
            *(column, row, number(value)),
            ha="center",
            va="center",
            fontsize=11,
            color="black" if light else "white",
            weight="bold" if (row, column) == best else "normal",
        )
    axes.set_xticks(range(len(xs)), [text(x) for x in xs])
    axes.set_yticks(range(len(ys)), [text(y) for y in ys])
    axes.tick_params(colors=INK, labelsize=10, length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _draw_points(
    axes: Axes,
    points: Sequence[tuple[float, float, float]],
    colours: _Scale,
    mode: str,
) -> None:
    # Good points over bad ones.
    ordered = sorted(points, key=lambda point: point[2], reverse=mode == "min")
    axes.scatter(
        [x for x, _, _ in ordered],
        [y for _, y, _ in ordered],
        c=[colours.rgba(score) for _, _, score in ordered],
        s=170,
        edgecolors="white",
        linewidths=1,
        zorder=3,
    )
    x, y, _ = ordered[-1]
    axes.scatter([x], [y], s=300, facecolors="none", edgecolors=COLOURS[1], linewidths=2, zorder=4)
    axes.annotate("best", (x, y), xytext=(12, 9), textcoords="offset points", color=INK, zorder=5)
    tidy(axes)
    if _logarithmic([x for x, _, _ in points]):
        axes.set_xscale("log")
        _log_ticks(axes.xaxis)
    if _logarithmic([y for _, y, _ in points]):
        axes.set_yscale("log")
        _log_ticks(axes.yaxis)


def _log_ticks(axis: Any) -> None:
    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


class _Scale:
    """Colours for scores; what is good is bright."""

    def __init__(self, scores: Sequence[float], mode: str) -> None:
        low, high = min(scores), max(scores)
        self.normalize = Normalize(low, high if high > low else low + 1.0)
        self.colormap = colormaps["viridis" if mode == "max" else "viridis_r"]

    def rgba(self, score: float) -> tuple[float, float, float, float]:
        red, green, blue, alpha = self.colormap(float(self.normalize(score)))
        return red, green, blue, alpha


def _colour_bar(figure: Figure, axes: Axes, colours: _Scale, metric: str) -> None:
    mappable = ScalarMappable(colours.normalize, colours.colormap)
    bar = figure.colorbar(mappable, ax=axes, pad=0.02)
    bar.set_label(f"{_of(metric)}, mean over seeds", fontsize=10, color=INK)
    bar.ax.tick_params(colors=INK, labelsize=9, length=0)
    bar.outline.set_visible(False)


def _logarithmic(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= _LOG_RATIO


def _of(metric: str) -> str:
    """A metric for people: ``Rollout/Return/Walker2d-v5`` is ``Return, Walker2d-v5``."""
    return metric.removeprefix("Rollout/").replace("/", ", ").replace("_", " ")
