"""A kind of environments in one file: a point that actions push about."""

import numpy as np

from raymimic.envs.env_base import EnvBase
from raymimic.envs.kinds import register_env_kind


@register_env_kind("toy")
class EnvToy(EnvBase):
    """The mean of all actions is the reward; `goal_steps` steps solve the task."""

    name = ""
    action_dimension = 3
    type = "toy"

    def __init__(self, env_name, render_offscreen=False, goal_steps=4):
        self.name = env_name
        self.goal_steps = goal_steps

    def reset(self, seed=None):
        self.position = np.random.default_rng(seed).normal(size=11)
        self.steps, self.reward = 0, 0.0
        return self.get_observation()

    def step(self, action):
        self.position[:3] += action
        self.steps, self.reward = self.steps + 1, float(np.mean(action))
        ended = {"terminated": self.is_done(), "truncated": False}
        return self.get_observation(), self.reward, self.is_done(), ended

    def get_observation(self):
        return {"flat": self.position.copy()}

    def get_reward(self):
        return self.reward

    def is_done(self):
        return self.steps >= self.goal_steps

    def is_success(self):
        return {"task": self.is_done()}

    def get_state(self):
        return {"states": self.position.copy()}

    def reset_to(self, state):
        self.reset()
        self.position = state["states"].copy()
        return self.get_observation()

    def render(self, mode="rgb_array", height=None, width=None):
        return np.zeros((height or 16, width or 16, 3), np.uint8)

    def serialize(self):
        return {"env_name": self.name, "type": "toy", "env_kwargs": {"goal_steps": self.goal_steps}}

    def close(self):
        pass
