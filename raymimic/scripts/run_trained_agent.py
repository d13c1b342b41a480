"""`python -m raymimic.scripts.run_trained_agent`: robomimic's name for playing a policy."""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from raymimic.cli.entry import run_script
from raymimic.cli.shared import (
    CHECKPOINT_HELP,
    Parser,
    add_actors,
    add_import,
    check_distinct,
    natural,
    positive,
)
from raymimic.errors import ConfigError
from raymimic.storage import check_local, check_writable, write_bytes
from raymimic.terminal import shown


def run_trained_agent(args: argparse.Namespace) -> dict[str, float]:
    """Plays a policy, and records and films its episodes.

    The film shows the recorded states, drawn again. Episodes follow from the seed (0 unless given),
    for any number of actors.

    Args:
        args: robomimic's arguments, and `actors` and `imports`.

    Returns:
        robomimic's averages: `Return`, `Horizon`, `Success_Rate`, `Num_Success`.

    Raises:
        ConfigError: a screen is asked for, or two files have one name.
        RaymimicError: see `record_demos` and `play_back`.
    """
    from raymimic.checkpoints.sources import fetched
    from raymimic.recording.demos import record_demos
    from raymimic.recording.playback import Playback, play_back
    from raymimic.recording.policy import PolicyRecipe
    from raymimic.rollout.playable import Playable

    if args.render:
        raise ConfigError("--render needs a screen: --video_path OUT.mp4 films the same")
    json_path = getattr(args, "json_path", None)
    check_distinct(
        {
            "--video_path": args.video_path,
            "--json_path": json_path,
            "--dataset_path": args.dataset_path,
        }
    )
    film = None
    if args.video_path is not None:
        check_local(args.video_path, reads=[args.agent])
        cameras = tuple(args.camera_names) if args.camera_names else None
        film = Playback(cameras=cameras, skip=args.video_skip)
    if json_path is not None:
        check_writable(json_path, reads=[args.agent])
    imports = getattr(args, "imports", ())
    actors = getattr(args, "actors", None)
    with fetched(args.agent) as checkpoint, tempfile.TemporaryDirectory() as folder:
        recipe = PolicyRecipe.of(
            Playable.read(checkpoint, args.env, imports),
            args.agent,
            horizon=args.horizon,
            next_obs=True,
            stores_obs=args.dataset_obs,
            film=film,
        )
        made = record_demos(
            recipe,
            args.dataset_path or Path(folder) / "episodes.hdf5",
            args.n_rollouts,
            num_actors=actors,
            seed=args.seed or 0,
            keep_failures=True,
            imports=recipe.policy.imports,
        )
        if film is not None:
            imported = recipe.policy.imports
            play_back(made.path, film, args.video_path, num_actors=actors, imports=imported)
    averages = {
        "Return": float(np.mean(made.returns)),
        "Horizon": float(np.mean(made.lengths)),
        "Success_Rate": made.solved / made.num_demos,
        "Num_Success": float(made.solved),
    }
    print("Average Rollout Stats")
    print(json.dumps(averages, indent=4))
    if args.dataset_path is not None:
        print(f"dataset: {shown(made.path)}")
    if args.video_path is not None:
        print(f"video: {shown(args.video_path)}")
    if json_path is not None:
        write_bytes(json_path, f"{json.dumps(averages, indent=4)}\n".encode())
        print(f"numbers: {shown(json_path)}")
    return averages


def arguments() -> argparse.ArgumentParser:
    """The parser of robomimic's arguments, and of `--actors` and `--import`."""
    parser = Parser(prog="run_trained_agent", description=run_trained_agent.__doc__)
    parser.add_argument("--agent", required=True, help=CHECKPOINT_HELP)
    parser.add_argument("--n_rollouts", type=positive, default=27, help="number of episodes (27)")
    parser.add_argument("--horizon", type=positive, help="longest episode, in steps")
    parser.add_argument("--env", help="another environment than the checkpoint's")
    parser.add_argument("--render", action="store_true", help="refused: there is no screen")
    parser.add_argument("--video_path", help="film to write, an mp4")
    parser.add_argument("--video_skip", type=positive, default=5, help="steps per frame (5)")
    parser.add_argument("--camera_names", nargs="+", help="cameras of the film")
    parser.add_argument("--dataset_path", help="HDF5 file to write the episodes to")
    parser.add_argument("--dataset_obs", action="store_true", help="store observations too")
    parser.add_argument("--seed", type=natural, help="of the episodes (0)")
    parser.add_argument("--json_path", help="file to write the averages to")
    add_actors(parser)
    add_import(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """Plays the policy that the arguments name."""
    run_trained_agent(args)


if __name__ == "__main__":
    run_script(arguments(), main)
