"""Play data as OGBench makes it (Park et al. 2025, arXiv:2410.20092).

Settings are those of OGBench's public `data_gen_scripts`. Episodes have no task of their own: the
oracle draws one target after the other. On purpose the oracles are made again for each episode, as
some draw a resting pose when they are made: so an episode follows from its seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from raymimic.envs.env_base import Array, EnvBase, EnvType, Observation
from raymimic.recording.experts.expert import Expert, unknown_task

# Arguments of the environment while data are recorded; a policy is evaluated without them.
_RECORDING = ("mode", "terminate_at_goal", "max_episode_steps", "visualize_info")
_KINDS = ("play", "noisy")
_STACKING = {
    "cube-single": (0.0, 0.0),
    "cube-double": (0.0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
    "cube-octuple": (0.0, 0.35),
}
"""Least and greatest probability that a cube's target is another cube; 0.5 elsewhere."""
_LEFT, _RIGHT, _IN_DRAWER = -0.3, 0.29, (0.06, 0.08)  # metres, of the cube in `scene`
_PUZZLES = ("puzzle-3x3", "puzzle-4x4", "puzzle-4x5", "puzzle-4x6")
_MAZES = {"medium": 1001, "large": 1001, "giant": 2001, "teleport": 1001}
_STITCH_STEPS, _STITCH_CELLS = 201, 4


class _Oracle(Protocol):
    """An oracle of OGBench's manipulation tasks."""

    done: bool

    def reset(self, ob: Any, info: Mapping[str, Any]) -> None: ...

    def select_action(self, ob: Any, info: Mapping[str, Any]) -> Array: ...


def ogbench_expert(task: str, noise: float | None = None) -> Expert:
    """The expert of `<environment>-<kind of data>`, such as `cube-single-play`."""
    manipulation = {
        f"{env}-{kind}": (env, kind) for env in (*_STACKING, "scene", *_PUZZLES) for kind in _KINDS
    }
    mazes = {
        f"pointmaze-{maze}-{kind}": (maze, kind)
        for maze in _MAZES
        for kind in ("navigate", "stitch")
    }
    if task in manipulation:
        return ManipulationExpert(task, *manipulation[task], noise)
    if task in mazes:
        return MazeExpert(task, *mazes[task], noise)
    raise unknown_task("OGBench", task, {**manipulation, **mazes})


class _OgbenchExpert(Expert):
    hold = None
    low_dim = ("flat",)
    proprioception = ()

    def env_args(self, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """The environment with a goal and its own time limit."""
        kwargs = {k: v for k, v in recorded["env_kwargs"].items() if k not in _RECORDING}
        return {**recorded, "env_kwargs": kwargs}


class ManipulationExpert(_OgbenchExpert):
    """Moves cubes, drawers, windows and buttons to one target after the other.

    `play`: follows a plan, with smooth noise in the plan. `noisy`: decides again at each step, with
    noise on each action, drawn up to the given level for each episode, and with random actions.

    Args:
        task: the dataset's name.
        env: the environment's, without its version.
        kind: `play` or `noisy`.
        noise: OGBench's noise level of its oracles; None is 0.1.
    """

    default_noise = 0.1
    horizon = 1001

    def __init__(self, task: str, env: str, kind: str, noise: float | None = None) -> None:
        super().__init__(task, noise)
        import_module("ogbench.manipspace")  # registers the environments
        self._env, self._kind = env, kind
        self._random_actions = {"play": 0.0, "noisy": 0.2 if env in _PUZZLES else 0.1}[kind]
        self._oracles: dict[str, _Oracle] = {}

    @property
    def env_meta(self) -> dict[str, Any]:
        """The environment in which OGBench records; targets are not visible."""
        kwargs = {
            "mode": "data_collection",
            "terminate_at_goal": False,
            "max_episode_steps": self.horizon,
            "visualize_info": False,
        }
        return {
            "env_name": f"{self._env}-v0",
            "type": EnvType.GYM_TYPE,
            "env_kwargs": kwargs,
        }

    def start(self, env: EnvBase, seed: int, rng: np.random.Generator) -> Observation:
        """Begins an episode, with a first target."""
        obs = super().start(env, seed, rng)
        base = _unwrapped(env)
        self._oracles = self._made(base)
        self._level = rng.uniform(0.0, self.noise)
        self._stacking = rng.uniform(*_STACKING.get(self._env, (0.5, 0.5)))
        self._aim(base.compute_observation(), base.get_reset_info())
        return obs

    def act(self, env: EnvBase, obs: Observation, rng: np.random.Generator) -> Array:
        """The action `[5]` of the oracle; where that has reached its target, of the next one."""
        base = _unwrapped(env)
        if self._oracle.done:
            self._aim(*base.set_new_target(p_stack=self._stacking))
        if rng.uniform() < self._random_actions:
            return rng.uniform(-1.0, 1.0, env.action_dimension)
        action = np.asarray(self._oracle.select_action(obs["flat"], base.get_step_info()))
        if self._kind == "noisy":
            action = action + self._level * np.array([1, 1, 1, 3, 10]) * rng.standard_normal(5)
        return action

    def columns(self, env: EnvBase) -> dict[str, Array]:
        """States of buttons, which the simulator does not know."""
        if self._env in _STACKING:  # has none
            return {}
        return {"button_states": _unwrapped(env).get_step_info()["button_states"]}

    def spoiled(self, env: EnvBase) -> bool:
        """Whether the cube of `scene` lies where no camera sees it, and not in the drawer."""
        if self._env != "scene":
            return False
        _, y, z = _unwrapped(env).get_step_info()["privileged/block_0_pos"]
        return bool(y >= _RIGHT or (y <= _LEFT and not _IN_DRAWER[0] <= z <= _IN_DRAWER[1]))

    def _aim(self, obs: Any, info: Mapping[str, Any]) -> None:
        self._oracle = self._oracles[info["privileged/target_task"]]
        self._oracle.reset(obs, info)

    def _made(self, env: Any) -> dict[str, _Oracle]:
        """New oracles, by the target that they reach."""
        if self._kind == "play":
            oracle, settings = "Plan", {"noise": self.noise, "noise_smoothing": 0.5}
        else:
            oracle, settings = "Markov", {"min_norm": 0.4}
        more: dict[str, dict[str, Any]] = {}
        if self._env in _PUZZLES:
            more["button"] = {"gripper_always_closed": True}
        if self._env == "scene" and self._kind == "noisy":
            more["cube"] = {"max_step": 100}
        made: dict[str, _Oracle] = {}
        for name in ("cube", "button", "drawer", "window"):
            folder = f"ogbench.manipspace.oracles.{oracle.lower()}"
            module = import_module(f"{folder}.{name}_{oracle.lower()}")
            cls = getattr(module, f"{name.capitalize()}{oracle}Oracle")
            made[name] = cls(env=env, **settings, **more.get(name, {}))
        return made


class MazeExpert(_OgbenchExpert):
    """Leads the point through a maze, cell by cell, on a shortest way.

    `navigate`: draws one goal after the other. `stitch`: stays at a goal four cells away.

    Args:
        task: the dataset's name.
        maze: `medium`, `large`, `giant` or `teleport`.
        kind: `navigate` or `stitch`.
        noise: standard deviation of Gaussian noise on the action; None is 0.5.
    """

    default_noise = 0.5

    def __init__(self, task: str, maze: str, kind: str, noise: float | None = None) -> None:
        super().__init__(task, noise)
        import_module("ogbench.locomaze")  # registers the environments
        self._maze, self._kind = maze, kind
        self.horizon = _STITCH_STEPS if kind == "stitch" else _MAZES[maze]

    @property
    def env_meta(self) -> dict[str, Any]:
        """The environment, which goes on after a goal is reached."""
        kwargs = {"terminate_at_goal": False, "max_episode_steps": self.horizon}
        return {
            "env_name": f"pointmaze-{self._maze}-v0",
            "type": EnvType.GYM_TYPE,
            "env_kwargs": kwargs,
        }

    def start(self, env: EnvBase, seed: int, rng: np.random.Generator) -> Observation:
        """Begins an episode in one cell, with the goal in another one."""
        base = _unwrapped(env)
        cells = [tuple(map(int, cell)) for cell in np.argwhere(base.maze_map == 0)]
        self._goals = [cell for cell in cells if not _in_hallway(base.maze_map, cell)]
        first = cells[rng.integers(len(cells))]
        near = self._goals
        if self._kind == "stitch":
            _, steps = base.get_oracle_subgoal(base.ij_to_xy(first), base.ij_to_xy(first))
            near = [c for c in cells if steps[c] == _STITCH_CELLS] or [first]
        # The only task from now on, so that `reset` begins there.
        base.task_infos = [{"init_ij": first, "goal_ij": near[rng.integers(len(near))]}]
        base.num_tasks = 1
        return super().start(env, seed, rng)

    def act(self, env: EnvBase, obs: Observation, rng: np.random.Generator) -> Array:
        """The direction `[2]` of the next cell, with noise."""
        base = _unwrapped(env)
        if self._kind == "navigate" and base.compute_success():
            goal = self._goals[rng.integers(len(self._goals))]
            base.set_goal(goal_xy=base.add_noise(base.ij_to_xy(goal)))
        target, _ = base.get_oracle_subgoal(base.get_xy(), base.cur_goal_xy)
        way = target - base.get_xy()
        return self.noisy(way / (np.linalg.norm(way) + 1e-6), rng)


def _in_hallway(maze: Array, cell: tuple[int, ...]) -> bool:
    """Whether a cell has walls on two opposite sides, and none on the others."""
    i, j = cell
    sides = [[int(maze[i - 1, j]), int(maze[i + 1, j])], [int(maze[i, j - 1]), int(maze[i, j + 1])]]
    return sorted(sides) == [[0, 0], [1, 1]]


def _unwrapped(env: EnvBase) -> Any:
    """OGBench's own environment behind raymimic's."""
    from raymimic.envs.env_gym import EnvGym

    assert isinstance(env, EnvGym)
    return env.base_env.unwrapped
