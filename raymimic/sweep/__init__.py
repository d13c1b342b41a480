"""Sweeps: many trainings over hyperparameters and seeds, compared fairly."""

from typing import TYPE_CHECKING, Any

__all__ = ["SweepResult", "SweepSpec", "run"]

if TYPE_CHECKING:
    from raymimic.sweep.spec import SweepSpec
    from raymimic.sweep.tuner import SweepResult, run


def __getattr__(name: str) -> Any:
    """Ray and torch load when something needs them."""
    if name in ("run", "SweepResult"):
        from raymimic.sweep import tuner

        return getattr(tuner, name)
    if name == "SweepSpec":
        from raymimic.sweep.spec import SweepSpec

        return SweepSpec
    raise AttributeError(f"module 'raymimic.sweep' has no attribute '{name}'")
