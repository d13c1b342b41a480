"""`raymimic dataset make`: records a dataset with policies and experts."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from raymimic.cli.cameras import (
    OF_CAMERAS,
    add_cameras,
    given_render_settings,
    render_settings,
)
from raymimic.cli.shared import (
    CHECKPOINT_HELP,
    add_actors,
    add_import,
    hdf5_file,
    natural,
    positive,
    resumed,
)
from raymimic.errors import ConfigError
from raymimic.terminal import counted, readable, shown

if TYPE_CHECKING:
    from raymimic.recording.demos import RecordedDataset

_DEMOS, _TRANSITIONS = 50, 100_000
_NO_VALID = (
    "no filter key 'valid': the demos are too few; train.validation_fraction=0.1 holds demos out"
)
_OF_WALKERS = ("expert", "medium")
_OF_POLICIES = ("episodes", "env")
_OF_EXPERTS = (
    *("demos", "cameras", *OF_CAMERAS, "noise", "horizon", "keep_failures", "next_obs"),
    *("compress", "imports"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `raymimic dataset make`."""
    parser.add_argument(
        "name",
        nargs="?",
        help="such as walker2d-medium-expert, metaworld-push-v3, ogbench-cube-single-play",
    )
    parser.add_argument(
        "--policy",
        metavar="CKPT",
        help=f"instead of a name: record the policy of a {CHECKPOINT_HELP}",
    )
    parser.add_argument(
        "--out", type=hdf5_file, help="HDF5 file to write (default: <name>.hdf5 here)"
    )
    add_actors(parser)
    parser.add_argument("--seed", type=natural, default=0, help="seed of the episodes (default 0)")
    policies = parser.add_argument_group("walker2d, halfcheetah, hopper")
    for level, owner in (("expert", "expert"), ("medium", "medium policy")):
        policies.add_argument(
            f"--{level}",
            type=natural,
            help=f"record at least N transitions of the {owner} (default {_TRANSITIONS:,})",
        )
    experts = parser.add_argument_group("simulators with experts: metaworld, robosuite, ogbench")
    experts.add_argument("--demos", type=positive, help=f"number of demos (default {_DEMOS})")
    add_cameras(experts)
    experts.add_argument(
        "--noise", type=_noise, help="noise of the actions, in the expert's unit (default: its own)"
    )
    experts.add_argument("--horizon", type=positive, help="longest episode, in steps")
    experts.add_argument(
        "--keep-failures", action="store_true", help="keep episodes that do not solve the task"
    )
    experts.add_argument(
        "--next-obs",
        action="store_true",
        help="store next_obs beside images too, which doubles the file",
    )
    experts.add_argument(
        "--compress", action="store_true", help="store images compressed, frame by frame"
    )
    of_policy = parser.add_argument_group("--policy")
    of_policy.add_argument(
        "--episodes", type=positive, help=f"number of episodes (default {_DEMOS})"
    )
    of_policy.add_argument("--env", help="environment to play in (default: the checkpoint's)")
    add_import(parser)


def run(args: argparse.Namespace) -> None:
    """Records the dataset and prints its size, and mean returns or the success rate.

    Raises:
        ConfigError: the arguments contradict each other.
        EnvError: the environment cannot be made, or too many episodes were of no use.
        OutputError: the file is there already, or cannot be written.
    """
    from raymimic.config import import_modules
    from raymimic.recording.experts.expert import has_expert

    import_modules(args.imports)
    if args.name is not None and args.policy is not None:
        raise ConfigError(
            f"'{args.name}' and --policy contradict each other: leave one out (--env names another"
            " environment for the policy)"
        )
    if args.name is None and args.policy is None:
        raise ConfigError("name a dataset to make, or a policy to record (--policy CKPT)")
    if args.policy is not None:
        _refuse(args, (*_OF_WALKERS, "demos", "noise", "keep_failures"))
        _record_policy(args)
        return
    _refuse(args, _OF_POLICIES)
    out = args.out or f"{args.name.replace('-', '_')}.hdf5"
    if has_expert(args.name):
        _refuse(args, _OF_WALKERS)
        _record(args, out)
    else:
        _make(args, out)


def _make(args: argparse.Namespace, out: str) -> None:
    from raymimic.recording.make import dataset_task, make_dataset

    dataset_task(args.name)
    _refuse(args, _OF_EXPERTS)
    made = make_dataset(
        args.name,
        out,
        n_expert=_TRANSITIONS if args.expert is None else args.expert,
        n_medium=_TRANSITIONS if args.medium is None else args.medium,
        num_actors=args.actors,
        seed=args.seed,
        replace=False,
    )
    print(f"dataset: {shown(made.path)}")
    for line in resumed(made.resumed, "episodes"):
        print(line)
    for level, transitions in made.transitions.items():
        returns = made.returns[level]
        print(
            f"{level}: {counted(transitions, 'transition')} in "
            f"{counted(len(returns), 'episode')}, "
            f"mean return {sum(returns) / len(returns):.1f}"
        )
    if not made.has_valid:
        print(_NO_VALID)


def _record(args: argparse.Namespace, out: str) -> None:
    from raymimic.recording.demos import Recipe, record_demos

    if args.cameras is None:
        _refuse(args, (*OF_CAMERAS, "compress"), " without --cameras")
    made = record_demos(
        Recipe(
            args.name,
            render=render_settings(args),
            noise=args.noise,
            horizon=args.horizon,
            next_obs=args.next_obs or None,
        ),
        out,
        args.demos or _DEMOS,
        num_actors=args.actors,
        seed=args.seed,
        keep_failures=args.keep_failures,
        compress=args.compress,
        imports=args.imports,
        replace=False,
    )
    for line in _lines(made, "expert"):
        print(line)


def _record_policy(args: argparse.Namespace) -> None:
    from raymimic.checkpoints.sources import fetched
    from raymimic.recording.demos import record_demos
    from raymimic.recording.policy import PolicyRecipe
    from raymimic.rollout.playable import Playable
    from raymimic.storage import file_names

    if args.cameras is None:
        _refuse(args, OF_CAMERAS, " without --cameras")
    with fetched(args.policy) as checkpoint:
        policy = Playable.read(checkpoint, args.env, args.imports)
        given = given_render_settings if policy.interface.images else render_settings
        recipe = PolicyRecipe.of(
            policy,
            args.policy,
            render=given(args),
            horizon=args.horizon,
            next_obs=args.next_obs or None,
        )
        out = args.out or f"{file_names([recipe.name])[recipe.name]}_policy.hdf5"
        made = record_demos(
            recipe,
            out,
            args.episodes or _DEMOS,
            num_actors=args.actors,
            seed=args.seed,
            keep_failures=True,
            compress=args.compress,
            imports=policy.imports,
            replace=False,
        )
    for line in _lines(made, "policy"):
        print(line)


def _lines(made: RecordedDataset, actor: str) -> list[str]:
    from raymimic.data.observation_keys import set_argument

    size = Path(made.path).stat().st_size / 1e6
    where = shlex.quote(shown(made.path))
    lines = [
        f"dataset: {shown(made.path)}, {counted(made.num_demos, 'demo')}, "
        f"{counted(made.num_transitions, 'transition')}, {size:,.1f} MB",
        *resumed(made.resumed, "episodes"),
    ]
    if made.judged:
        found = made.attrs()
        lines.append(
            f"success rate of the {actor}: {found['success_rate']:.2f} ({made.solved} of "
            f"{made.judged}, 95 % interval {found['success_rate_low']:.2f} to "
            f"{found['success_rate_high']:.2f})"
        )
    if actor == "policy":
        mean, length = (sum(x) / len(x) for x in (made.returns, made.lengths))
        lines.append(f"mean return {readable(mean)}, mean length {length:.1f} steps")
    if made.spoiled:
        lines.append(f"left out: {counted(made.spoiled, 'episode')} that became useless")
    if made.crashes:
        number = counted(len(made.crashes), "episode")
        lines.append(f"left out: {number} that crashed ({made.crashes[0]})")
    if made.num_demos == 1:
        lines.append(_NO_VALID)
    keys = {"low_dim": made.low_dim, **made.images}
    settings = {f"observation.modalities.obs.{modality}": names for modality, names in keys.items()}
    return [
        *lines,
        f"look at it: raymimic dataset info {where}",
        f"train on it: raymimic train --algo bc --dataset {where} {set_argument(settings)}",
    ]


def _refuse(args: argparse.Namespace, names: tuple[str, ...], where: str = "") -> None:
    """Refuses arguments that this dataset does not take."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value is not False and value != []:
            option = "--import" if name == "imports" else f"--{name.replace('_', '-')}"
            subject = "--policy" if args.name is None else f"'{args.name}'"
            raise ConfigError(f"{subject} takes no {option}{where}: leave it out")


def _noise(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of at least 0")
    return value
