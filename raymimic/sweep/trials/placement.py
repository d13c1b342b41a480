"""Watches whether the trials of a sweep still have a cluster to run on."""

from collections.abc import Callable
from typing import Any

from ray.tune import Callback

from raymimic.cluster.watch import ClusterWatch, RoomWatch


class PlacementWatch(Callback):
    """Ends a sweep whose trials can no longer run.

    Args:
        cluster: notices the end of the cluster.
        bundle: resources that a trial reserves.
        say: prints a line.
    """

    def __init__(
        self, cluster: ClusterWatch, bundle: dict[str, float], say: Callable[[str], None]
    ) -> None:
        self._cluster = cluster
        self._room = RoomWatch(bundle, "a trial", cluster.patience_s, say)

    def __getstate__(self) -> dict[str, Any]:
        """An empty state: Ray Tune stores its callbacks for a restore that is not used."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Checks cluster and room in each round of Ray Tune's loop.

        Raises:
            ClusterLostError: the cluster has ended, or no node with room for a trial came in time.
        """
        self._cluster.check()
        if any(trial.status == "PENDING" for trial in trials):
            self._room.check()
