"""Runs the Python blocks of pages, in the current folder: `run_pages.py PAGE …`.

The folder holds `demos.hdf5`, and `tests/` is on the import path. The blocks of a page share one
namespace, as those of a reader do.
"""

import shutil
import sys
import time
from typing import Any

import numpy as np
from pages import blocks
from tiny import OBS_DIM, SETTINGS

import raymimic
from raymimic.config import BaseConfig
from raymimic.config.base_config import parse_set
from raymimic.training.trainer import TrainResult, train


class Once:
    """True once: a robot that runs for one step."""

    left = True

    def __bool__(self) -> bool:
        left, self.left = self.left, False
        return left


def train_small(config: BaseConfig) -> TrainResult:
    """Trains for a second, in this process, and leaves the checkpoint that other pages name."""
    with config.values_unlocked():
        for setting in (*SETTINGS, "ray.num_workers=0"):
            config.set_path(*parse_set(setting))
    result = train(config)
    shutil.copy(result.last_checkpoint, "model_epoch_15.pth")
    return result


raymimic.train = train_small
for page in sys.argv[1:]:
    began = time.monotonic()
    names: dict[str, Any] = {"running": Once(), "obs": {"flat": np.zeros(OBS_DIM)}}
    for block in blocks(page, "python"):
        exec(compile("\n" * block.line + block.text, page, "exec"), names)
    print(f"{page}: {time.monotonic() - began:.1f} s", flush=True)
