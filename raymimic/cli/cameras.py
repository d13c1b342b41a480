"""Arguments of commands that draw images, and the render settings that they give."""

import argparse
import re
from typing import Any

from raymimic.cli.shared import natural

OF_CAMERAS = ("size", "depth", "shadows", "reflections", "multisampling")
"""The arguments that need `--cameras`."""

_SIZE = (84, 84)


def add_cameras(parser: argparse._ArgumentGroup) -> None:
    """Adds `--cameras` and the arguments of `OF_CAMERAS`."""
    parser.add_argument(
        "--cameras", type=names, metavar="A,B", help="record the images of these cameras"
    )
    parser.add_argument(
        "--size",
        type=_size,
        metavar="84",
        help="size of the images: a side, or HEIGHTxWIDTH (default 84)",
    )
    for flag, help_text in (
        ("--depth", "record distances too"),
        ("--shadows", "draw shadows (slow)"),
        ("--reflections", "draw reflections (slow)"),
    ):
        parser.add_argument(flag, action="store_true", help=help_text)
    parser.add_argument(
        "--multisampling",
        type=natural,
        metavar="N",
        help="samples for each pixel, for smooth edges (slow; default 0: off)",
    )


def render_settings(args: argparse.Namespace) -> dict[str, Any] | None:
    """The entry `render` of `env_args`; None without `--cameras`."""
    if args.cameras is None:
        return None
    height, width = args.size or _SIZE
    return {
        "cameras": args.cameras,
        "height": height,
        "width": width,
        "depth": args.depth,
        "shadows": args.shadows,
        "reflections": args.reflections,
        "multisampling": args.multisampling or 0,
    }


def given_render_settings(args: argparse.Namespace) -> dict[str, Any] | None:
    """As `render_settings`, without those that the user leaves out."""
    settings = render_settings(args)
    if settings is None:
        return None
    given = {"cameras", *(("height", "width") if args.size else ())}
    given |= {name for name in OF_CAMERAS[1:] if getattr(args, name)}
    return {key: value for key, value in settings.items() if key in given}


def names(text: str) -> list[str]:
    """The type of an argument that is a list of different names, such as `a,b`."""
    found = [name.strip() for name in text.split(",")]
    if not all(found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"'{text}' is no list of different names, such as a,b")
    return found


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not match or not int(match[1]) or (match[2] is not None and not int(match[2])):
        raise argparse.ArgumentTypeError(f"'{text}' is no size in pixels, such as 84 or 96x128")
    return int(match[1]), int(match[2] or match[1])
