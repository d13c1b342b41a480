"""A report of a dataset: one self-contained page of HTML.

The names in a file are untrusted: they are escaped, and the page has no scripts.
"""

import base64
import html
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raymimic import __version__
from raymimic.data.curation.profile import Profile, Quantity, profile
from raymimic.data.curation.summary import DatasetSummary
from raymimic.data.hdf5 import DatasetFile
from raymimic.data.images import is_picture
from raymimic.errors import DatasetError, OutputError, printable
from raymimic.recording.contact_sheet import contact_sheets
from raymimic.recording.report_files import is_made, kept_report
from raymimic.storage import read_bytes, write_bytes

logger = logging.getLogger(__name__)

_MOST_CAMERAS = 22  # nine frames of each: fewer than 200
_MOST_COMPONENTS = 64  # of a table
_MOST_LINES = 20  # of a list
_BINS, _FEW_BINS = 48, 24
_LONGEST_NAME = 200

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --faint: #667080; --paper: #ffffff;
  --card: #f5f7f9; --line: #d9dee4; --accent: #0072b2; --alarm: #b34700; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --faint: #98a2ae; --paper: #14171a;
  --card: #1d2126; --line: #343a42; --accent: #56b4e9; --alarm: #ff9d57; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: .95rem; margin: 0 0 .5rem; } p { margin: .25rem 0; }
.faint { color: var(--faint); font-size: .87rem; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem;
  margin-top: 1.25rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .8rem 1rem; }
.numbers b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: .75rem; }
.scale { display: flex; justify-content: space-between; color: var(--faint); font-size: .8rem;
  font-variant-numeric: tabular-nums; border-top: 1px solid var(--line); padding-top: .2rem; }
svg { display: block; width: 100%; fill: var(--accent); }
.chart svg { height: 7rem; } td svg { width: 8rem; height: 1.4rem; }
.scroll { overflow-x: auto; margin-bottom: .75rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .2rem .6rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; font-size: .87rem; }
th { color: var(--faint); font-weight: 500; }
:is(th, td):is(:first-child, :nth-child(2), :last-child) { text-align: left; }
.values { table-layout: fixed; min-width: 44rem; } .values th:first-child { width: 3rem; }
.values th:nth-child(2) { width: 9.5rem; }
.alarm { color: var(--alarm); } ul { margin: 0; padding-left: 1.2rem; }
img { max-width: 100%; border-radius: 8px; border: 1px solid var(--line); }
"""


def make_report(
    path: str,
    summary: DatasetSummary,
    allow_links: Sequence[str | Path] = (),
    progress: Callable[[int, int], None] | None = None,
) -> bytes:
    """The report of a dataset; one that was made on this machine before is taken as it is.

    Args:
        path: local path or URI.
        summary: of the dataset.
        allow_links: folders besides the file's own that its links may lead into.
        progress: called with the number of demos done and of all demos.

    Returns:
        The page, UTF-8. It is kept beside the caches of this machine, by the dataset's digest.

    Raises:
        DatasetError: the file cannot be read.
    """
    kept = kept_report(path, summary.meta.digest)
    if is_made(kept):
        return read_bytes(str(kept))
    file = DatasetFile.locate(path, allow_links)
    found = profile(file, summary, progress)
    page = _page(Path(path).name, found, *_cameras(file, summary)).encode(errors="replace")
    try:
        write_bytes(str(kept), page)
    except OutputError as error:
        logger.warning("the report is not kept for later runs: %s", error)
    return page


def _cameras(file: DatasetFile, summary: DatasetSummary) -> tuple[list[bytes], list[str]]:
    """Pictures of the cameras as PNG, and what is wrong with them."""
    keys = {
        key: form.modality
        for key, form in summary.observations.items()
        if form.modality is not None and is_picture(form.shape, form.modality)
    }
    chosen = dict(list(keys.items())[:_MOST_CAMERAS])
    notes = [f"obs/{k} is {form.fault}" for k, form in summary.observations.items() if form.fault]
    if len(chosen) < len(keys):
        notes.append(f"{len(keys)} observations are images; {len(chosen)} are drawn")
    if not chosen or not summary.meta.demos:
        return [], notes
    try:
        sheets = contact_sheets(file, summary.meta.demos, chosen)
    except DatasetError as error:
        return [], [*notes, f"the cameras cannot be drawn: {error}"]
    pictures = []
    for sheet in sheets.sheets.values():
        content = io.BytesIO()
        sheet.paint().save(content, format="png")
        pictures.append(content.getvalue())
    return pictures, [*notes, *sheets.warnings]


def _page(name: str, found: Profile, pictures: Sequence[bytes], notes: Sequence[str]) -> str:
    summary, title = found.summary, _escaped(name)
    parts = [
        f"<h1>{title}</h1>",
        f"<p class=faint>{_escaped(_environment(summary))}</p>",
        _numbers(summary),
        _section("Worth a look", [_list(_remarks(found, notes))]),
        _section("Demos", [_demos(summary), _outliers(found), _filter_keys(summary)]),
        *(
            _section(heading, [_table(found.quantities[key]) for key in keys])
            for heading, keys in _groups(found).items()
        ),
    ]
    if pictures:
        sources = (base64.b64encode(picture).decode() for picture in pictures)
        images = [f'<p><img alt="frames" src="data:image/png;base64,{s}"></p>' for s in sources]
        parts.append(_section("Cameras", images))
    digest = _escaped(summary.meta.digest)
    parts.append(f"<p class=faint>{digest}<br>raymimic {_escaped(__version__)}</p>")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; img-src data:\">\n"
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n"
        "</html>\n"
    )


def _escaped(text: object) -> str:
    """A text of a file, for the page."""
    plain = printable(str(text).encode(errors="backslashreplace").decode())
    if len(plain) > _LONGEST_NAME:
        plain = f"{plain[:_LONGEST_NAME]}…"
    return html.escape(plain)


def _number(value: float) -> str:
    return f"{value:.4g}"


def _section(heading: str, blocks: Iterable[str]) -> str:
    content = "\n".join(block for block in blocks if block)
    return f"<h2>{heading}</h2>\n{content}" if content else ""


def _environment(summary: DatasetSummary) -> str:
    meta = summary.meta.env_meta
    if not meta:
        return "The file does not say in which environment it was recorded."
    return f"Recorded in {meta.get('env_name', 'an environment without a name')}"


def _numbers(summary: DatasetSummary) -> str:
    meta = summary.meta
    shown = [("demos", f"{meta.num_demos:,}"), ("transitions", f"{meta.num_transitions:,}")]
    if summary.lengths:
        shown.append(("mean length", f"{np.mean(summary.lengths):.1f}"))
    if summary.returns:
        shown.append(("mean return", _number(float(np.mean(summary.returns)))))
    if summary.successes is not None:
        shown.append(("success", f"{summary.successes / max(1, meta.num_demos):.0%}"))
    if "dones" in summary.held:
        shown.append(("end in a done", f"{summary.ended / max(1, meta.num_demos):.0%}"))
    if "actions" in summary.extents:
        shown.append(("components of actions", str(summary.extents["actions"].width)))
    cards = (f"<div class=card><b>{value}</b>{name}</div>" for name, value in shown)
    return f"<div class=numbers>{''.join(cards)}</div>"


def _remarks(found: Profile, notes: Iterable[str]) -> Iterator[str]:
    """Sentences about all that a person should look at."""
    yield from found.summary.meta.problems
    yield from found.problems
    for key in ("actions", "rewards", "dones"):
        lacking = found.summary.meta.num_demos - found.summary.held[key]
        if lacking:
            yield f"{lacking} of {found.summary.meta.num_demos} demos have no {key}"
    actions = found.quantities.get("actions")
    if actions is not None:
        reach = float(np.abs([actions.moments.low, actions.moments.high]).max())
        if reach > 1.0001:
            yield f"actions reach {_number(reach)}, beyond [-1, 1], where some algorithms act"
    for key, quantity in found.quantities.items():
        if key != "rewards" and quantity.constant:
            yield f"{key}: constant in {_components(quantity.constant)}"
        if saturated := quantity.saturated():
            yield f"{key}: often at a bound in {_components(saturated)}"
    for copy, first in found.copies.items():
        yield f"demo '{copy}' is a copy of demo '{first}'"
    yield from notes


def _components(indices: Iterable[int]) -> str:
    named = list(indices)
    more = f" and {len(named) - _MOST_LINES} more" if len(named) > _MOST_LINES else ""
    what = "component" if len(named) == 1 else "components"
    return f"{what} {', '.join(map(str, named[:_MOST_LINES]))}{more}"


def _list(sentences: Iterable[str]) -> str:
    told = list(dict.fromkeys(sentences))
    if not told:
        return "<p>Nothing: no faults were found.</p>"
    items = "".join(f"<li>{_escaped(sentence)}</li>" for sentence in told[:_MOST_LINES])
    more = len(told) - _MOST_LINES
    rest = f"<p class=faint>and {more:,} more</p>" if more > 0 else ""
    return f"<div class=card><ul>{items}</ul>{rest}</div>"


def _demos(summary: DatasetSummary) -> str:
    charts = [_chart("Lengths", summary.lengths)]
    if summary.returns:
        charts.append(_chart("Returns", summary.returns))
    return f"<div class=pair>{''.join(charts)}</div>"


def _chart(title: str, values: Sequence[float]) -> str:
    """A histogram with its range."""
    if not values:
        return ""
    numbers = np.asarray(values, np.float64)
    low, high = float(numbers.min()), float(numbers.max())
    span = (low, high) if high > low else (low - 0.5, high + 0.5)
    counts = np.histogram(numbers, min(_BINS, 4 + len(values) // 2), span)[0]
    return (
        f"<div class='card chart'><h3>{title}</h3>{_bars(counts)}<div class=scale>"
        f"<span>{_number(low)}</span><span>mean {_number(float(numbers.mean()))}</span>"
        f"<span>{_number(high)}</span></div></div>"
    )


def _bars(counts: NDArray[np.int64]) -> str:
    """A histogram as SVG; the highest bar fills it."""
    height = 100 * counts / max(1, int(counts.max()))
    path = "".join(
        f"M{i + 0.05:g} 100V{100 - h:.1f}h.9V100z" for i, h in enumerate(height) if h > 0
    )
    return (
        f'<svg viewBox="0 0 {len(counts)} 100" preserveAspectRatio="none" aria-hidden="true">'
        f'<path d="{path}"/></svg>'
    )


def _outliers(found: Profile) -> str:
    if not found.outliers:
        return ""
    rows = [
        f"<tr><td>{_escaped(o.demo)}</td><td>{_escaped(o.quantity)}</td>"
        f"<td>{_number(o.value)}</td><td>{o.distance:.1f}</td></tr>"
        for o in found.outliers[:_MOST_LINES]
    ]
    more = len(found.outliers) - _MOST_LINES
    rest = f"<p class=faint>and {more:,} more</p>" if more > 0 else ""
    return (
        "<h3 style='margin-top:1rem'>Outliers</h3><p class=faint>Values far outside the middle half"
        " of all values; the distance is in widths of that half.</p><div class=scroll><table>"
        "<tr><th>demo</th><th>quantity</th><th>value</th><th>distance</th></tr>"
        f"{''.join(rows)}</table></div>{rest}"
    )


def _filter_keys(summary: DatasetSummary) -> str:
    keys = summary.meta.filter_keys
    if not keys:
        return ""
    named = [f"{_escaped(key)} ({len(demos):,})" for key, demos in sorted(keys.items())]
    return f"<p class=faint>Filter keys: {', '.join(named)}</p>"


def _groups(found: Profile) -> dict[str, list[str]]:
    keys = list(found.quantities)
    return {
        "Actions": [key for key in keys if key == "actions"],
        "Rewards": [key for key in keys if key == "rewards"],
        "Observations": [key for key in keys if key.startswith("obs/")],
    }


def _table(quantity: Quantity) -> str:
    """The components of an array, a row each."""
    constant, saturated = set(quantity.constant), quantity.saturated()
    rows = []
    for i in range(min(quantity.width, _MOST_COMPONENTS)):
        moments = quantity.moments
        numbers = (moments.low[i], moments.mean[i], moments.high[i], moments.std[i])
        note = "constant" if i in constant else ""
        note = f"{saturated[i]:.0%} at a bound" if i in saturated else note
        rows.append(
            f"<tr><td>{i}</td><td>{_bars(quantity.histogram(i, _FEW_BINS))}</td>"
            + "".join(f"<td>{_number(float(number))}</td>" for number in numbers)
            + f"<td class=alarm>{note}</td></tr>"
        )
    more = quantity.width - _MOST_COMPONENTS
    rest = f"<p class=faint>and {more:,} components more</p>" if more > 0 else ""
    return (
        f"<h3>{_escaped(quantity.key)} <span class=faint>[{quantity.width}]</span></h3>"
        "<div class=scroll><table class=values><tr><th>#</th><th>distribution</th><th>least</th>"
        "<th>mean</th><th>greatest</th><th>deviation</th><th></th></tr>"
        f"{''.join(rows)}</table></div>{rest}"
    )
