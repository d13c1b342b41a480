"""Pictures of a sweep, in the style of a training's.

Each function takes a sweep's outcome; it returns None where the outcome is too little to draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import blended_transform_factory

from raymimic.config.base_config import config_factory
from raymimic.data.training_data import data_label
from raymimic.rollout.stats import bootstrap_interval
from raymimic.sweep.outcome.result import TrialResult
from raymimic.sweep.outcome.stats import expected_online_performance, is_number
from raymimic.sweep.outcome.table import (
    SweepOutcome,
    describe,
    format_setting_value,
    format_value,
    short_name,
)
from raymimic.sweep.spec.sweep_spec import SweepSpec
from raymimic.terminal import readable
from raymimic.tracking.figures import COLOURS, INK, REFERENCE_STYLES, new_figure, save_figure, tidy

GREY = "#bdbdbd"
# Settings with a colour of their own; nobody could tell more apart.
_NAMED = 5
# Ratio of values from which a scale is logarithmic.
_LOG_RATIO = 10.0
_MOST_CELLS = 12
# Letters of a legend that fit into half of a picture's width.
_LETTERS = 64
# Letters of an axis' label in one line.
_HEAD = 22
# Most axes of parallel coordinates, and most words on one of them, that remain readable.
_MOST_AXES = 8
_MOST_WORDS = 24
# Least distance of two numbers on such an axis of height 1.
_LEAST_GAP = 0.04


def draw_pictures(outcome: SweepOutcome, folder: Path) -> list[Path]:
    """Draws the pictures for which the outcome is enough.

    Args:
        outcome: the outcome; at least one setting has a score.
        folder: folder of the pictures.

    Returns:
        the pictures' paths.

    Raises:
        OSError: a picture cannot be written.
    """
    drawn = []
    for name, make in PICTURES.items():
        figure = make(outcome)
        if figure is not None:
            drawn.append(folder / f"{name}.png")
            save_figure(figure, drawn[-1])
    return drawn


def learning_curves(outcome: SweepOutcome) -> Figure:
    """Scores by gradient step: the best settings with their bands, the others in grey.

    A point is the mean over the setting's trials, its band the 95% bootstrap interval over them.
    Steps that a trial did not reach are left out.
    """
    spec, scored = outcome.spec, outcome.scored
    figure = new_figure(10, 6, _title(spec))
    axes = figure.add_subplot()
    for index, row in reversed(list(enumerate(scored))):
        trials = [r for r in outcome.results if r.setting_id == row.setting_id]
        curves = [dict(trial.curve) for trial in trials if trial.best is not None]
        shared = set.intersection(*(set(curve) for curve in curves))
        steps = sorted(s for s in shared if all(math.isfinite(curve[s]) for curve in curves))
        at = [[curve[step] for curve in curves] for step in steps]
        means = [sum(values) / len(values) for values in at]
        if index >= _NAMED:
            label = "other settings" if index == _NAMED else None
            axes.plot(steps, means, color=GREY, linewidth=1, label=label, zorder=1)
            continue
        axes.plot(
            *(steps, means),
            color=COLOURS[index],
            marker="o" if len(steps) <= 30 else "",
            markersize=4,
            label=fill(describe(spec, row.setting) or row.setting_id, 2 * _LETTERS),
            zorder=9 - index,
        )
        if len(curves) > 1:
            ends = [bootstrap_interval(values, resamples=2000) for values in at]
            _band(axes, steps, [low for low, _ in ends], [high for _, high in ends], COLOURS[index])
    bands = any(len(row.seeds) > 1 for row in scored)
    title = "best settings first; bands: 95% interval over seeds" if bands else None
    handles = axes.get_legend_handles_labels()[0][::-1] + _draw_references(axes, outcome.references)
    labels = [str(handle.get_label()) for handle in handles]
    columns = 2 if max(map(len, labels)) <= _LETTERS else 1
    lines = sum(label.count("\n") + 1 for label in labels) / columns
    figure.set_size_inches(10, 5.4 + 0.2 * max(lines, 3))
    _legend(axes, title, handles=handles, labels=labels, **_below(-0.11, columns))
    style_axes(axes, "gradient steps", metric_label(spec.metric))
    return figure


def heat_map(outcome: SweepOutcome) -> Figure | None:
    """Scores over the two numeric hyperparameters that matter most.

    Settings on a grid are cells; those drawn from ranges are points, since the scores between them
    are unknown. Where other hyperparameters vary too, a cell is the mean over its settings.
    """
    spec, scored = outcome.spec, outcome.scored
    paths = [importance.path for importance in outcome.importances]
    numeric = [p for p in paths if all(is_number(row.setting.get(p, 0)) for row in scored)]
    for pair in combinations(numeric, 2):
        across, up = sorted(pair, key=list(spec.space).index)
        places: dict[tuple[float, float], list[float]] = {}
        for row, score in zip(scored, outcome.means, strict=True):
            if across in row.setting and up in row.setting:
                place = float(row.setting[across]), float(row.setting[up])
                places.setdefault(place, []).append(score)
        xs, ys = sorted({x for x, _ in places}), sorted({y for _, y in places})
        alone = all(len(scores) == 1 for scores in places.values())
        # Two hyperparameters that always change together count as one.
        if len(places) > 1 and (alone or not len(places) == len(xs) == len(ys)):
            break
    else:
        return None
    points = [(x, y, sum(scores) / len(scores)) for (x, y), scores in places.items()]
    figure = new_figure(8, 6.5, _title(spec))
    axes = figure.add_subplot()
    colours = _Scale([score for _, _, score in points], spec.mode)
    style_axes(axes, axis_label(spec, across), axis_label(spec, up))
    if len(places) > 0.5 * len(xs) * len(ys) and max(len(xs), len(ys)) <= _MOST_CELLS:
        _draw_cells(axes, points, xs, ys, colours)
    else:
        _draw_points(axes, points, colours)
    bar = figure.colorbar(ScalarMappable(colours.normalize, colours.colormap), ax=axes, pad=0.02)
    over = "mean over seeds" if alone else "mean over seeds and other hyperparameters"
    bar.set_label(f"{metric_label(spec.metric)}, {over}", fontsize=10, color=INK)
    bar.ax.tick_params(colors=INK, labelsize=9, length=0)
    bar.outline.set_visible(False)
    return figure


def parallel_coordinates(outcome: SweepOutcome) -> Figure | None:
    """Each setting as a line through its values to its score; good settings are bright."""
    spec, scores = outcome.spec, outcome.means
    kept = {importance.path for importance in outcome.importances[:_MOST_AXES]}
    paths = [path for path in spec.space if path in kept]
    if not paths:
        return None
    figure = new_figure(max(7.0, 2.0 * (len(paths) + 1)), 6, _title(spec))
    axes = figure.add_subplot()
    columns = [_axis([_value(spec, path, row.setting) for row in outcome.scored]) for path in paths]
    columns.append(_axis(scores, score=spec.mode))
    colours = _Scale(scores, spec.mode)
    # The best is drawn last, over the others.
    for index, score in reversed(list(enumerate(scores))):
        best = index == 0
        axes.plot(
            *_smooth([heights[index] for heights, _ in columns]),
            color=colours.rgba(score),
            linewidth=3.0 if best else 1.4,
            alpha=1.0 if best else 0.75,
            zorder=3 + best,
            solid_capstyle="round",
            path_effects=[withStroke(linewidth=5.0, foreground=INK)] if best else None,
        )
    for place, (_, ticks) in enumerate(columns):
        axes.axvline(place, color="#888888", linewidth=1, zorder=2)
        last = place == len(paths)
        for height, label in ticks:
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
    heads = [
        *(axis_label(spec, path) for path in paths),
        f"{metric_label(spec.metric)},\nmean over seeds",
    ]
    axes.set_xticks(range(len(columns)), heads, fontsize=10, color=INK)
    axes.set_yticks([])
    axes.set_ylim(-0.06, 1.06)
    axes.set_xlim(-0.35, len(paths) + 0.35)
    axes.tick_params(length=0, pad=8)
    _no_box(axes)
    return figure


def importance(outcome: SweepOutcome) -> Figure | None:
    """How much of the score each hyperparameter alone explains."""
    effects = outcome.importances
    if all(effect.share is None for effect in effects):
        return None
    figure = new_figure(9, 1.9 + 0.55 * len(effects), _title(outcome.spec))
    axes = figure.add_subplot()
    beside = blended_transform_factory(axes.transAxes, axes.transData)
    for place, effect in enumerate(effects):
        notes = "too few settings to tell"
        if effect.share is not None and effect.p_value is not None:
            notes = f"p = {effect.p_value:.2g}"
            colour = COLOURS[0] if effect.p_value < 0.05 else GREY
            axes.barh(place, effect.share, height=0.6, color=colour)
        if effect.trend is not None:
            notes += f", correlation {effect.trend:+.2f}"
        axes.text(1.02, place, notes, transform=beside, va="center", fontsize=9, color=INK)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(effects) - 0.5, -0.5)
    style_axes(
        axes,
        f"share of the variance of the ranks of {len(outcome.scored)} settings (epsilon squared);\n"
        "grey: chance would do (p ≥ 0.05)",
    )
    axes.set_yticks(range(len(effects)), [axis_label(outcome.spec, e.path) for e in effects])
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", labelsize=10)
    return figure


def online_budget(outcome: SweepOutcome) -> Figure | None:
    """The expected online performance by the number of settings tried."""
    spec = outcome.spec
    if len(outcome.means) < 2:
        return None
    figure = new_figure(9, 5.5, _title(spec))
    axes = figure.add_subplot()
    # Where no checkpoint beats the last, the lines coincide; dashes show both.
    lines = (("best", outcome.means, COLOURS[0], "-"), ("last", outcome.lasts, COLOURS[1], "--"))
    for which, scores, colour, style in lines:
        if not scores:
            continue
        budget = expected_online_performance(scores, spec.mode)
        expected, deviation = np.array(budget.expected), np.array(budget.deviation)
        tried = range(1, len(scores) + 1)
        marker = "o" if len(scores) <= 30 else ""
        label = f"{which} checkpoint of each setting"
        axes.plot(tried, expected, style, color=colour, marker=marker, markersize=4, label=label)
        # No draw is better than the best.
        ends = np.clip([expected - deviation, expected + deviation], min(scores), max(scores))
        _band(axes, tried, ends[0], ends[1], colour)
    corner = "lower right" if spec.mode == "max" else "upper right"
    _legend(axes, "bands: standard deviation over draws", loc=corner)
    style_axes(
        axes, "settings tried online, drawn at random", f"expected best {metric_label(spec.metric)}"
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(left=0.5)
    return figure


def schedules(outcome: SweepOutcome) -> Figure | None:
    """Under PBT, hyperparameters by gradient step, with the history of the winner's weights.

    A cross marks a trial that goes on with another's weights. So the history of the winner's
    weights leads back through other trials.
    """
    spec = outcome.spec
    trials = {result.trial_id: result for result in outcome.results if result.schedule}
    if not trials:
        return None
    history, end = _history(outcome.rows[0].setting_id, trials)
    figure = new_figure(10, 1.6 + 2.0 * len(spec.space), _title(spec))
    panels = figure.subplots(len(spec.space), sharex=True, squeeze=False)[:, 0]
    for axes, path in zip(panels, spec.space, strict=True):
        for trial in trials.values():
            last = max([step for step, _ in trial.curve] + [trial.schedule[-1]["step"]])
            _draw_schedule(axes, path, trial.schedule, last, color=GREY)
        _draw_schedule(axes, path, history, end, color=COLOURS[0], linewidth=2.5)
        adopted = [p for t in trials.values() for p in t.schedule if p["from"] is not None]
        values = [phase["setting"][path] for phase in adopted]
        axes.plot([phase["step"] for phase in adopted], values, "x", color=INK, markersize=5)
        axes.plot([end], [history[-1]["setting"][path]], "o", color=COLOURS[0])
        style_axes(axes, "", axis_label(spec, path))
        if _logarithmic([p["setting"][path] for t in trials.values() for p in t.schedule]):
            _log_scale(axes, "y")
    panels[-1].set_xlabel("gradient steps", fontsize=10, color=INK)
    labels = ("trials", "the weights that won", "a trial goes on with another's weights")
    *_, trial_line, history_line, crosses, _ = panels[-1].lines
    handles = [trial_line, history_line, crosses]
    _legend(panels[-1], handles=handles, labels=labels, **_below(-0.25, 3))
    return figure


PICTURES: dict[str, Callable[[SweepOutcome], Figure | None]] = {
    "learning_curves": learning_curves,
    "heat_map": heat_map,
    "parallel_coordinates": parallel_coordinates,
    "importance": importance,
    "online_budget": online_budget,
    "schedules": schedules,
}


# -- their parts --


def _title(spec: SweepSpec) -> str:
    """Sweep, algorithm and data in a line."""
    parts = [spec.name, spec.algo]
    if "train.data" not in spec.space:
        parts.append(data_label(config_factory(spec.algo, spec.base_config)))
    return " · ".join(parts)


def _axis(
    column: Sequence[float | str], score: str | None = None
) -> tuple[list[float], list[tuple[float, str]]]:
    """One axis of parallel coordinates: words evenly, and numbers above them on a scale.

    Args:
        column: a value for each line.
        score: the mode, where values are scores: their scale is linear, and "min" turns it upside
            down.

    Returns:
        the height of each line, between 0 and 1; heights and labels of the ticks.
    """
    words = sorted({value for value in column if isinstance(value, str)})
    values = sorted({value for value in column if not isinstance(value, str)})
    room = min(0.5, 0.12 * len(words)) if values else 1.0
    heights: dict[float | str, float] = {
        word: room * (place + 0.5) / len(words) for place, word in enumerate(words)
    }
    ticks = [(heights[word], word) for word in words[:: len(words) // _MOST_WORDS + 1]]
    if values:
        logarithmic = score is None and _logarithmic(values)
        scaled = np.log10(values) if logarithmic else np.array(values, np.float64)
        span = scaled[-1] - scaled[0] or 1.0
        above = room + (1.0 - room) * (scaled - scaled[0]) / span
        heights |= zip(values, above.tolist(), strict=True)
        write: Callable[[float], str] = format_value if score is None else readable
        crowded = len(values) > 6 or np.diff(above).min(initial=1.0) < _LEAST_GAP
        if crowded:  # then ticks stand between the values, with fewer digits
            above = np.linspace(room, 1.0, 5)
            marks = np.linspace(scaled[0], scaled[-1], 5)
            values = (10.0**marks if logarithmic else marks).tolist()
            write = "{:.2g}".format if score is None else readable
        ticks += [(height, write(value)) for height, value in zip(above, values, strict=True)]
    if score == "min":
        heights = {value: 1.0 - height for value, height in heights.items()}
        ticks = [(1.0 - height, label) for height, label in ticks]
    return [heights[value] for value in column], ticks


def _smooth(heights: Sequence[float]) -> tuple[list[float], list[float]]:
    """A line that crosses each axis at a right angle, so that the eye can follow it."""
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
) -> None:
    cells = np.full((len(ys), len(xs)), np.nan)
    for x, y, score in points:
        cells[ys.index(y), xs.index(x)] = score
    axes.set_facecolor("#f2f2f2")  # of cells without a setting
    axes.imshow(cells, origin="lower", aspect="auto", cmap=colours.colormap, norm=colours.normalize)
    for x, y, score in points:
        light = float(np.dot(colours.rgba(score)[:3], (0.299, 0.587, 0.114))) > 0.5
        axes.text(
            *(xs.index(x), ys.index(y), readable(score)),
            ha="center",
            va="center",
            fontsize=11,
            color="black" if light else "white",
            weight="bold" if (x, y) == points[0][:2] else "normal",
        )
    axes.set_xticks(range(len(xs)), [format_value(x) for x in xs])
    axes.set_yticks(range(len(ys)), [format_value(y) for y in ys])
    axes.tick_params(labelsize=10, length=0)
    axes.grid(visible=False)
    _no_box(axes)


def _draw_points(axes: Axes, points: Sequence[tuple[float, float, float]], colours: _Scale) -> None:
    xs, ys, scores = zip(*reversed(points), strict=True)  # good points over bad ones
    axes.scatter(
        *(xs, ys),
        c=[colours.rgba(score) for score in scores],
        s=170,
        edgecolors="white",
        linewidths=1,
        zorder=3,
    )
    best = points[0][:2]
    axes.scatter(*best, s=300, facecolors="none", edgecolors=COLOURS[1], linewidths=2, zorder=4)
    axes.annotate("best", best, xytext=(12, 9), textcoords="offset points", color=INK, zorder=5)
    for which, values in (("x", xs), ("y", ys)):
        if _logarithmic(values):
            _log_scale(axes, which)


def _log_scale(axes: Axes, which: str) -> None:
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _history(
    setting_id: str, trials: Mapping[str, TrialResult]
) -> tuple[list[dict[str, Any]], int]:
    """The phases of the winner's weights, also in other trials, and the step of the best score."""
    trial = next(t for t in trials.values() if t.setting_id == setting_id)
    until = end = next(step for step, score in trial.curve if score == trial.best)
    history: list[dict[str, Any]] = []
    while True:
        phases = [phase for phase in trial.schedule if phase["step"] < until]
        adopted = [place for place, phase in enumerate(phases) if phase["from"] in trials]
        history = phases[adopted[-1] if adopted else 0 :] + history
        if not adopted:
            return history, end
        until, trial = history[0]["step"], trials[history[0]["from"]]


def _draw_schedule(
    axes: Axes, path: str, schedule: Sequence[Mapping[str, Any]], end: int, **style: Any
) -> None:
    values = [phase["setting"][path] for phase in schedule]
    steps = [phase["step"] for phase in schedule]
    axes.plot([*steps, end], [*values, values[-1]], drawstyle="steps-post", **style)


class _Scale:
    """Colours for scores; good scores are bright."""

    def __init__(self, scores: Sequence[float], mode: str) -> None:
        low, high = min(scores), max(scores)
        self.normalize = Normalize(low, high if high > low else low + 1.0)
        self.colormap = colormaps["viridis" if mode == "max" else "viridis_r"]

    def rgba(self, score: float) -> tuple[float, float, float, float]:
        red, green, blue, alpha = self.colormap(float(self.normalize(score)))
        return red, green, blue, alpha


def _band(
    axes: Axes, xs: Sequence[int], low: npt.ArrayLike, high: npt.ArrayLike, colour: str
) -> None:
    axes.fill_between(xs, low, high, color=colour, alpha=0.12, linewidth=0, zorder=2)


def _draw_references(axes: Axes, references: Mapping[str, float]) -> list[Artist]:
    """Draws scores to compare with; one far from the curves, drawn before, is only named."""
    low, high = axes.get_ylim()
    span = high - low
    lines: list[Artist] = []
    ends = [low, high]
    for (name, value), style in zip(references.items(), REFERENCE_STYLES, strict=False):
        near = low - span < value < high + span
        label = f"{name}: {readable(value)}{'' if near else ', beyond the axis'}"
        lines.append(axes.axhline(value, color=INK, linestyle=style, linewidth=1.2, label=label))
        if near:
            ends += [value - 0.04 * span, value + 0.04 * span]
    axes.set_ylim(min(ends), max(ends))
    return lines


def _legend(axes: Axes, title: str | None = None, **where: Any) -> None:
    where |= {"title_fontsize": 9, "fontsize": 9, "alignment": "left", "labelcolor": INK}
    legend = axes.legend(title=title, frameon=False, **where)
    legend.get_title().set_color(INK)


def _below(height: float, columns: int) -> dict[str, Any]:
    """A legend's place below the axes."""
    return {"loc": "upper left", "bbox_to_anchor": (0.0, height), "ncols": columns}


def style_axes(axes: Axes, across: str, up: str = "") -> None:
    """Gives axes the style of all pictures, and labels.

    Args:
        axes: the axes.
        across: label of the horizontal axis.
        up: label of the vertical axis.
    """
    tidy(axes)
    axes.set_xlabel(across, fontsize=10, color=INK)
    axes.set_ylabel(up, fontsize=10, color=INK)


def _no_box(axes: Axes) -> None:
    for side in axes.spines.values():
        side.set_visible(False)


def _logarithmic(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= _LOG_RATIO


def axis_label(spec: SweepSpec, path: str) -> str:
    """A hyperparameter's short name, in lines that fit beside an axis."""
    return fill(short_name(spec, path), _HEAD)


def _value(spec: SweepSpec, path: str, setting: Mapping[str, Any]) -> float | str:
    """A setting's value at a path: a number, or a text for anything else."""
    if path not in setting:
        return "absent"
    if is_number(setting[path]):
        return float(setting[path])
    return (
        format_setting_value(spec, path, setting)
        if spec.labels[path]
        else format_value(setting[path])
    )


def metric_label(metric: str) -> str:
    """A metric for people: `Rollout/Return/Walker2d-v5` is `Return, Walker2d-v5`."""
    if metric == "Valid/Loss":
        return "validation loss"
    return metric.removeprefix("Rollout/").replace("/", ", ").replace("_", " ")
