"""Writes small datasets of images in robomimic's schema."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

LENGTHS = (30, 40, 30)


def write_cameras(
    path: Path,
    lengths: Sequence[int] = LENGTHS,
    sizes: Sequence[tuple[int, int]] = ((12, 10), (8, 8)),
    next_obs: bool = True,
    **options: Any,
) -> Path:
    """Demos of cameras `camera_0`, … `uint8 [H, W, 3]`, `flat [3]` and actions `[2]`.

    Pixels differ from frame to frame; the first pixel's colours are the number of the row in the
    file, in base 256.

    Args:
        path: of the file.
        lengths: steps of each demo.
        sizes: height and width of each camera.
        next_obs: whether they are written.
        options: how images are stored: `chunks`, `compression`, …
    """
    rng = np.random.default_rng(0)
    row = 0
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({})
        for i, n in enumerate(lengths):
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = n
            for camera, (height, width) in enumerate(sizes):
                frames = rng.integers(0, 256, (n + 1, height, width, 3), dtype=np.uint8)
                frames[:, 0, 0] = _digits(row + np.arange(n + 1))
                demo.create_dataset(f"obs/camera_{camera}", data=frames[:-1], **options)
                if next_obs:
                    demo.create_dataset(f"next_obs/camera_{camera}", data=frames[1:], **options)
            flat = rng.normal(size=(n + 1, 3)).astype(np.float32)
            demo["obs/flat"] = flat[:-1]
            if next_obs:
                demo["next_obs/flat"] = flat[1:]
            demo["actions"] = rng.uniform(-1, 1, (n, 2)).astype(np.float32)
            demo["rewards"] = rng.normal(size=n)
            demo["dones"] = np.eye(1, n, n - 1, dtype=np.int64)[0]
            row += n
        names = [f"demo_{i}" for i in range(len(lengths))]
        file["mask/train"] = np.array(names[:-1], dtype="S")
        file["mask/valid"] = np.array(names[-1:], dtype="S")
    return path


def _digits(rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    return np.stack([rows // 256**2, rows // 256, rows], axis=-1).astype(np.uint8)


def replace_key(path: Path, key: str, change: Any, demo: int | None = None, **options: Any) -> None:
    """Writes an observation anew in each demo, or in one.

    Args:
        path: of the file.
        key: under `obs` and `next_obs`.
        change: maps the former values `[N, ...]` to the new ones.
        demo: number of the only demo.
        options: how the new values are stored.
    """
    with h5py.File(path, "r+") as file:
        names = [f"data/demo_{demo}"] if demo is not None else [f"data/{k}" for k in file["data"]]
        for name in names:
            for group in ("obs", "next_obs"):
                if f"{name}/{group}/{key}" in file:
                    values = file[f"{name}/{group}/{key}"][()]
                    del file[f"{name}/{group}/{key}"]
                    file.create_dataset(f"{name}/{group}/{key}", data=change(values), **options)
