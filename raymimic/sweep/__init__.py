"""Sweeps: many trainings over hyperparameters and seeds, compared fairly.

Inside, imports go one way: `spec` (a sweep as data), `outcome` (results, tables, pictures),
`trials` (running them under Ray Tune), then `cost` and `tuner`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raymimic.sweep.spec.sweep_file import sweep_from_dict, sweep_from_file
    from raymimic.sweep.spec.sweep_spec import SweepSpec
    from raymimic.sweep.tuner import SweepResult, run

__all__ = ["SweepResult", "SweepSpec", "run", "sweep_from_dict", "sweep_from_file"]

_MODULES = {
    "SweepResult": "tuner",
    "SweepSpec": "spec.sweep_spec",
    "run": "tuner",
    "sweep_from_dict": "spec.sweep_file",
    "sweep_from_file": "spec.sweep_file",
}


def __getattr__(name: str) -> Any:
    """Imports a name's module on first use, as Ray and torch take seconds to load."""
    if name not in _MODULES:
        raise AttributeError(f"module 'raymimic.sweep' has no attribute '{name}'")
    return getattr(import_module(f"raymimic.sweep.{_MODULES[name]}"), name)
