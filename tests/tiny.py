"""A training of a second, and what runs it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

OBS_DIM, ACTION_DIM = 11, 3  # Hopper-v5's
DEMOS, STEPS = 6, 20

LAYERS = {
    "td3_bc": ["algo.actor.layer_dims=[8,8]", "algo.critic.layer_dims=[8,8]"],
    "bc": ["algo.actor_layer_dims=[8,8]"],
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


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """What `--json` put on the last line."""
        return json.loads(self.out.splitlines()[-1])


def run_process(*args: str, cwd: Path) -> Ran:
    """Python in a process of its own."""
    done = subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)
