"""`raymimic evaluate`: plays episodes with a checkpoint's policy."""

import argparse

from raymimic.cli.shared import (
    CHECKPOINT_HELP,
    add_import,
    check_distinct,
    json_text,
    natural,
    positive,
)
from raymimic.terminal import doing


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `raymimic evaluate`."""
    add_import(parser)
    parser.add_argument("checkpoint", help=CHECKPOINT_HELP)
    parser.add_argument(
        "--episodes", type=positive, default=50, help="number of episodes (default 50)"
    )
    parser.add_argument(
        "--actors", type=natural, default=2, help="number of Ray actors; 0: no Ray (default 2)"
    )
    parser.add_argument("--seed", type=natural, default=0, help="seed of the episodes (default 0)")
    parser.add_argument("--horizon", type=positive, help="longest episode, in steps")
    parser.add_argument("--env", help="environment to play in (default: the checkpoint's)")
    parser.add_argument(
        "--blank",
        nargs="+",
        default=(),
        metavar="KEY",
        help="show the policy zeros instead of these observations, such as black images",
    )
    parser.add_argument("--video", metavar="OUT.mp4", help="film the first episode")
    parser.add_argument("--json", metavar="OUT.json", help="write all results as JSON")


def run(args: argparse.Namespace) -> None:
    """Prints every episode and the averages."""
    from raymimic.config.base_config import import_modules
    from raymimic.rollout.report import NewEpisodes, evaluate_checkpoint, evaluation_lines
    from raymimic.storage import check_writable, write_bytes
    from raymimic.user_modules import module_of

    check_distinct({"--json": args.json, "--video": args.video})
    for out in (args.json, args.video):
        if out is not None:
            check_writable(out, reads=[args.checkpoint])
    import_modules([*args.imports, *filter(None, [module_of(args.env)])])
    with doing(f"playing {args.episodes} episodes"):
        report = evaluate_checkpoint(
            args.checkpoint,
            NewEpisodes(args.episodes, args.seed, args.horizon, args.env, args.blank),
            num_actors=args.actors,
            video=args.video,
            imports=args.imports,
        )
    for line in evaluation_lines(report, every_episode=True):
        print(line)
    if args.json is not None:
        write_bytes(args.json, json_text(report.to_dict(), indent=2).encode())
        print(f"written to {args.json}")
