"""Records of trainings and sweeps: MLflow, TensorBoard, a user's trackers, pictures.

Only drivers import this room. `tracker.py` holds the protocol, `registry.py` the trackers.
"""

from typing import TYPE_CHECKING, Any

from raymimic.tracking.tracker import RunInfo, Tracker

if TYPE_CHECKING:
    from raymimic.tracking.registry import register_tracker

__all__ = ["RunInfo", "Tracker", "register_tracker"]


def __getattr__(name: str) -> Any:
    """Imports the registry on first use, as its trackers import their share of this room."""
    if name == "register_tracker":
        from raymimic.tracking.registry import register_tracker

        return register_tracker
    raise AttributeError(f"module 'raymimic.tracking' has no attribute '{name}'")
