"""Loads a logged model for MLflow: `mlflow.pyfunc.load_model` and `mlflow models serve`.

The file `MLmodel` of such a model names this module. Nothing here imports MLflow, and nothing of
`MLmodel` is read: the checkpoint alone says what the policy is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raymimic.checkpoints.policy import policy_from_checkpoint
from raymimic.errors import CheckpointError, EnvError

if TYPE_CHECKING:
    from raymimic.algo import RolloutPolicy

# Inputs of this beginning are goals.
GOAL = "goal/"


class PolicyModel:
    """A policy as a model of MLflow.

    Args:
        policy: the policy.
    """

    def __init__(self, policy: RolloutPolicy) -> None:
        self._policy = policy
        self._rows: int | None = None  # episodes under way

    def predict(
        self, model_input: Mapping[str, Any], params: Mapping[str, Any] | None = None
    ) -> NDArray[Any]:
        """Chooses an action for each row.

        Args:
            model_input: raw observations `[B, *shape]` by key; goals as `goal/<key>`.
            params: `start_episode`: false where these rows go on with the episodes of the call
                before, which a policy with a memory needs. By default each call begins episodes.

        Returns:
            actions `[B, A]` as the environment takes them.

        Raises:
            EnvError: an observation is missing, or the rows are not as many as before.
        """
        inputs = {str(key): np.asarray(value) for key, value in model_input.items()}
        goal = {k.removeprefix(GOAL): v for k, v in inputs.items() if k.startswith(GOAL)}
        sizes = {len(value) for value in inputs.values()}
        if len(sizes) != 1:
            raise EnvError(f"the inputs have {sorted(sizes)} rows: give each the same number")
        (rows,) = sizes
        if (params or {}).get("start_episode", True):
            self._policy.start_episode()
            self._rows = rows
        elif rows != self._rows:
            raise EnvError(
                f"{rows} rows cannot go on with {self._rows or 0} episodes: begin with "
                "start_episode=true"
            )
        goals = goal if self._policy.goal_keys else None
        return self._policy(inputs, goals, batched_ob=True)

    def get_raw_model(self) -> RolloutPolicy:
        """The policy itself, with `start_episode` and all else that it can."""
        return self._policy


def _load_pyfunc(path: str) -> PolicyModel:
    """Loads a model; MLflow calls this by its name.

    Args:
        path: the checkpoint, or the folder in which it lies.

    Raises:
        CheckpointError: there is none, or it cannot be read.
        ModuleNotImportedError: it names a module of the user's that is not imported yet.
    """
    place = Path(path)
    if place.is_dir():
        found = sorted([*place.glob("*.pth"), *place.glob("data/*.pth")])
        if len(found) != 1:
            raise CheckpointError(
                f"'{path}' holds {len(found)} checkpoints (*.pth), and a model has one"
            )
        (place,) = found
    policy, _ = policy_from_checkpoint("cpu", str(place))
    return PolicyModel(policy)
