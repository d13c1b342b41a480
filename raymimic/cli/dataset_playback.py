"""`raymimic dataset playback`: films a dataset, and measures the drift of its actions."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from raymimic.cli.cameras import names
from raymimic.cli.shared import (
    add_actors,
    add_allow_links,
    add_import,
    check_distinct,
    json_text,
    leave,
    positive,
    resumed,
)
from raymimic.errors import ConfigError, OutputError, printable
from raymimic.terminal import counted, readable, shown

if TYPE_CHECKING:
    from raymimic.recording.playback import PlaybackReport


_SOLVED = {True: "yes", False: "no", None: "-"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `raymimic dataset playback`."""
    parser.description = (
        "Plays demos back: a film of their states, actions or images. With --verify, the exit "
        "status is 1 if a demo cannot be played, or drifts further than --tolerance."
    )
    parser.add_argument("source", help="HDF5 file with states or images, path or URI")
    parser.add_argument(
        "--use-actions",
        "--use_actions",
        action="store_true",
        help="play the actions from each demo's first state, instead of its states",
    )
    parser.add_argument(
        "--use-obs",
        "--use_obs",
        action="store_true",
        help="show the images of the file, without a simulator",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="play the actions, and report how far the states drift from the recorded ones",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help="with --verify: exit with status 1 if a demo drifts further (default: never)",
    )
    parser.add_argument("--json", metavar="OUT.json", help="with --verify: write all numbers there")
    parser.add_argument("--video_path", "--video", metavar="OUT.mp4", help="film to write")
    parser.add_argument(
        "--cameras",
        "--render_image_names",
        type=names,
        metavar="A,B",
        help="cameras of the film, or images of the file (default: those that the file names)",
    )
    parser.add_argument(
        "--video_skip",
        "--video-skip",
        type=positive,
        default=5,
        help="steps per frame of the film (default 5)",
    )
    parser.add_argument("--first", action="store_true", help="show only each demo's first frame")
    parser.add_argument("--n", type=positive, help="play at most N demos")
    parser.add_argument("--filter_key", "--filter-key", help="play only demos of this filter key")
    add_actors(parser, "demos")
    add_allow_links(parser)
    add_import(parser)


def run(args: argparse.Namespace) -> None:
    """Writes the film, and prints where it is and how far the states drift.

    Raises:
        ConfigError: the arguments contradict each other.
        DatasetError, EnvError, OutputError: see `play_back`.
    """
    from raymimic.recording.playback import Playback, play_back
    from raymimic.storage import check_writable, write_bytes

    _check(args)
    if args.json:
        check_writable(args.json, reads=[args.source])
    report = play_back(
        args.source,
        Playback(
            use_actions=args.use_actions or args.verify,
            use_obs=args.use_obs,
            cameras=tuple(args.cameras) if args.cameras else None,
            film=args.video_path is not None,
            skip=args.video_skip,
            first=args.first,
        ),
        video=args.video_path,
        n=args.n,
        filter_key=args.filter_key,
        num_actors=args.actors,
        allow_links=args.allow_links,
        imports=args.imports,
    )
    for line in lines(report, args.verify):
        print(printable(line))
    if args.json:
        write_bytes(args.json, (json_text(to_dict(report), indent=2) + "\n").encode())
        print(f"numbers: {shown(args.json)}")
    if args.verify and (fault := _fault(report, args.tolerance)):
        leave(1, fault)


def _check(args: argparse.Namespace) -> None:
    if args.video_path is None and not args.verify:
        raise ConfigError("nothing to do: add --video_path OUT.mp4 or --verify")
    if args.video_path is not None and not args.video_path.endswith(".mp4"):
        raise OutputError(f"--video_path '{args.video_path}': films are mp4 files; end it in .mp4")
    if args.use_obs and (args.use_actions or args.verify):
        other = "--use-actions" if args.use_actions else "--verify"
        raise ConfigError(f"--use-obs shows images, and {other} plays actions: leave one out")
    if args.verify and args.first:
        raise ConfigError("--first plays one step, and --verify plays all: leave one out")
    for name in ("tolerance", "json"):
        if getattr(args, name) is not None and not args.verify:
            raise ConfigError(f"--{name} needs the drift: add --verify")
    check_distinct({"--json": args.json, "--video_path": args.video_path})
    if args.tolerance is not None and not args.tolerance >= 0.0:
        raise ConfigError(f"--tolerance {args.tolerance}: it must be a number of at least 0")


def lines(report: PlaybackReport, verified: bool) -> Iterator[str]:
    """The report as lines of text.

    Args:
        report: of a playback.
        verified: whether to tell the drift.
    """
    if verified and report.drift:
        width = max(len("demo"), *map(len, report.drift))
        yield (
            f"{'demo':<{width}} {'steps':>6} {'largest drift':>14} {'at step':>8} {'end':>10} "
            "solved"
        )
        for name, drift in report.drift.items():
            yield (
                f"{name:<{width}} {drift.steps:>6} {readable(drift.most):>14} {drift.most_at:>8} "
                f"{readable(drift.end):>10} {_SOLVED[drift.solved]}"
            )
        found = report.summary()
        yield (
            f"{counted(found['demos'], 'demo')}: largest drift "
            f"{readable(found['largest_drift'])}, median "
            f"{readable(found['median_largest_drift'])}, median at the end "
            f"{readable(found['median_drift_at_end'])}; {found['exact']} without any"
            + (f"; {found['solved']} of {found['judged']} solve the task" * bool(found["judged"]))
        )
    yield from resumed(report.resumed, "demos")
    if report.dropped:
        yield f"left out: {counted(len(report.dropped), 'demo')} that cannot be played back"
        yield from (f"  {name}: {why}" for name, why in report.dropped.items())
    if report.video is not None:
        yield f"video: {shown(report.video)}, {counted(report.num_frames, 'frame')}"


def to_dict(report: PlaybackReport) -> dict[str, object]:
    """The numbers of a report as plain values."""
    return {
        "dataset": report.source,
        "summary": report.summary(),
        "demos": {name: asdict(drift) for name, drift in report.drift.items()},
        "dropped": report.dropped,
    }


def _fault(report: PlaybackReport, tolerance: float | None) -> str:
    """Why a verification fails, or nothing."""
    if report.dropped:
        return f"{counted(len(report.dropped), 'demo')} cannot be played back"
    far = [name for name, drift in report.drift.items() if not drift.most <= (tolerance or 0.0)]
    if tolerance is None or not far:
        return ""
    return f"{len(far)} demos drift further than {tolerance:g}, such as {far[0]}"
