"""A kind of environments with states, cameras, and demos that fail: a cart on a rail.

`python -m rail_kind FILE` records demos of it.
"""

import os
import signal
import time
from pathlib import Path

import numpy as np

from raymimic.data.writer import RecordedEpisode, writing_dataset
from raymimic.envs.env_base import EnvBase
from raymimic.envs.kinds import register_env_kind
from raymimic.envs.render_settings import RenderSettings
from raymimic.errors import EnvError, did_you_mean

KILLS, RAISES = 100.0, 200.0
"""Positions that end the process, and that raise an exception."""

GOAL = 1.0
CAMERAS = ("front", "side")


@register_env_kind("rail")
class EnvRail(EnvBase):
    """A state is a position and the times of its scene; an action moves the cart."""

    name, type, action_dimension = "Rail", "rail", 1

    def __init__(self, env_name, render_settings=None, reads=None, pause=0.0, drift=0.0):
        self.settings, self.pause, self.drift = render_settings, pause, drift
        self.x, self.scene, self.reward, self.judges = 0.0, "", 0.0, env_name == "Rail"
        for camera in (render_settings or RenderSettings()).cameras:
            if camera not in CAMERAS:
                raise EnvError(f"no camera '{camera}'{did_you_mean(camera, CAMERAS)}")

    @property
    def judges_states(self):
        return self.judges

    def reset(self, seed=None):
        self.x = float(np.random.default_rng(seed).uniform(0.0, 0.1))
        return self.get_observation()

    def step(self, action):
        self.x += float(action[0]) + self.drift
        self.reward = float(self.x >= GOAL)
        return self.get_observation(), self.reward, False, {"terminated": False}

    def get_observation(self):
        obs = {"x": np.array([self.x]), "noise": np.random.normal(size=1)}
        if self.settings:
            for number, camera in enumerate(self.settings.cameras):
                size = self.settings.height, self.settings.width
                image = np.full((*size, 3), int(50 * self.x) % 256, np.uint8)
                obs[f"{camera}_image"] = image + np.uint8(number)
                if self.settings.depth:
                    obs[f"{camera}_depth"] = np.full((*size, 1), self.x, np.float32)
        return obs

    def get_reward(self):
        return float(self.x >= GOAL)

    def is_done(self):
        return False

    def is_success(self):
        return {"task": self.x >= GOAL}

    def get_state(self):
        return {"states": np.array([self.x, 0.0]), "model": self.scene}

    def reset_to(self, state):
        time.sleep(self.pause)
        states = state["states"]
        self.scene = state.get("model", self.scene)
        if states.shape != (2,):
            raise EnvError(f"'Rail' has states of shape (2,), not {states.shape}")
        if states[0] == KILLS:
            os.kill(os.getpid(), signal.SIGKILL)
        if states[0] == RAISES:
            raise RuntimeError("the cart jams")
        self.x = float(states[0])
        return self.get_observation()

    def render(self, mode="rgb_array", height=None, width=None):
        cameras = len(self.settings.cameras) if self.settings else 1
        shape = (height or 16, cameras * (width or 16), 3)
        return np.full(shape, int(50 * self.x) % 256, np.uint8)

    def serialize(self):
        kwargs = {"pause": self.pause, "drift": self.drift}
        meta = {"env_name": "Rail" if self.judges else "Steps", "type": "rail"}
        meta["env_kwargs"] = {key: value for key, value in kwargs.items() if value}
        return {**meta, "render": self.settings.serialize()} if self.settings else meta


def record(path, demos=5, steps=4, env_name="Rail", width=2, bad=None, **env_kwargs):
    """Writes demos of carts that go from 0.2 to the goal, one demo in two reaching it.

    Args:
        path: of the dataset.
        demos: their number.
        steps: of each.
        env_name: `Rail`, or `Steps`, which gives rewards of steps only.
        width: of the states.
        bad: positions in the middle of demos, by number.
        env_kwargs: of the environment.
    """
    meta = {"env_name": env_name, "type": "rail", "env_kwargs": env_kwargs, "note": "kept"}
    with writing_dataset(path, meta) as writer:
        for number in range(demos):
            actions = np.full((steps, 1), (0.3 if number % 2 else 0.1), np.float32)
            x = 0.2 + np.concatenate([[0.0], np.cumsum(actions[:-1, 0])])
            if number in (bad or {}):
                x[steps // 2] = bad[number]
            states = np.zeros((steps, width))
            states[:, 0] = x
            writer.add(
                RecordedEpisode(
                    obs={"old": x[:, None]},
                    actions=actions,
                    rewards=np.full(steps, 0.5),
                    dones=np.eye(1, steps, 1, dtype=np.int64)[0],
                    states=states,
                    others={"action_dict/x": actions},
                    attrs={"model_file": f"scene {number}", "seed": 7 + number},
                ),
                ("valid" if number == demos - 1 else "train",),
                name=f"demo_{2 * number}",
            )
        writer.attrs["expert"] = "a formula"
    return Path(path)
