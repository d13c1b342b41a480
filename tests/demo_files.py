"""Writes small datasets in robomimic's schema."""

import json
from pathlib import Path

import h5py
import numpy as np


def write_demos(path: Path, lengths=(5, 7, 4), *, names=None, masks=None, next_obs=True) -> Path:
    """Demos of observation ``flat [n, 3]`` (rows numbered through) and actions ``[n, 2]``."""
    rng = np.random.default_rng(0)
    row = 0
    with h5py.File(path, "w") as handle:
        data = handle.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Walker2d-v5", "type": 2})
        data.attrs["total"] = sum(lengths)
        names = names or [f"demo_{i}" for i in range(len(lengths))]
        for name, n in zip(names, lengths, strict=True):
            demo = data.create_group(name)
            demo.attrs["num_samples"] = n
            obs = row + np.arange(n + 1)[:, None] + np.array([0.0, 0.25, 0.5])
            demo["obs/flat"] = obs[:-1]
            if next_obs:
                demo["next_obs/flat"] = obs[1:]
            demo["actions"] = rng.uniform(-1, 1, (n, 2))
            demo["rewards"] = np.arange(n, dtype=np.float64)
            demo["dones"] = np.eye(1, n, n - 1)[0]
            row += n
        for key, members in (masks or {}).items():
            handle[f"mask/{key}"] = np.array(members, dtype="S")
    return path
