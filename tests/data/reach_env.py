"""A point in the plane that is to reach another: a goal environment by gymnasium's convention."""

import json
from typing import Any

import gymnasium
import h5py
import numpy as np

NAME = "Reach-v0"
STEP, NEAR = 0.1, 0.1


class ReachEnv(gymnasium.Env):
    """Moves by a tenth of the action; solved within 0.1 of the goal."""

    action_space = gymnasium.spaces.Box(-1, 1, (2,))

    def __init__(self, render_mode: str | None = None) -> None:
        space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
        names = ("observation", "achieved_goal", "desired_goal")
        self.observation_space = gymnasium.spaces.Dict(dict.fromkeys(names, space))
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.position, self.goal = self.np_random.uniform(-1, 1, (2, 2))
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        self.position = self.position + STEP * np.clip(action, -1, 1)
        distance = float(np.abs(self.position - self.goal).max())
        return self._obs(), -distance, False, False, {"is_success": distance < NEAR}

    def _obs(self) -> dict[str, Any]:
        position = self.position.copy()
        return {
            "observation": position,
            "achieved_goal": position.copy(),
            "desired_goal": self.goal.copy(),
        }


gymnasium.register(NAME, ReachEnv, max_episode_steps=40)


def expert(obs: dict[str, Any]) -> Any:
    return np.clip((obs["desired_goal"] - obs["observation"]) / STEP, -1, 1)


def write_demos(path: Any, demos: int = 30, steps: int = 25) -> None:
    """Demos of the expert, which ends at its goal; the dataset says nothing of desired goals."""

    env = ReachEnv()
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "reach_env:Reach-v0", "type": 2})
        for i in range(demos):
            obs, _ = env.reset(seed=i)
            rows: dict[str, list[Any]] = {"actions": [], "rewards": [], "dones": []}
            seen = [obs]
            for t in range(steps):
                action = expert(obs)
                obs, reward, *_ = env.step(action)
                seen.append(obs)
                for name, value in zip(rows, (action, reward, t == steps - 1), strict=True):
                    rows[name].append(value)
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = steps
            for name, values in rows.items():
                demo[name] = np.asarray(values, np.float32)
            for key in ("observation", "achieved_goal"):
                values = np.stack([o[key] for o in seen]).astype(np.float32)
                demo[f"obs/{key}"], demo[f"next_obs/{key}"] = values[:-1], values[1:]
