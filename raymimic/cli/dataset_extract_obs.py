"""`raymimic dataset extract-obs`: observations and images of a dataset's states."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymimic.cli.cameras import OF_CAMERAS, add_cameras, render_settings
from raymimic.cli.shared import (
    add_actors,
    add_allow_links,
    add_import,
    hdf5_file,
    positive,
    resumed,
)
from raymimic.errors import ConfigError, printable
from raymimic.terminal import counted, shown

if TYPE_CHECKING:
    from raymimic.recording.extract import ExtractedDataset, Extraction

_MOST_REASONS = 3


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `raymimic dataset extract-obs`."""
    parser.description = (
        "Plays the states of a dataset back in its environment, and writes their observations and "
        "images. If it is interrupted, the same command continues."
    )
    parser.add_argument("source", help="HDF5 file with states, path or URI")
    parser.add_argument(
        "--out",
        type=hdf5_file,
        help="HDF5 file to write (default: <source>_ld.hdf5 or <source>_im84.hdf5 here)",
    )
    add_actors(parser, "demos")
    parser.add_argument("--n", type=positive, help="extract at most N demos")
    images = parser.add_argument_group("images")
    add_cameras(images)
    for name in ("height", "width"):
        images.add_argument(f"--{name}", type=positive, help="of the images, instead of --size")
    add_extraction(parser)
    add_allow_links(parser)
    add_import(parser)


def add_extraction(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that robomimic's `dataset_states_to_obs` has too, but for images."""
    parser.add_argument(
        "--done_mode",
        "--done-mode",
        type=int,
        choices=(0, 1, 2),
        default=0,
        help="dones are 1 where a state solves the task (0, the default), at the end of a demo (1),"
        " or both (2)",
    )
    for name, help_text in (
        ("copy_rewards", "copy rewards from the source"),
        ("copy_dones", "copy dones from the source"),
        ("exclude_next_obs", "store no next_obs, which doubles the file"),
    ):
        dashed = f"--{name.replace('_', '-')}"
        parser.add_argument(dashed, f"--{name}", action="store_true", help=help_text)
    parser.add_argument("--shaped", action="store_true", help="write robosuite's dense rewards")
    parser.add_argument(
        "--compress", action="store_true", help="store images compressed, frame by frame"
    )


def run(args: argparse.Namespace) -> None:
    """Writes the dataset, and prints where it is and how to train on it.

    Raises:
        ConfigError: the arguments contradict each other.
        DatasetError, EnvError, OutputError: see `extract_observations`.
    """
    from raymimic.recording.extract import extract_observations

    if args.cameras is None:
        for name in (*OF_CAMERAS, "height", "width", "compress"):
            if getattr(args, name):
                raise ConfigError(f"--{name} is for images: add --cameras")
    if args.size and (args.height or args.width):
        raise ConfigError("--size and --height or --width give the size twice: leave one out")
    render = render_settings(args)
    if render is not None:
        render["height"] = args.height or render["height"]
        render["width"] = args.width or render["width"]
    kind = "ld" if render is None else f"im{render['width']}"
    made = extract_observations(
        args.source,
        args.out or f"{Path(args.source).stem}_{kind}.hdf5",
        extraction(args, render),
        n=args.n,
        num_actors=args.actors,
        allow_links=args.allow_links,
        imports=args.imports,
    )
    for line in lines(made):
        print(printable(line))


def extraction(args: argparse.Namespace, render: dict[str, Any] | None) -> Extraction:
    """The extraction that the arguments of `add_extraction` choose.

    Args:
        args: the arguments.
        render: the cameras; None: no images.
    """
    from raymimic.recording.extract import Extraction

    return Extraction(
        render=render,
        done_mode=args.done_mode,
        next_obs=not args.exclude_next_obs,
        shaped=args.shaped,
        copy_rewards=args.copy_rewards,
        copy_dones=args.copy_dones,
        compress=args.compress,
    )


def lines(made: ExtractedDataset) -> Iterator[str]:
    """The dataset, demos that are not in it, and commands that take it, as lines of text."""
    size, where = made.path.stat().st_size / 1e6, shlex.quote(shown(made.path))
    yield (
        f"dataset: {shown(made.path)}, {counted(made.num_demos, 'demo')}, "
        f"{counted(made.num_transitions, 'transition')}, {size:,.1f} MB"
    )
    yield from resumed(made.kept, "demos")
    if made.dropped:
        yield f"left out: {counted(len(made.dropped), 'demo')} that cannot be played back"
    for name, why in list(made.dropped.items())[:_MOST_REASONS]:
        yield f"  {name}: {why}"
    yield from made.notes
    yield f"look at it: raymimic dataset info {where}"
