"""`raymimic export`: writes a checkpoint that robomimic loads."""

import argparse

from raymimic.cli.shared import CHECKPOINT_HELP, add_import


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `raymimic export`."""
    parser.description = "Write a checkpoint that robomimic 0.5 loads, plays and trains further."
    add_import(parser)
    parser.add_argument("checkpoint", help=CHECKPOINT_HELP)
    parser.add_argument("out", metavar="OUT.pth", help="checkpoint to write, path or URI")
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def run(args: argparse.Namespace) -> None:
    """Writes the checkpoint."""
    from raymimic.checkpoints.export import export_checkpoint
    from raymimic.config.base_config import import_modules

    import_modules(args.imports)
    export_checkpoint(args.checkpoint, args.out, force=args.force, imports=args.imports)
    print(f"written to {args.out}, for robomimic 0.5")
