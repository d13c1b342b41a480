"""A scripted expert for robosuite's Lift."""

from __future__ import annotations

from typing import Any

import numpy as np

from raymimic.envs.env_base import Array, EnvBase, EnvType, Observation
from raymimic.recording.experts.expert import Expert, unknown_task

TASKS = {"lift": "Lift"}

_GAIN = 10.0  # per metre; the arm moves by at most 5 cm for an action of 1
_ABOVE = 0.06  # metres above the cube, before the fingers go down
_SIDEWAYS, _NEAR = 0.01, 0.012  # metres
_LOST = 0.04
_CLOSING = 8  # steps
_OPEN, _CLOSED = -1.0, 1.0


class RobosuiteExpert(Expert):
    """Lifts the cube with a Panda arm: goes above it, down, closes the gripper, goes up.

    A proportional controller of the hand's position; its direction stays as it is. If the cube
    slips, the arm begins again. The noise is the standard deviation of Gaussian noise on the six
    components that move the arm.
    """

    default_noise = 0.1
    horizon = 200
    low_dim = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object")
    proprioception = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")

    def __init__(self, task: str, noise: float | None = None) -> None:
        super().__init__(task, noise)
        if task not in TASKS:
            raise unknown_task("robosuite", task, TASKS)

    @property
    def env_meta(self) -> dict[str, Any]:
        """The task as in robomimic's data sets: a Panda at 20 Hz, a reward once it is solved."""
        kwargs = {"robots": ["Panda"], "control_freq": 20, "reward_shaping": False}
        return {
            "env_name": TASKS[self.task],
            "type": EnvType.ROBOSUITE_TYPE,
            "env_kwargs": kwargs,
        }

    def start(self, env: EnvBase, seed: int, rng: np.random.Generator) -> Observation:
        """Begins an episode above the cube."""
        self._down, self._closing = False, 0
        return super().start(env, seed, rng)

    def act(self, env: EnvBase, obs: Observation, rng: np.random.Generator) -> Array:
        """The action `[7]`: position, rotation and gripper."""
        to_cube = obs["object"][:3] - obs["robot0_eef_pos"]
        if self._closing and np.linalg.norm(to_cube) > _LOST:
            self._down, self._closing = False, 0
        action = np.zeros(7)
        if self._closing >= _CLOSING:
            action[2] = 1.0
        elif self._down:
            action[:3] = _GAIN * to_cube
            self._closing += int(self._closing > 0 or np.linalg.norm(to_cube) < _NEAR)
        else:
            action[:3] = _GAIN * (to_cube + np.array([0.0, 0.0, _ABOVE]))
            self._down = bool(np.linalg.norm(to_cube[:2]) < _SIDEWAYS)
        action[:6] = self.noisy(action[:6], rng)
        action[6] = _CLOSED if self._closing else _OPEN
        return action
