"""`python -m raymimic.scripts.playback_dataset`: robomimic's name for the playback."""

import argparse

from raymimic.cli.dataset_playback import lines
from raymimic.cli.entry import run_script
from raymimic.cli.shared import Parser, add_actors, add_import, positive
from raymimic.errors import ConfigError
from raymimic.recording.playback import DEFAULT_CAMERAS, Playback, play_back

__all__ = ["DEFAULT_CAMERAS", "playback_dataset"]


def playback_dataset(args: argparse.Namespace) -> None:
    """Plays a dataset back; without a film, it prints how far its actions lead from its states.

    Args:
        args: robomimic's arguments, and `actors` and `imports`.

    Raises:
        ConfigError: a screen is asked for.
        RaymimicError: see `play_back`.
    """
    if args.render:
        raise ConfigError("--render needs a screen, and this plays in processes without one: "
                          "--video_path OUT.mp4 films the same")  # fmt: skip
    film = args.video_path is not None
    depths = getattr(args, "render_depth_names", None) or ()
    if depths and not args.use_obs:
        raise ConfigError("--render_depth_names shows distances of the file: add --use-obs")
    if args.use_obs and (args.use_actions or not film):
        raise ConfigError("--use-obs shows images: give --video_path, and no --use-actions")
    report = play_back(
        args.dataset,
        Playback(
            use_actions=args.use_actions or not film,
            use_obs=args.use_obs,
            cameras=(*(args.render_image_names or ()), *depths) or None,
            film=film,
            skip=args.video_skip,
            first=args.first,
        ),
        video=args.video_path,
        n=args.n,
        filter_key=args.filter_key,
        num_actors=getattr(args, "actors", None),
        imports=getattr(args, "imports", ()),
    )
    for line in lines(report, verified=True):
        print(line)


def arguments() -> argparse.ArgumentParser:
    """The parser of robomimic's arguments, and of `--actors` and `--import`."""
    parser = Parser(prog="playback_dataset", description=playback_dataset.__doc__)
    parser.add_argument("--dataset", required=True, help="HDF5 file with states or images")
    parser.add_argument("--filter_key", help="the demos of this filter key")
    parser.add_argument("--n", type=positive, help="no more than so many demos")
    parser.add_argument("--use-obs", action="store_true", help="show the images of the file")
    parser.add_argument("--use-actions", action="store_true", help="play actions, not states")
    parser.add_argument("--render", action="store_true", help="refused: there is no screen")
    parser.add_argument("--video_path", help="film to write, an mp4")
    parser.add_argument("--video_skip", type=positive, default=5, help="steps per frame (5)")
    parser.add_argument("--render_image_names", nargs="+", help="cameras, or images of the file")
    parser.add_argument("--render_depth_names", nargs="+", help="distances of the file, as greys")
    parser.add_argument("--first", action="store_true", help="only the first frame of each demo")
    add_actors(parser, "demos")
    add_import(parser)
    return parser


if __name__ == "__main__":
    run_script(arguments(), playback_dataset)
