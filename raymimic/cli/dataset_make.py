"""`raymimic dataset make`: records a dataset with policies that come with raymimic."""

import argparse

from raymimic.cli.shared import natural, positive
from raymimic.terminal import shown


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `raymimic dataset make`."""
    parser.add_argument("name", help="such as walker2d-medium-expert")
    parser.add_argument("--out", help="HDF5 file to write (default: <name>.hdf5 here)")
    parser.add_argument(
        "--expert", type=natural, default=100_000, help="least transitions of the expert"
    )
    parser.add_argument(
        "--medium", type=natural, default=100_000, help="least transitions of the medium policy"
    )
    parser.add_argument("--procs", type=positive, help="processes (default: one per CPU)")
    parser.add_argument("--seed", type=natural, default=0, help="of the episodes (default 0)")


def run(args: argparse.Namespace) -> None:
    """Records the dataset and prints its size and mean returns."""
    from raymimic.recording.make import make_dataset

    made = make_dataset(
        args.name,
        args.out or f"{args.name.replace('-', '_')}.hdf5",
        n_expert=args.expert,
        n_medium=args.medium,
        num_procs=args.procs,
        seed=args.seed,
    )
    print(f"dataset: {shown(made.path)}")
    for level, transitions in made.transitions.items():
        returns = made.returns[level]
        print(
            f"{level}: {transitions:,} transitions in {len(returns)} episodes, "
            f"mean return {sum(returns) / len(returns):.1f}"
        )
