"""Pictures of a sweep, in the style of a training's.

Each takes what the sweep has found, and is ``None`` where that is too little to be drawn.
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
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import blended_transform_factory

from raymimic.rollout.stats import bootstrap_interval
from raymimic.sweep.result import TrialResult
from raymimic.sweep.spec import SweepSpec
from raymimic.sweep.stats import expected_online_performance, is_number
from raymimic.sweep.table import Outcome, describe, number, short_name, text, word
from raymimic.tracking.figures import COLOURS, INK, new_figure, save_figure, tidy

GREY = "#bdbdbd"
# Settings that have a colour of their own; more would not be told apart.
_NAMED = 5
# Values that differ by more are drawn on a logarithmic scale.
_LOG_RATIO = 10.0
_MOST_CELLS = 12
# Letters of a legend in half of a picture's width.
_LETTERS = 64
# Letters between two axes.
_HEAD = 22
# More axes of parallel coordinates, or more words on one of them, cannot be read.
_MOST_AXES = 8
_MOST_WORDS = 24


def draw(outcome: Outcome, folder: Path) -> list[Path]:
    """Draws whatever the results are enough for.

    Args:
        outcome: at least one setting has a score.
        folder: where the pictures go.

    Returns:
        the pictures.

    Raises:
        OSError: one cannot be written.
    """
    drawn = []
    for name, make in PICTURES.items():
        figure = make(outcome)
        if figure is not None:
            drawn.append(folder / f"{name}.png")
            save_figure(figure, drawn[-1])
    return drawn


def learning_curves(outcome: Outcome) -> Figure:
    """Scores by gradient step: the best settings with their bands, the others in grey.

    A point is the mean over the setting's trials, its band the 95% bootstrap interval over them;
    steps that some of them did not reach are left out.
    """
    spec, scored = outcome.spec, outcome.scored
    figure = new_figure(10, 6, spec.name)
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
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if max(map(len, labels)) <= _LETTERS else 1
    lines = sum(label.count("\n") + 1 for label in labels) / columns
    figure.set_size_inches(10, 5.4 + 0.2 * max(lines, 3))
    _legend(axes, title, handles=handles[::-1], labels=labels[::-1], **_below(-0.11, columns))
    _dress(axes, "gradient steps", _of(spec.metric))
    return figure


def heat_map(outcome: Outcome) -> Figure | None:
    """Scores over the two numeric hyperparameters that matter most.

    Settings on a grid are cells; those drawn from ranges are points, since nothing is known between
    them. Where other hyperparameters vary too, each is the mean over its settings.
    """
    spec, scored = outcome.spec, outcome.scored
    found = [one.path for one in outcome.importances]
    numeric = [p for p in found if all(is_number(row.setting.get(p, 0)) for row in scored)]
    for pair in combinations(numeric, 2):
        across, up = sorted(pair, key=list(spec.space).index)
        places: dict[tuple[float, float], list[float]] = {}
        for row, score in zip(scored, outcome.means, strict=True):
            if across in row.setting and up in row.setting:
                place = float(row.setting[across]), float(row.setting[up])
                places.setdefault(place, []).append(score)
        xs, ys = sorted({x for x, _ in places}), sorted({y for _, y in places})
        alone = all(len(scores) == 1 for scores in places.values())
        # Two that always change together are one.
        if len(places) > 1 and (alone or not len(places) == len(xs) == len(ys)):
            break
    else:
        return None
    points = [(x, y, sum(scores) / len(scores)) for (x, y), scores in places.items()]
    figure = new_figure(8, 6.5, spec.name)
    axes = figure.add_subplot()
    colours = _Scale([score for _, _, score in points], spec.mode)
    _dress(axes, _head(spec, across), _head(spec, up))
    if len(places) > 0.5 * len(xs) * len(ys) and max(len(xs), len(ys)) <= _MOST_CELLS:
        _draw_cells(axes, points, xs, ys, colours)
    else:
        _draw_points(axes, points, colours)
    bar = figure.colorbar(ScalarMappable(colours.normalize, colours.colormap), ax=axes, pad=0.02)
    over = "mean over seeds" if alone else "mean over seeds and other hyperparameters"
    bar.set_label(f"{_of(spec.metric)}, {over}", fontsize=10, color=INK)
    bar.ax.tick_params(colors=INK, labelsize=9, length=0)
    bar.outline.set_visible(False)
    return figure


def parallel_coordinates(outcome: Outcome) -> Figure | None:
    """Each setting as a line through its values to its score; what is good is bright."""
    spec, scores = outcome.spec, outcome.means
    kept = {one.path for one in outcome.importances[:_MOST_AXES]}
    paths = [path for path in spec.space if path in kept]
    if not paths:
        return None
    figure = new_figure(max(7.0, 2.0 * (len(paths) + 1)), 6, spec.name)
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
        *(_head(spec, path) for path in paths),
        f"{_of(spec.metric)},\nmean over seeds",
    ]
    axes.set_xticks(range(len(columns)), heads, fontsize=10, color=INK)
    axes.set_yticks([])
    axes.set_ylim(-0.06, 1.06)
    axes.set_xlim(-0.35, len(paths) + 0.35)
    axes.tick_params(length=0, pad=8)
    _no_box(axes)
    return figure


def importance(outcome: Outcome) -> Figure | None:
    """How much each hyperparameter alone says of the score."""
    found = outcome.importances
    if all(one.share is None for one in found):
        return None
    figure = new_figure(9, 1.9 + 0.55 * len(found), outcome.spec.name)
    axes = figure.add_subplot()
    beside = blended_transform_factory(axes.transAxes, axes.transData)
    for place, one in enumerate(found):
        notes = "too few settings to tell"
        if one.share is not None and one.p_value is not None:
            notes = f"p = {one.p_value:.2g}"
            colour = COLOURS[0] if one.p_value < 0.05 else GREY
            axes.barh(place, one.share, height=0.6, color=colour)
        if one.trend is not None:
            notes += f", correlation {one.trend:+.2f}"
        axes.text(1.02, place, notes, transform=beside, va="center", fontsize=9, color=INK)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(found) - 0.5, -0.5)
    _dress(
        axes,
        f"share of the variance of the ranks of {len(outcome.scored)} settings (epsilon squared);\n"
        "grey: chance would do (p ≥ 0.05)",
    )
    axes.set_yticks(range(len(found)), [_head(outcome.spec, one.path) for one in found])
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", labelsize=10)
    return figure


def online_budget(outcome: Outcome) -> Figure | None:
    """The expected online performance by the number of settings tried."""
    spec = outcome.spec
    if len(outcome.means) < 2:
        return None
    figure = new_figure(9, 5.5, spec.name)
    axes = figure.add_subplot()
    # Where no checkpoint beats the last, both lines are one; dashes let the other be seen.
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
    _dress(axes, "settings tried online, drawn at random", f"expected best {_of(spec.metric)}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(left=0.5)
    return figure


def schedules(outcome: Outcome) -> Figure | None:
    """Under PBT, hyperparameters by gradient step: what the winner's weights went through.

    A trial goes on with another's weights at a cross, so the winner's way leads back through the
    trials that its weights came from.
    """
    spec = outcome.spec
    trials = {result.trial_id: result for result in outcome.results if result.schedule}
    if not trials:
        return None
    way, end = _way(outcome.rows[0].setting_id, trials)
    figure = new_figure(10, 1.6 + 2.0 * len(spec.space), spec.name)
    panels = figure.subplots(len(spec.space), sharex=True, squeeze=False)[:, 0]
    for axes, path in zip(panels, spec.space, strict=True):
        for trial in trials.values():
            last = max([step for step, _ in trial.curve] + [trial.schedule[-1]["step"]])
            _draw_schedule(axes, path, trial.schedule, last, color=GREY)
        _draw_schedule(axes, path, way, end, color=COLOURS[0], linewidth=2.5)
        taken = [e for t in trials.values() for e in t.schedule if e["from"] is not None]
        values = [entry["setting"][path] for entry in taken]
        axes.plot([entry["step"] for entry in taken], values, "x", color=INK, markersize=5)
        axes.plot([end], [way[-1]["setting"][path]], "o", color=COLOURS[0])
        _dress(axes, "", _head(spec, path))
        if _logarithmic([e["setting"][path] for t in trials.values() for e in t.schedule]):
            _log_scale(axes, "y")
    panels[-1].set_xlabel("gradient steps", fontsize=10, color=INK)
    labels = ("trials", "the weights that won", "a trial goes on with another's weights")
    *_, trial_line, way_line, crosses, _ = panels[-1].lines
    handles = [trial_line, way_line, crosses]
    _legend(panels[-1], handles=handles, labels=labels, **_below(-0.25, 3))
    return figure


PICTURES: dict[str, Callable[[Outcome], Figure | None]] = {
    "learning_curves": learning_curves,
    "heat_map": heat_map,
    "parallel_coordinates": parallel_coordinates,
    "importance": importance,
    "online_budget": online_budget,
    "schedules": schedules,
}


# -- their parts --


def _axis(
    column: Sequence[float | str], score: str | None = None
) -> tuple[list[float], list[tuple[float, str]]]:
    """One axis of parallel coordinates: words evenly, and numbers above them on a scale.

    Args:
        column: a value for each line.
        score: the mode, where values are scores: their scale is linear, and "min" turns it upside
            down.

    Returns:
        the height of each line, between 0 and 1; heights of ticks and what is written there.
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
        write: Callable[[float], str] = text if score is None else number
        if len(values) > 6:  # marks between them, which need fewer digits
            above = np.linspace(room, 1.0, 5)
            marks = np.linspace(scaled[0], scaled[-1], 5)
            values = (10.0**marks if logarithmic else marks).tolist()
            write = "{:.2g}".format if score is None else number
        ticks += [(height, write(value)) for height, value in zip(above, values, strict=True)]
    if score == "min":
        heights = {value: 1.0 - height for value, height in heights.items()}
        ticks = [(1.0 - height, label) for height, label in ticks]
    return [heights[value] for value in column], ticks


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
) -> None:
    cells = np.full((len(ys), len(xs)), np.nan)
    for x, y, score in points:
        cells[ys.index(y), xs.index(x)] = score
    axes.set_facecolor("#f2f2f2")  # where nothing was tried
    axes.imshow(cells, origin="lower", aspect="auto", cmap=colours.colormap, norm=colours.normalize)
    for x, y, score in points:
        light = float(np.dot(colours.rgba(score)[:3], (0.299, 0.587, 0.114))) > 0.5
        axes.text(
            *(xs.index(x), ys.index(y), number(score)),
            ha="center",
            va="center",
            fontsize=11,
            color="black" if light else "white",
            weight="bold" if (x, y) == points[0][:2] else "normal",
        )
    axes.set_xticks(range(len(xs)), [text(x) for x in xs])
    axes.set_yticks(range(len(ys)), [text(y) for y in ys])
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


def _way(setting_id: str, trials: Mapping[str, TrialResult]) -> tuple[list[dict[str, Any]], int]:
    """The schedule of the winner's weights, before they were its own too, and where it ends."""
    trial = next(t for t in trials.values() if t.setting_id == setting_id)
    until = end = next(step for step, score in trial.curve if score == trial.best)
    way: list[dict[str, Any]] = []
    while True:
        own = [entry for entry in trial.schedule if entry["step"] < until]
        taken = [place for place, entry in enumerate(own) if entry["from"] in trials]
        way = own[taken[-1] if taken else 0 :] + way
        if not taken:
            return way, end
        until, trial = way[0]["step"], trials[way[0]["from"]]


def _draw_schedule(
    axes: Axes, path: str, schedule: Sequence[Mapping[str, Any]], end: int, **style: Any
) -> None:
    values = [entry["setting"][path] for entry in schedule]
    steps = [entry["step"] for entry in schedule]
    axes.plot([*steps, end], [*values, values[-1]], drawstyle="steps-post", **style)


class _Scale:
    """Colours for scores; what is good is bright."""

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


def _legend(axes: Axes, title: str | None = None, **where: Any) -> None:
    where |= {"title_fontsize": 9, "fontsize": 9, "alignment": "left", "labelcolor": INK}
    legend = axes.legend(title=title, frameon=False, **where)
    legend.get_title().set_color(INK)


def _below(height: float, columns: int) -> dict[str, Any]:
    """A legend's place below the axes."""
    return {"loc": "upper left", "bbox_to_anchor": (0.0, height), "ncols": columns}


def _dress(axes: Axes, across: str, up: str = "") -> None:
    tidy(axes)
    axes.set_xlabel(across, fontsize=10, color=INK)
    axes.set_ylabel(up, fontsize=10, color=INK)


def _no_box(axes: Axes) -> None:
    for side in axes.spines.values():
        side.set_visible(False)


def _logarithmic(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= _LOG_RATIO


def _head(spec: SweepSpec, path: str) -> str:
    return fill(short_name(spec, path), _HEAD)


def _value(spec: SweepSpec, path: str, setting: Mapping[str, Any]) -> float | str:
    """A number, or a word for anything else."""
    if path not in setting:
        return "absent"
    if is_number(setting[path]):
        return float(setting[path])
    return word(spec, path, setting) if spec.labels[path] else text(setting[path])


def _of(metric: str) -> str:
    """A metric for people: ``Rollout/Return/Walker2d-v5`` is ``Return, Walker2d-v5``."""
    if metric == "Valid/Loss":
        return "validation loss"
    return metric.removeprefix("Rollout/").replace("/", ", ").replace("_", " ")
