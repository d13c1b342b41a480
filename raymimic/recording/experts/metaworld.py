"""The scripted policies of Meta-World (McLean et al. 2025, arXiv:2505.11289): one for each task."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from raymimic.envs.env_base import Array, EnvBase, Observation
from raymimic.recording.experts.expert import Expert, unknown_task


class MetaworldExpert(Expert):
    """Plays one of Meta-World's 50 tasks, such as `push-v3`, by the policy that ships with it.

    The noise is the standard deviation of Gaussian noise on the action; the hand moves by at most
    1 cm for an action of 1.
    """

    default_noise = 0.1
    low_dim = ("flat",)
    proprioception = ("hand_pos", "gripper")

    def __init__(self, task: str, noise: float | None = None) -> None:
        super().__init__(task, noise)
        policies: dict[str, Any] = import_module("metaworld.policies").ENV_POLICY_MAP
        if task not in policies:
            raise unknown_task("Meta-World", task, policies)
        self._policy_class = policies[task]

    @property
    def env_meta(self) -> dict[str, Any]:
        """The environment of the task."""
        return {"env_name": self.task, "type": "metaworld", "env_kwargs": {}}

    def start(self, env: EnvBase, seed: int, rng: np.random.Generator) -> Observation:
        """Begins an episode, with a new policy: some remember steps."""
        self._policy = self._policy_class()
        return super().start(env, seed, rng)

    def act(self, env: EnvBase, obs: Observation, rng: np.random.Generator) -> Array:
        """The action of the scripted policy, which reads the whole state, with noise."""
        return self.noisy(self._policy.get_action(obs["flat"]), rng)
