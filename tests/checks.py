"""Comparisons of a command's outcome."""

from typing import Any

import torch
from run_records import metrics_of
from tiny import Ran

from raymimic.checkpoints.reading import load_dict_from_checkpoint


def state_of(ran: Ran) -> dict[str, Any]:
    """All of a finished training's last checkpoint that does not tell the time."""
    assert ran.status == 0, ran.err
    return state_in(ran.result["last_checkpoint"])


def state_in(checkpoint: str) -> dict[str, Any]:
    """All of a checkpoint that does not tell the time."""
    ckpt = load_dict_from_checkpoint(checkpoint)
    return {
        "model": ckpt["model"],
        "training_state": ckpt["raymimic"]["training_state"],
        "step": ckpt["raymimic"]["step"],
        "epoch": ckpt["variable_state"]["epoch"],
        "best_return": ckpt["variable_state"]["best_return"],
        "history": metrics_of(checkpoint),
    }


def assert_same(one: Any, other: Any, path: str = "") -> None:
    """Nested states are equal bit by bit."""
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert list(one) == list(other), path
        for key in one:
            assert_same(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{path}/{i}")
    else:
        assert one == other, path


def assert_refused(ran: Ran, *names: str) -> None:
    """The command ended with status 2 and one line, which holds each of the names."""
    assert ran.status == 2, ran
    assert ran.err.startswith("raymimic: error: "), ran.err
    assert ran.err.endswith("\n")
    assert ran.err.count("\n") == 1, ran.err
    assert "Traceback" not in ran.out
    for name in names:
        assert name in ran.err
