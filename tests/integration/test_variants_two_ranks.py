"""Every variant on two ranks: replicas stay equal, and get one worker's result.

One pair of gloo processes computes them all, so that starting it is paid once. Noise is off, as
the result then follows from the samples alone, however they are cut.
"""

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
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

from raymimic.algo import Algo
from raymimic.training.grad_sync import GradientSync
from raymimic.utils.tensor_utils import map_tensor

INDICES = [0, 11, 30, 55, 80]
STEPS = 3
DEADLINE_S = 240
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
        timeout=timedelta(seconds=60),
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
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ranks")
    pair = mp.spawn(_rank, (str(folder), list(variants())), nprocs=2, join=False)
    deadline = time.monotonic() + DEADLINE_S
    try:
        while not pair.join(timeout=max(0.0, deadline - time.monotonic())):
            assert time.monotonic() < deadline, f"not done in {DEADLINE_S} s"
    finally:
        for process in pair.processes:
            process.kill()
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("name", variants())
def test_two_ranks_give_the_one_worker_result(name: str, found: dict[str, Any]) -> None:
    assert found[name]["error"] is None
    assert found[name]["difference"] < 1e-9
