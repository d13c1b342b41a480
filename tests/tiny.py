"""A training of a second, and ways to run it."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from waiting import DEADLINE_S

from raymimic.config import BaseConfig, config_factory
from raymimic.config.base_config import sections_named

PROGRAMS = Path(__file__).parent / "programs"  # which tests run in processes of their own
OBS_DIM, ACTION_DIM = 11, 3  # Hopper-v5's
DEMOS, STEPS = 6, 20

LAYERS = {
    "td3_bc": ["algo.actor.layer_dims=[8,8]", "algo.critic.layer_dims=[8,8]"],
    "bc": ["algo.actor_layer_dims=[8,8]"],
    "diffusion_policy": ["algo.unet.down_dims=[8,16]", "algo.unet.diffusion_step_embed_dim=8"],
    "gl": ['observation.modalities.subgoal.low_dim=["flat"]'],
}
SETTINGS = [
    'observation.modalities.obs.low_dim=["flat"]',
    "experiment.epoch_every_n_steps=5",
    "experiment.rollout.enabled=false",
    "experiment.logging.log_tb=false",
    "mlflow.enabled=false",
    "ray.threads_per_worker=1",
    "train.batch_size=16",
    "train.num_epochs=2",
    "train.cuda=false",
]

# Parts of an algorithm's settings that make its networks small and its actions quick.
SMALL = {
    "layer_dims": [8, 8],
    "rnn.hidden_dim": 8,
    "down_dims": [8, 16],
    "diffusion_step_embed_dim": 8,
    "num_inference_timesteps": 3,
    "num_samples": 5,
    "num_action_samples_rollout": 5,
    "warmup_steps": 0,
}


def small_config(
    algo: str, keys: Sequence[str] = ("flat",), goals: Sequence[str] = (), **settings: Any
) -> BaseConfig:
    """Any algorithm's config with small networks, on low-dimensional observations.

    Args:
        algo: its name.
        keys: observations of every part; subgoals are made of them too.
        goals: keys of the goals of every part, but for actors that follow subgoals.
        settings: by dotted keys.
    """
    config = config_factory(algo)
    for path, _ in list(config.algo.leaves(optional=True)):
        for key, value in SMALL.items():
            if path.endswith(key):
                config.algo.set_path(path, value)
    for path, groups in sections_named(config.observation, "modalities"):
        groups.obs.low_dim = list(keys)
        if "subgoal" in groups:
            groups.subgoal.low_dim = list(keys)
        groups.goal.low_dim = list(keys if path == "actor.modalities" else goals)
    for key, value in settings.items():
        config.set_path(key, value)
    return config


def write_hopper(path: Path, seed: int = 0) -> Path:
    """Six demos of 20 random steps that pass for Hopper-v5's; masks `train` (5) and `valid` (1)."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Hopper-v5", "type": 2, "env_kwargs": {}})
        data.attrs["total"] = DEMOS * STEPS
        for i in range(DEMOS):
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = STEPS
            obs = rng.normal(size=(STEPS + 1, OBS_DIM)).astype(np.float32)
            demo["obs/flat"], demo["next_obs/flat"] = obs[:-1], obs[1:]
            demo["actions"] = rng.uniform(-1, 1, (STEPS, ACTION_DIM)).astype(np.float32)
            demo["rewards"] = rng.normal(size=STEPS)
            demo["dones"] = np.eye(1, STEPS, STEPS - 1, dtype=np.int64)[0]
        names = [f"demo_{i}" for i in range(DEMOS)]
        file["mask/train"] = np.array(names[:-1], dtype="S")
        file["mask/valid"] = np.array(names[-1:], dtype="S")
    return path


def train_args(dataset: Path | str, *settings: str, algo: str = "td3_bc") -> list[str]:
    """`train` in this process, with tiny networks and no records; further settings win."""
    return [
        *("train", "--algo", algo, "--dataset", str(dataset), "--workers", "0"),
        *("--set", *LAYERS[algo], *SETTINGS, *settings),
    ]


def start_ray(attempts: int = 3, **options: Any) -> None:
    """Two CPUs, as commands start them; again where a busy machine takes longer than Ray waits."""
    import ray

    from raymimic.cluster.ray_internals import no_helpers

    for left in reversed(range(attempts)):
        try:
            with no_helpers():
                ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, **options)
            return
        except Exception:
            ray.shutdown()
            if not left:
                raise


@dataclass(frozen=True)
class Ran:
    """The outcome of a command."""

    status: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The last line, which `--json` writes."""
        return json.loads(self.out.splitlines()[-1])


@contextlib.contextmanager
def process_as_it_was() -> Iterator[None]:
    """Undoes afterwards the changes of a command to its process."""
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(signum) for signum in handled]
    path = [*sys.path]
    try:
        yield
    finally:
        sys.path[:] = path
        for signum, handler in zip(handled, handlers, strict=True):
            signal.signal(signum, handler)


def train_here(folder: Path, *args: str) -> Path:
    """Runs a `train` in this process, for fixtures of modules: the `cli` fixture is a test's.

    Args:
        folder: where it runs.
        args: those of `train_args`, and more of them.

    Returns:
        its run folder.
    """
    from raymimic.cli import main

    before = set(folder.glob("*/*/*/config.json"))
    with process_as_it_was(), contextlib.chdir(folder), pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 0
    (config,) = set(folder.glob("*/*/*/config.json")) - before
    return config.parent


def run_process(*args: str, cwd: Path) -> Ran:
    """Python in a process of its own."""
    done = subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)
