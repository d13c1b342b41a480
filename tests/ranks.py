"""Ranks of one training, as processes of a test."""

import time
from collections.abc import Callable

import torch.multiprocessing as mp
from waiting import DEADLINE_S


def run_two_ranks(rank: Callable[..., None], *args: object) -> None:
    """Runs `rank(number, *args)` in two processes, and ends them after the deadline."""
    run_ranks(2, rank, *args)


def run_ranks(count: int, rank: Callable[..., None], *args: object) -> None:
    """Runs `rank(number, *args)` in some processes, and ends them after the deadline."""
    ranks = mp.spawn(rank, args, nprocs=count, join=False)
    deadline = time.monotonic() + DEADLINE_S
    try:
        while not ranks.join(timeout=max(0.0, deadline - time.monotonic())):
            assert time.monotonic() < deadline, f"not done in {DEADLINE_S} s"
    finally:
        for process in ranks.processes:
            process.kill()
