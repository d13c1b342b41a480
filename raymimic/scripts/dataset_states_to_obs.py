"""`python -m raymimic.scripts.dataset_states_to_obs`: robomimic's name for the extraction.

The output lies beside the dataset, and images are drawn as the simulator draws them, with shadows.
"""

import argparse
from pathlib import Path

from raymimic.cli.dataset_extract_obs import add_extraction, extraction, lines
from raymimic.cli.entry import run_script
from raymimic.cli.shared import Parser, add_actors, add_import, positive


def dataset_states_to_obs(args: argparse.Namespace) -> None:
    """Extracts observations.

    Args:
        args: robomimic's arguments, and `actors` and `imports`.

    Raises:
        RaymimicError: see `extract_observations`.
    """
    from raymimic.recording.extract import extract_observations

    source = Path(args.dataset)
    kind = f"im{args.camera_width}" if args.camera_names else "ld"
    render = {
        "cameras": args.camera_names,
        "height": args.camera_height,
        "width": args.camera_width,
        "depth": getattr(args, "depth", False),
    }
    made = extract_observations(
        source,
        source.parent / (args.output_name or f"{source.stem}_{kind}.hdf5"),
        extraction(args, render if args.camera_names else None),
        n=args.n,
        num_actors=getattr(args, "actors", None),
        imports=getattr(args, "imports", ()),
    )
    for line in lines(made):
        print(line)


def arguments() -> argparse.ArgumentParser:
    """The parser of robomimic's arguments, and of `--actors` and `--import`."""
    parser = Parser(prog="dataset_states_to_obs", description=dataset_states_to_obs.__doc__)
    parser.add_argument("--dataset", required=True, help="HDF5 file with states")
    parser.add_argument("--output_name", help="name of the HDF5 file to write, beside the dataset")
    parser.add_argument("--n", type=positive, help="no more than so many demos")
    parser.add_argument(
        "--camera_names", nargs="+", default=[], help="cameras to record; none: no images"
    )
    parser.add_argument("--camera_height", type=positive, default=84, help="of images (84)")
    parser.add_argument("--camera_width", type=positive, default=84, help="of images (84)")
    parser.add_argument("--depth", action="store_true", help="record distances too")
    add_extraction(parser)
    add_actors(parser, "demos")
    add_import(parser)
    return parser


if __name__ == "__main__":
    run_script(arguments(), dataset_states_to_obs)
