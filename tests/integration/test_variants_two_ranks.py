"""Every variant on two ranks: replicas stay equal, and get one worker's result.

One pair of gloo processes computes them all, so that starting it is paid once. Noise is off, as
the result then follows from the samples alone, however they are cut.
"""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_two_ranks
from reference import (
    centred_rng,
    fill,
    golden_batch,
    make,
    small_config,
    state,
    train_step,
    variants,
)
from waiting import DEADLINE_S

from raymimic.algo import Algo
from raymimic.tensors import map_tensor
from raymimic.training.grad_sync import GradientSync

pytestmark = pytest.mark.slow

INDICES = [0, 11, 30, 55, 80]
STEPS = 3
CUTS = (slice(0, 3), slice(3, 5))  # ranks of different sizes


def trained(name: str, rank: int | None) -> Algo:
    """A variant after some steps, of one rank of two or (None) of one worker alone."""
    config = small_config(name, goals=True, **{"train.dtype": "float64"})
    algo = fill(make(config))
    algo.set_train()
    raw = golden_batch(config, INDICES)
    if rank is not None:
        cut = CUTS[rank]
        raw = map_tensor(raw, lambda x: x[cut])
        algo.grad_sync = GradientSync(world_size=2)
        algo.grad_sync.weight = (cut.stop - cut.start) / len(INDICES)
    with centred_rng():
        for _ in range(STEPS):
            train_step(algo, raw)
    return algo


def _rank(rank: int, folder: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=DEADLINE_S),
    )
    found: dict[str, Any] = {}
    for name in names:
        try:
            algo = trained(name, rank)
            algo.grad_sync.check_replicas(algo.nets, epoch=1)
            error = None
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
        found[name] = {"error": error}
        dist.barrier()
        if rank == 0 and error is None:
            ours, one = state(algo), state(trained(name, None))
            found[name]["difference"] = max(
                ((ours[k] - x).abs().max() / x.abs().max().clamp(min=1e-6)).item()
                for k, x in one.items()
                if x.is_floating_point()
            )
    dist.destroy_process_group()
    if rank == 0:
        threads = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
        found["threads"] = [name for name in threads if "gloo" in name]
        Path(folder, "found.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ranks")
    run_two_ranks(_rank, str(folder), list(variants()))
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("name", variants())
def test_two_ranks_give_the_one_worker_result(name: str, found: dict[str, Any]) -> None:
    assert found[name]["error"] is None
    assert found[name]["difference"] < 1e-9


def test_no_thread_of_a_process_group_outlives_it(found: dict[str, Any]) -> None:
    """One that did would now and then abort the rank when its interpreter exits."""
    assert found["threads"] == []
