#!/usr/bin/env python3
"""ReBRAC beside TD3-BC on the quickstart's data, with the quickstart's lengths: one table.

Each algorithm is trained with every seed, without Ray, by the settings of `raymimic quickstart`:
lengths, batch, n-step returns and learning rates are the same for both. A seed's score is the mean
return of its last evaluation, 16 episodes. The table shows the mean over the seeds with its 95 %
interval (Student's t). Trainings that are complete are not repeated, so that a command that was
stopped goes on when it is given again.

usage: rebrac_vs_td3_bc.py [--out rebrac_vs_td3_bc] [--seeds 1 2 3 4 5] [--algos td3_bc rebrac]
           [--set algo.actor.bc_weight=0.2 ...]
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from raymimic.cli.quickstart import DATASET, FULL, quickstart_config
from raymimic.config import BaseConfig, config_factory, parse_set
from raymimic.recording.make import make_dataset
from raymimic.training.trainer import train

# Student's t: 97.5 % quantiles for 1 to 9 degrees of freedom.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
KEYS = ("algo.n_step", "algo.optim_params")  # of the quickstart's `algo`, for both


def config_of(
    algo: str, seed: int, dataset: Path, out: Path, settings: dict[str, Any]
) -> BaseConfig:
    """The quickstart's training, of another algorithm."""
    quickstart = quickstart_config(dataset, out, seed, FULL)
    config = config_factory(algo)
    with config.values_unlocked():
        for path, value in quickstart.leaves():
            shared = not path.startswith(("algo.", "algo_name")) or path.startswith(KEYS)
            if algo == "td3_bc" or shared:
                config.set_path(path, value)
        config.experiment.name = f"{algo}_{seed}"
        config.experiment.logging.log_tb = False
        config.mlflow.enabled = False
        config.ray.num_workers = 0
        config.ray.threads_per_worker = 1
        for path, value in settings.items():
            if algo == "rebrac":
                config.set_path(path, value)
    return config


def score(algo: str, seed: int, dataset: Path, out: Path, settings: dict[str, Any]) -> float:
    """Mean return of the last evaluation of one training."""
    done = out / f"{algo}_{seed}.json"
    if not done.exists():
        result = train(config_of(algo, seed, dataset, out, settings))
        returns = [x for key, x in result.metrics.items() if key.startswith("Rollout/Return/")]
        done.write_text(json.dumps({"return": returns[-1], "run": result.run_dir}))
    value: float = json.loads(done.read_text())["return"]
    return value


def row(algo: str, scores: list[float]) -> str:
    """One line of the table."""
    mean = statistics.fmean(scores)
    half = 0.0
    if len(scores) > 1:
        error = statistics.stdev(scores) / len(scores) ** 0.5
        half = T_975[min(len(scores) - 2, len(T_975) - 1)] * error
    each = " ".join(f"{x:.0f}" for x in scores)
    return f"{algo:<10}{mean:>10.0f}  [{mean - half:.0f}, {mean + half:.0f}]  ({each})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("rebrac_vs_td3_bc"))
    parser.add_argument("--dataset", type=Path, help="the quickstart's file; made if left out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--algos", nargs="+", default=["td3_bc", "rebrac"])
    parser.add_argument("--set", dest="settings", nargs="+", default=[], help="of rebrac")
    args = parser.parse_args()
    out = args.out.absolute()
    dataset = args.dataset or out / f"{DATASET.replace('-', '_')}.hdf5"
    if not dataset.exists():
        make_dataset(DATASET, dataset, n_expert=FULL.transitions, n_medium=FULL.transitions)
    settings = dict(map(parse_set, args.settings))
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[float]] = {algo: [] for algo in args.algos}
    for seed in args.seeds:
        for algo in args.algos:
            found[algo].append(score(algo, seed, dataset.absolute(), out, settings))
    print(f"{'algorithm':<10}{'return':>10}  95 % interval  (each seed's)")
    for algo, scores in found.items():
        print(row(algo, scores))


if __name__ == "__main__":
    main()
