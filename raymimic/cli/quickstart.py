"""`raymimic quickstart`: makes data, trains TD3-BC on it, compares the policy with the data."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raymimic.cli.shared import seed_of_32_bits
from raymimic.errors import TrainingError
from raymimic.terminal import duration, shown

if TYPE_CHECKING:
    from raymimic.config import BaseConfig
    from raymimic.rollout.report import EvaluationReport
    from raymimic.training.trainer import TrainResult

DATASET = "walker2d-medium-expert"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `raymimic quickstart`."""
    parser.add_argument("--output-dir", default="quickstart", help="folder for all results")
    parser.add_argument("--seed", type=seed_of_32_bits, default=1, help="seed of the training")
    parser.add_argument(
        "--fast",
        action="store_true",
        help="use a tiny dataset and a short training, to check the installation",
    )


def run(args: argparse.Namespace) -> None:
    """Runs the quickstart."""
    quickstart(Path(args.output_dir), seed=args.seed, fast=args.fast)


@dataclass(frozen=True)
class Scale:
    """How large a quickstart is.

    Attributes:
        transitions: number of the expert's, and of the medium policy's.
        epochs: of training.
        steps: gradient steps in each epoch.
        rate: epochs between evaluations.
        rollouts: episodes of an evaluation while training.
        episodes: episodes of the last evaluation.
    """

    transitions: int
    epochs: int
    steps: int
    rate: int
    rollouts: int
    episodes: int


FULL = Scale(transitions=100_000, epochs=15, steps=1000, rate=3, rollouts=16, episodes=50)
FAST = Scale(transitions=4_000, epochs=4, steps=50, rate=2, rollouts=4, episodes=8)


def quickstart(output_dir: Path, seed: int = 1, fast: bool = False) -> float:
    """Makes a dataset, trains TD3-BC on it with two workers, and prints the policy's score.

    Args:
        output_dir: folder for dataset and results; an existing complete dataset is used again.
        seed: of the training.
        fast: a tiny version that shows that everything works but learns little.

    Returns:
        the learned policy's mean return as a fraction of the expert data's.
    """
    from raymimic.recording.make import make_dataset
    from raymimic.rollout.report import NewEpisodes, evaluate_checkpoint
    from raymimic.training.trainer import train

    begin, scale = time.monotonic(), FAST if fast else FULL
    output_dir = output_dir.absolute()
    # A fast dataset must not pass for the whole one.
    name = DATASET.replace("-", "_") + ("_fast" if fast else "")
    dataset = output_dir / f"{name}.hdf5"
    if dataset.exists():
        print(f"dataset: {shown(dataset)} is there already")
    else:
        print(f"recording {2 * scale.transitions:,} transitions to {shown(dataset)}", flush=True)
        make_dataset(DATASET, dataset, n_expert=scale.transitions, n_medium=scale.transitions)
    result = train(quickstart_config(dataset, output_dir, seed, scale))
    if result.best_checkpoint is None:
        raise TrainingError("the quickstart's training left no evaluated checkpoint")
    print(f"evaluating the best checkpoint on {scale.episodes} new episodes", flush=True)
    report = evaluate_checkpoint(
        result.best_checkpoint,
        NewEpisodes(scale.episodes, seed),
        video=str(Path(result.run_dir) / "videos" / "best.mp4"),
    )
    fraction = _print_results(dataset, result, report)
    print(f"\nquickstart took {duration(time.monotonic() - begin)}")
    return fraction


def quickstart_config(dataset: Path, output_dir: Path, seed: int, scale: Scale) -> BaseConfig:
    """The quickstart's training: two workers, evaluated by Ray actors while it runs."""
    from raymimic.config import config_factory

    config = config_factory("td3_bc")
    with config.values_unlocked():
        config.experiment.name = "quickstart"
        config.train.data = str(dataset)
        config.train.output_dir = str(output_dir)
        config.train.hdf5_filter_key = "train"
        config.train.hdf5_normalize_obs = True
        config.train.seed = seed
        config.train.cuda = False  # it asks for two workers, and few have two GPUs
        config.train.batch_size = 256
        config.train.num_epochs = scale.epochs
        config.experiment.epoch_every_n_steps = scale.steps
        config.experiment.rollout.rate = scale.rate
        config.experiment.rollout.n = scale.rollouts
        config.experiment.rollout.horizon = 1000
        config.experiment.render_video = False  # one film of the best checkpoint, at the end
        config.experiment.save.every_n_epochs = None
        config.algo.actor.layer_dims = (256, 256)
        config.algo.critic.layer_dims = (256, 256)
        # These make minutes enough: multi-step targets, which spread rewards faster than tau does,
        # more weight on cloning until Q is known, and a large learning rate that decays.
        config.algo.n_step = config.train.seq_length = 5
        config.algo.alpha = 0.5
        for net in ("actor", "critic"):
            learning_rate = config.algo.optim_params[net].learning_rate
            learning_rate.initial = 1e-3
            learning_rate.decay_factor = 0.3
            learning_rate.epoch_schedule = [scale.epochs * part // 20 for part in (9, 13, 17)]
        config.ray.num_workers = 2
        config.ray.cpus_per_worker = 0.5
        config.ray.cpus_per_actor = 0.5
    return config


def _print_results(dataset: Path, result: TrainResult, report: EvaluationReport) -> float:
    import numpy as np

    from raymimic.data.metadata import read_metadata
    from raymimic.rollout.stats import bootstrap_interval, normalized_score

    meta = read_metadata(dataset)
    random_return, expert_return = meta.attrs["random_return"], meta.attrs["expert_return"]
    rows = [(f"{level} data", data_returns(dataset, level)) for level in ("medium", "expert")]
    rows.append(("learned policy", [e.episode_return for e in report.episodes]))
    heads = f"{'mean return':>12}  {'95 % interval':<16}{'score':>7}{'episodes':>10}"
    print(f"\n{report.env:<16}{heads}")
    for label, returns in rows:
        mean, (low, high) = float(np.mean(returns)), bootstrap_interval(returns)
        interval = f"[{low:.0f}, {high:.0f}]"
        score = normalized_score(mean, random_return, expert_return)
        print(f"{label:<16}{mean:>12.0f}  {interval:<16}{score:>7.1f}{len(returns):>10}")
    print(f"score: 0 = random policy ({random_return:.0f}), 100 = expert ({expert_return:.0f})\n")
    print(f"checkpoint: {shown(report.checkpoint)}")
    print(f"picture:    {shown(str(result.learning_curve))}")
    print(f"video:      {shown(report.video) if report.video else f'none, as {report.no_video}'}")
    print(f"MLflow:     {result.mlflow_url or result.mlflow_command}")
    return float(np.mean(rows[2][1]) / np.mean(rows[1][1]))


def data_returns(dataset: Path, filter_key: str) -> Sequence[float]:
    """The return of each demo of a filter key."""
    from raymimic.data.columns import ColumnRequest, DemoSource
    from raymimic.data.layout import scan
    from raymimic.data.returns import demo_returns

    structure = ColumnRequest((), dataset_keys=(), load_next_obs=False)
    return demo_returns(scan([DemoSource(str(dataset), filter_key)], structure).demos)
