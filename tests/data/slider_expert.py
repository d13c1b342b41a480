"""An environment and its expert, as a user writes them: a slider on a line, to be brought to 0."""

import os
import signal
from typing import Any

import gymnasium
import numpy as np

from raymimic.recording.experts.expert import Expert, register_expert

KILLED, RAISES, UNSOLVED = 2, 4, 5
"""Episodes, by seed, that end the process, raise an exception, and begin too far away."""


class SliderEnv(gymnasium.Env):
    """Its start depends on numpy's global generator too, as in some simulators."""

    action_space = gymnasium.spaces.Box(-1, 1, (1,))
    observation_space = gymnasium.spaces.Dict(
        position=gymnasium.spaces.Box(-np.inf, np.inf, (1,)),
        top_image=gymnasium.spaces.Box(0, 255, (2, 3, 3), np.uint8),
    )

    def __init__(self, broken: bool = False) -> None:
        self.broken, self.played = broken, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.seed, self.t = seed, 0
        start = self.np_random.uniform(0.2, 0.3) + np.random.uniform(0.2, 0.3)
        self.x = 5.0 if seed == UNSOLVED else start
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        if self.t == 2 and self.seed == KILLED:
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.t == 2 and (self.seed == RAISES or self.broken):
            raise RuntimeError("the slider jams")
        self.x += 0.1 * float(action[0])
        solved = abs(self.x) < 0.05
        return self._obs(), float(solved), False, False, {"success": solved}

    def _obs(self) -> Any:
        image = np.full((2, 3, 3), int(40 * abs(self.x)), np.uint8)
        return {"position": np.array([self.x]), "top_image": image}


gymnasium.register("Slider-v0", SliderEnv)


@register_expert("slider")
class SliderExpert(Expert):
    """Plays `slider-line`, and `slider-broken`, whose episodes all fail."""

    default_noise = 0.1
    horizon = 20
    hold = 3

    @property
    def env_meta(self) -> dict[str, Any]:
        kwargs = {"broken": self.task == "broken"}
        return {"env_name": "Slider-v0", "type": 2, "env_kwargs": kwargs}

    def act(self, env: Any, obs: Any, rng: np.random.Generator) -> Any:
        return self.noisy(-10 * obs["position"], rng)
