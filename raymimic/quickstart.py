"""`raymimic quickstart`: from nothing to a trained policy that is compared with its data."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from raymimic.config import BaseConfig, config_factory
from raymimic.data.make import make_dataset
from raymimic.data.schema import filter_keys, open_dataset, read_metadata
from raymimic.errors import TrainingError
from raymimic.rollout.report import Report, evaluate_checkpoint
from raymimic.rollout.stats import bootstrap_interval, normalized_score
from raymimic.training.progress import duration
from raymimic.training.trainer import TrainResult, train

DATASET = "walker2d-medium-expert"


@dataclass(frozen=True)
class Scale:
    """How large a quickstart is.

    Attributes:
        transitions: of the expert, and as many of the medium policy.
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
    """Makes a dataset, trains TD3-BC on it with two workers, and prints how good it is.

    Args:
        output_dir: where dataset and results go; a complete dataset that lies there is used again.
        seed: of the training.
        fast: a tiny version, which shows that everything works but learns little.

    Returns:
        the learned policy's mean return as a fraction of the expert data's.
    """
    begin, scale = time.monotonic(), FAST if fast else FULL
    output_dir = output_dir.absolute()
    # A fast dataset must not pass for the whole one.
    name = DATASET.replace("-", "_") + ("_fast" if fast else "")
    dataset = output_dir / f"{name}.hdf5"
    if dataset.exists():
        print(f"dataset: {dataset} is there already")
    else:
        print(f"recording {2 * scale.transitions:,} transitions to {dataset}", flush=True)
        make_dataset(DATASET, dataset, n_expert=scale.transitions, n_medium=scale.transitions)
    result = train(quickstart_config(dataset, output_dir, seed, scale))
    if result.best_checkpoint is None:
        raise TrainingError("the quickstart's training left no evaluated checkpoint")
    print(f"evaluating the best checkpoint on {scale.episodes} new episodes", flush=True)
    report = evaluate_checkpoint(
        result.best_checkpoint,
        episodes=scale.episodes,
        seed=seed,
        video=str(Path(result.run_dir) / "videos" / "best.mp4"),
    )
    fraction = _print_results(dataset, result, report)
    print(f"\nquickstart took {duration(time.monotonic() - begin)}")
    return fraction


def quickstart_config(dataset: Path, output_dir: Path, seed: int, scale: Scale) -> BaseConfig:
    """The quickstart's training: two workers, evaluated by Ray actors while it goes on."""
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
        # What makes minutes enough: multi-step targets, which spread rewards faster than tau does,
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


def _print_results(dataset: Path, result: TrainResult, report: Report) -> float:
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
    print(f"checkpoint: {report.checkpoint}")
    print(f"picture:    {result.learning_curve}")
    print(f"video:      {report.video or f'none, as {report.no_video}'}")
    print(f"MLflow:     {result.mlflow_command}")
    return float(np.mean(rows[2][1]) / np.mean(rows[1][1]))


def data_returns(dataset: Path, filter_key: str) -> Sequence[float]:
    """The return of each demo of a filter key."""
    with open_dataset(dataset) as handle:
        return [float(_rewards(handle, name).sum()) for name in filter_keys(handle)[filter_key]]


def _rewards(handle: h5py.File, demo: str) -> np.ndarray:
    rewards: np.ndarray = handle["data"][demo]["rewards"][()]
    return rewards
