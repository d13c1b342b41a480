"""Environments as strangers write them: each is odd in the one way that its argument names."""

import json
import os
import signal
import sys
import time
from fractions import Fraction
from typing import Any

import gymnasium
import h5py
import numpy as np

OBS_DIM, ACTION_DIM = 3, 2


class OddEnv(gymnasium.Env):
    """Ten steps of reward 1 each."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBS_DIM,))

    def __init__(self, odd: str = "", crash_seeds: Any = (), render_mode: str | None = None) -> None:
        self.odd, self.crash_seeds = odd, crash_seeds
        self.render_mode = render_mode
        if odd == "constructor":
            raise RuntimeError("no licence")
        if odd == "constructor without a word":
            raise RuntimeError
        if odd == "constructor exits":
            sys.exit("no licence")
        spaces = {
            "five actions": gymnasium.spaces.Box(-1, 1, (5,)),
            "matrix": gymnasium.spaces.Box(-1, 1, (2, 1)),
            "discrete": gymnasium.spaces.Discrete(2),
            "dict of actions": gymnasium.spaces.Dict(a=gymnasium.spaces.Box(-1, 1, (2,))),
            "box of [0, 1]": gymnasium.spaces.Box(0, 1, (2,)),
            "unbounded": gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64),
            "whole actions": gymnasium.spaces.Box(-3, 3, (2,), np.int64),
            "flags as actions": gymnasium.spaces.Box(0, 1, (2,), np.bool_),
        }
        self.action_space = spaces.get(odd, gymnasium.spaces.Box(-1, 1, (ACTION_DIM,)))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.seed, self.t = seed, 0
        match self.odd:
            case "reset raises":
                raise ValueError("the arm collides\nwith the table")
            case "coloured":
                raise ValueError("\x1b[31mred")
            case "reset crashes":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "reset hangs":
                time.sleep(3600)
            case "old reset":
                return self._obs()
            case "no info":
                return self._obs(), None
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        if self.odd in ("box of [0, 1]", "unbounded", "whole actions", "flags as actions"):
            assert self.action_space.contains(action), f"{action} is not in {self.action_space}"
        self.t += 1
        terminated, reward, info = self.t == 10, 1.0, {}
        if self.t == 5 and self.seed in self.crash_seeds:
            if self.odd == "episodes crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            if self.odd == "episodes exit":
                sys.exit(0)
            if self.odd == "episodes end the process":
                os._exit(0)
            raise RuntimeError("the simulation is unstable")
        match self.odd:
            case "step raises":
                raise ZeroDivisionError
            case "step exits":
                sys.exit(0)
            case "step panics":
                raise type("PanicException", (BaseException,), {})("index out of bounds")
            case "info of another type":
                info = [("success", True)]
            case "reward as a fraction":
                reward = Fraction(1)
            case "unknown criterion":
                info = {"success": {"task": False, "grasp": True, "place": None}}
            case "text as a criterion":
                info = {"success": {"task": True, "grasp": "firm"}}
            case "old step":
                return self._obs(), reward, terminated, info
            case "no info":
                info = None
            case "reward of one":
                reward = np.array([1.0])
            case "reward of two":
                reward = np.ones(2)
            case "no reward":
                reward = None
            case "NaN reward":
                reward = float("nan")
            case "not solved":
                info = {"success": {"task": False, "grasp": True}}
            case "solved":
                info = {"is_success": np.float64(1.0)}
            case "solved by an array":
                info = {"success": np.array([True])}
            case "array of flags":
                info = {"success": np.array([False, True])}
            case "criteria":
                info = {"success": {"grasp": True}}
            case "text of success":
                info = {"is_success": "False"}
            case "share of success":
                info = {"success": 0.4}
            case "last observation":
                if terminated:
                    return None, reward, terminated, False, info
        return self._obs(), reward, terminated, False, info

    def _obs(self) -> Any:
        flat = np.full(OBS_DIM, self.t / 10, np.float32)
        match self.odd:
            case "width":
                return np.zeros(4)
            case "tuple":
                return flat, flat
            case "text":
                return "left"
            case "NaN":
                return flat * np.nan
            case "other names":
                return {"state": flat}
            case "scalar":
                return {"flat": flat, "height": 0.5 + self.t}
            case "vanishes":
                return {"flat": flat} if self.t == 0 else {"state": flat}
            case "unread keys":
                later = {"later": np.zeros(2)} if self.t else {}
                ragged = [[1.0], [1.0, 2.0]]
                return {"flat": flat, "text": "left", "none": None, "ragged": ragged,
                        "varies": np.zeros(1 + self.t), "parts": (flat, flat), **later}
            case "whole numbers first":
                return np.zeros(OBS_DIM, np.int64) if self.t == 0 else flat
            case "bytes":
                return np.full(OBS_DIM, self.t, np.uint8)
            case "unusual floats":
                return flat.astype(np.longdouble)
            case "list":
                return flat.tolist()
            case "objects":
                return flat.astype(object)
            case "no text":
                return np.zeros(0, "U1")
            case "beyond float32":
                return np.full(OBS_DIM, 1e300)
            case "beyond floats":
                return [10**400, 0, 0]
        return flat


class OldEnv(OddEnv):
    """Old gym's reset takes no seed."""

    def reset(self) -> Any:
        return self._obs()


gymnasium.register("Odd-v0", OddEnv)
gymnasium.register("OddLimited-v0", OddEnv, max_episode_steps=8)
gymnasium.register("Old-v0", OldEnv)


def write_demos(path: Any, env_name: str = "Odd-v0", **env_kwargs: Any) -> None:
    """Demos whose observations are `flat` [3] and `height` [1], and actions [2] in [-1, 1]."""
    rng = np.random.default_rng(0)
    env_args = {"env_name": env_name, "type": 2, "env_kwargs": env_kwargs}
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(env_args)
        for i in range(4):
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = 10
            for group in ("obs", "next_obs"):
                demo[f"{group}/flat"] = rng.normal(size=(10, OBS_DIM)).astype(np.float32)
                demo[f"{group}/height"] = rng.normal(size=(10, 1)).astype(np.float32)
            demo["actions"] = rng.uniform(-1, 1, (10, ACTION_DIM)).astype(np.float32)
            demo["actions"][0] = [-1, 1]
            demo["rewards"], demo["dones"] = np.ones(10), np.eye(10)[9]
