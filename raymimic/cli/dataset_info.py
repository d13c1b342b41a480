"""`raymimic dataset info`: prints a summary of a dataset."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from raymimic.cli.shared import add_allow_links, add_import, json_text
from raymimic.errors import ConfigError, DatasetError, printable
from raymimic.terminal import Counting, counted, readable_bytes, shown

if TYPE_CHECKING:
    from raymimic.config import BaseConfig
    from raymimic.data.convert import FormatReader
    from raymimic.data.curation.summary import DatasetSummary

_MOST_COMPONENTS = 12


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `raymimic dataset info`."""
    add_import(parser)
    parser.add_argument("path", help="HDF5 file, path or URI")
    add_allow_links(parser)
    parser.add_argument("--json", action="store_true", help="print the summary as one line of JSON")
    parser.add_argument(
        "--report",
        metavar="OUT.html",
        help="write a page with distributions, outliers and frames of each camera",
    )
    parser.add_argument(
        "--images", action="store_true", help="draw frames of each camera into a picture, a PNG"
    )
    parser.add_argument(
        "--config",
        metavar="FILE.json",
        help="with --images: also show the frames after the randomizers of this config",
    )
    parser.add_argument(
        "--out", help="with --images: the PNG to write (default: <dataset>_images.png beside it)"
    )


def run(args: argparse.Namespace) -> None:
    """Prints a summary.

    Raises:
        DatasetError: the file cannot be read, or cannot be trained on, or has no images to draw.
        ConfigError: the arguments contradict each other.
        OutputError: the picture cannot be written.
    """
    from raymimic.config.base_config import config_from_file, import_modules
    from raymimic.data.convert import recognised_format
    from raymimic.data.curation.summary import summarize
    from raymimic.storage import check_writable
    from raymimic.training.trainable import obstacles

    _check_arguments(args)
    import_modules(args.imports)
    kind = recognised_format(args.path)
    if kind is not None and not kind.trains_as_is:
        _tell_format(args, kind)
        return
    config = None if args.config is None else config_from_file(args.config)
    for place in (args.report, _picture(args) if args.images else None):
        if place is not None:
            check_writable(place, reads=[args.path])
    summary = summarize(args.path, args.allow_links, Counting("looked at", "demos"))
    found = obstacles(summary)
    images = _draw(args, config, summary) if args.images and summary.meta.demos else None
    if args.report is not None:
        _write_report(args, summary)
    if args.json:
        drawn = {} if images is None else {"images": images}
        drawn |= {} if args.report is None else {"report": args.report}
        print(json_text({**summary.to_dict(), "obstacles": found, **drawn}), flush=True)
    else:
        form = []
        if kind is not None and not kind.general:
            form = [f"form: {kind.format}; {_convert_command(args, kind)} completes it"]
        for line in (*form, *_lines(summary), *_verdict(summary, found), *_image_lines(images)):
            print(printable(line))
        if args.report is not None:
            print(f"report: {shown(args.report)}")
    problems = summary.meta.problems
    if problems:
        more = f" (the first of {len(problems)} problems)" if len(problems) > 1 else ""
        raise DatasetError(problems[0] + more)


def _tell_format(args: argparse.Namespace, kind: type[FormatReader]) -> None:
    """Prints what a dataset of another format is, and the command that converts it."""
    from raymimic.config.templates import config_named
    from raymimic.data.convert import reader_of
    from raymimic.data.observation_keys import observation_settings

    command = _convert_command(args, kind)
    if args.images or args.report is not None:
        option = "--images" if args.images else "--report"
        raise DatasetError(
            f"'{args.path}' is a dataset of format '{kind.format}', and {option} takes robomimic's"
            f" HDF5: convert it first, by {command}"
        )
    with reader_of(args.path, kind.format) as reader:
        first = next(reader.episodes(), None)
        known = {} if first is None else {key: x.shape[1:] for key, x in first.obs.items()}
        told: dict[str, object] = {
            "format": reader.format,
            "version": reader.version,
            "episodes": reader.num_episodes,
            "env_args": reader.env_meta,
            "convert": command,
        }
    if args.json:
        print(json_text({"path": args.path, **told}), flush=True)
        return
    version = f" {reader.version}" if reader.version else ""
    count = "" if reader.num_episodes is None else f", {counted(reader.num_episodes, 'episode')}"
    settings = observation_settings(config_named("bc"), known)
    train = _command(args.path, "bc", settings)
    for line in (
        f"{args.path}: format '{reader.format}'{version}{count}",
        f"environment: {json.dumps(reader.env_meta) if reader.env_meta else 'not stated'}",
        f"convert: {command}",
        f"train (converts it once into a cache): {train}",
    ):
        print(printable(line))


def _convert_command(args: argparse.Namespace, kind: type[FormatReader]) -> str:
    target = kind.file_name(args.path)
    if Path(target).exists() or kind.trains_as_is:
        target = target.replace(".hdf5", "_converted.hdf5")
    return f"raymimic dataset convert {shlex.quote(args.path)} {shlex.quote(target)}"


def _check_arguments(args: argparse.Namespace) -> None:
    for name, value in (("--config", args.config), ("--out", args.out)):
        if value is not None and not args.images:
            raise ConfigError(f"{name} is for the picture of the images: add --images")
    if args.out is not None and not args.out.endswith(".png"):
        raise ConfigError(f"--out names '{args.out}', and the picture is a PNG: end it in .png")
    if args.report is not None and not args.report.endswith((".html", ".htm")):
        raise ConfigError(f"--report names '{args.report}', and it is a page: end it in .html")


def _write_report(args: argparse.Namespace, summary: DatasetSummary) -> None:
    from raymimic.recording.report import make_report
    from raymimic.storage import write_bytes

    page = make_report(args.path, summary, args.allow_links, Counting("read", "demos"))
    write_bytes(args.report, page)


def _picture(args: argparse.Namespace) -> str:
    """Path of the picture of the images."""
    from raymimic.data.fetch import is_remote

    if args.out is not None:
        return str(args.out)
    path = Path(args.path)
    return str((Path() if is_remote(args.path) else path.parent) / f"{path.stem}_images.png")


def _draw(
    args: argparse.Namespace, config: BaseConfig | None, summary: DatasetSummary
) -> dict[str, list[str]]:
    """Draws the images of a dataset.

    Returns:
        `files` and `warnings`.
    """
    from raymimic.data.hdf5 import DatasetFile
    from raymimic.data.images import is_picture
    from raymimic.data.training_data import settle_depth
    from raymimic.recording.contact_sheet import contact_sheets
    from raymimic.training.trainable import name_data

    keys = {
        key: form.modality
        for key, form in summary.observations.items()
        if form.modality is not None and is_picture(form.shape, form.modality)
    }
    if config is not None:
        name_data(config, args.path, args.allow_links)
        settle_depth(config)
        listed = config.all_modalities.items()
        keys |= {key: m for key, m in listed if m not in ("low_dim", "lang")}
    if not keys:
        faults = [
            f"obs/{k} is {form.fault}" for k, form in summary.observations.items() if form.fault
        ]
        why = f"; {faults[0]}" if faults else "; leave --images out"
        raise DatasetError(f"dataset '{summary.meta.path}' holds no images{why}")
    file = DatasetFile.locate(args.path, args.allow_links)
    sheets = contact_sheets(file, summary.meta.demos, keys, config)
    return {"files": sheets.write(_picture(args)), "warnings": sheets.warnings}


def _image_lines(images: dict[str, list[str]] | None) -> Iterator[str]:
    if images is not None:
        yield from (f"warning: {warning}" for warning in images["warnings"])
        yield from (f"images: {shown(file)}" for file in images["files"])


def _lines(summary: DatasetSummary) -> Iterator[str]:
    meta = summary.meta
    transitions = counted(meta.num_transitions, "transition")
    yield f"{meta.path}: {counted(meta.num_demos, 'demo')}, {transitions}"
    yield f"environment: {json.dumps(meta.env_meta) if meta.env_meta else 'not stated'}"
    if summary.lengths:
        mean = sum(summary.lengths) / len(summary.lengths)
        yield f"lengths: {min(summary.lengths)} to {max(summary.lengths)}, mean {mean:.1f}"
    yield from _observation_lines(summary)
    yield from _action_lines(summary)
    if summary.returns:
        extent, mean = summary.extents["rewards"], sum(summary.returns) / len(summary.returns)
        yield (
            f"rewards: {extent.low[0]:.4g} to {extent.high[0]:.4g}; returns: "
            f"{min(summary.returns):.4g} to {max(summary.returns):.4g}, mean {mean:.4g}"
        )
    if "dones" in summary.held:
        yield f"dones: {summary.ended} of {meta.num_demos} demos end in a done"
    if summary.successes is not None:
        yield f"success: {summary.successes} of {meta.num_demos} demos have a reward of 1"
    for key in ("actions", "rewards", "dones", "next_obs"):
        if lacking := meta.num_demos - summary.held[key]:
            yield f"no {key} in {lacking} of {meta.num_demos} demos"
    for key, demos in sorted(meta.filter_keys.items()):
        yield f"filter key '{key}': {counted(len(demos), 'demo')}"
    if not meta.filter_keys:
        yield "no filter keys: train.validation_fraction=0.1 holds demos out without one"
    yield from (f"{key}: {value}" for key, value in sorted(meta.attrs.items()))
    yield from (f"no demo: '{name}' has no samples" for name in meta.others)
    yield from (f"linked file: {path}" for path in sorted(meta.linked))


def _observation_lines(summary: DatasetSummary) -> Iterator[str]:
    from raymimic.data.images import CHANNELS

    images = 0
    for key, form in summary.observations.items():
        line = f"obs/{key} {list(form.shape)} {form.dtype.name}: {form.modality or 'no modality'}"
        if form.modality in CHANNELS or form.fault:
            line += f", {form.row_bytes:,} bytes a frame, {readable_bytes(form.num_bytes)} in all"
            if form.stored_bytes < form.num_bytes:
                line += f" ({readable_bytes(form.stored_bytes)} in the file)"
            line += f"; {form.fault}" if form.fault else ""
        if form.modality in CHANNELS:
            images += form.memory_bytes
        yield line
    if images:
        line = f"all images: {readable_bytes(images)} of memory"
        if summary.held["next_obs"]:
            line += f", {readable_bytes(2 * images)} for an algorithm that reads next_obs"
        yield line


def _action_lines(summary: DatasetSummary) -> Iterator[str]:
    extent = summary.extents.get("actions")
    if extent is None:
        return
    yield f"actions [{extent.width}]: {extent.low.min():.4g} to {extent.high.max():.4g}"
    if extent.width <= _MOST_COMPONENTS:
        for name, bounds in (("least", extent.low), ("greatest", extent.high)):
            yield f"  {name}: {', '.join(f'{bound:.4g}' for bound in bounds)}"
    if extent.constant:
        yield f"  constant: components {', '.join(map(str, extent.constant))} (counted from 0)"


def _verdict(summary: DatasetSummary, found: dict[str, str]) -> Iterator[str]:
    from raymimic.config.templates import config_named
    from raymimic.data.observation_keys import observation_settings

    able = [name for name, obstacle in found.items() if not obstacle]
    yield f"can train: {', '.join(able) or 'no algorithm'}"
    yield from (f"cannot train {name}: {obstacle}" for name, obstacle in found.items() if obstacle)
    if not able:
        return
    config = config_named(able[0])
    settings = observation_settings(config, summary.usable)
    if settings:
        yield f"try: {_command(summary.meta.path, able[0], settings)}"
    images = {path: keys for path, keys in _image_settings(summary).items() if path not in settings}
    if settings and images and set(config.observation) == {"modalities", "encoder"}:
        yield f"with images: {_command(summary.meta.path, able[0], {**settings, **images})}"


def _image_settings(summary: DatasetSummary) -> dict[str, list[str]]:
    """Settings that list all images of a file."""
    from raymimic.data.images import CHANNELS

    found = {
        f"observation.modalities.obs.{modality}": [
            key for key, form in summary.observations.items() if form.modality == modality
        ]
        for modality in CHANNELS
    }
    return {path: keys for path, keys in found.items() if keys}


def _command(path: str | Path, algo: str, settings: dict[str, list[str]]) -> str:
    from raymimic.data.observation_keys import set_argument

    change = f" {set_argument(settings)}" if settings else ""
    return f"raymimic train --algo {algo} --dataset {shlex.quote(str(path))}{change}"
