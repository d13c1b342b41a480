"""The registry of environment kinds."""

import importlib
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import run_process

from raymimic.envs import env_gym, kinds
from raymimic.envs.env_base import EnvBase
from raymimic.envs.env_gym import EnvGym
from raymimic.envs.fit import PolicyInterface, check_fit
from raymimic.envs.kinds import UnknownEnvError, env_from_metadata, register_env_kind
from raymimic.errors import ConfigError, EnvError, pip_install

TOY = {"env_name": "Push", "type": "toy", "env_kwargs": {"goal_steps": 2, "render_mode": "human"}}


@pytest.fixture(autouse=True)
def toy_kind(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(kinds, "_KINDS", dict(kinds._KINDS))
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "data")
    monkeypatch.delitem(sys.modules, "toy_kind", raising=False)
    yield importlib.import_module("toy_kind")
    monkeypatch.delitem(sys.modules, "toy_kind", raising=False)


def test_a_registered_kind_is_made_from_its_description(toy_kind: Any) -> None:
    env = env_from_metadata(TOY)
    assert type(env) is toy_kind.EnvToy
    assert env.serialize() == {**TOY, "env_kwargs": {"goal_steps": 2}}
    assert type(env_from_metadata(TOY, env_name="Pull")) is toy_kind.EnvToy


def test_gymnasium_is_the_kind_of_a_description_without_type() -> None:
    for kind in ({"type": 2}, {"type": None}, {}):
        assert type(env_from_metadata({"env_name": "Hopper-v5", **kind})) is EnvGym


def test_a_kind_may_be_registered_again_by_its_module_only(toy_kind: Any) -> None:
    importlib.reload(toy_kind)
    assert type(env_from_metadata(TOY)) is toy_kind.EnvToy

    class Other(EnvBase):
        pass

    for taken, owner in (("toy", "toy_kind:EnvToy"), (2, "raymimic.envs.env_gym:EnvGym")):
        with pytest.raises(ConfigError, match=f"is taken by {owner}"):
            register_env_kind(taken)(Other)
    with pytest.raises(ConfigError, match="builtins:dict does not extend EnvBase"):
        register_env_kind("dict")(dict)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("toi", r"'toi' \(did you mean 'toy'\?\)"),
        (3, r"3 \(iGibson\)"),
        ("metawrld", r"'metawrld' \(did you mean 'metaworld'\?\)"),
        (9, "9"),
    ],
)
def test_an_unknown_kind_is_named_with_its_remedy(kind: Any, said: str) -> None:
    with pytest.raises(UnknownEnvError, match=f"'Lift' is of type {said}, and the known types are"):
        env_from_metadata({"env_name": "Lift", "type": kind})


def test_whatever_a_class_raises_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvError, match=r"'Push' cannot be made: TypeError: .*'nonsense'"):
        env_from_metadata({**TOY, "env_kwargs": {"nonsense": 1}})

    @register_env_kind("half")
    class Half(EnvBase):
        def __init__(self, env_name: str, render_offscreen: bool) -> None:
            pass

    with pytest.raises(EnvError, match=r"'Push' cannot be made: TypeError: .*abstract"):
        env_from_metadata({**TOY, "type": "half", "env_kwargs": {}})
    missing = kinds.OwnKind("no_such_simulator.env:Env")
    monkeypatch.setitem(kinds._KINDS, "robosuite", missing)
    with pytest.raises(EnvError, match=r"needs a package .* No module named 'no_such_simulator'"):
        env_from_metadata({**TOY, "type": "robosuite"})


class EnvDice(EnvBase):
    """Written as robomimic's documentation has it: its abstract methods, and no seeds."""

    def __init__(
        self,
        env_name: str,
        render: bool = False,
        render_offscreen: bool = False,
        use_image_obs: bool = False,
        use_depth_obs: bool = False,
        **kwargs: Any,
    ) -> None:
        self._env_name, self._kwargs = env_name, kwargs
        self.asked = (render, render_offscreen, use_image_obs, use_depth_obs)

    def reset(self) -> Any:
        self._thrown = [np.random.rand(), random.random()]
        return self.get_observation()

    def step(self, action: Any) -> Any:
        self._thrown[0] = np.random.rand()
        return self.get_observation(), self.get_reward(), self.is_done(), {}

    def reset_to(self, state: Any) -> Any:
        self._thrown = list(state["states"])
        return self.get_observation()

    def render(self, mode="human", height=None, width=None, camera_name=None) -> Any:
        return np.zeros((height or 8, width or 8, 3), np.uint8)

    def get_observation(self) -> Any:
        return {"thrown": np.array(self._thrown)}

    def get_state(self) -> Any:
        return {"states": np.array(self._thrown)}

    def get_reward(self) -> Any:
        return 1.0

    def get_goal(self) -> Any:
        raise NotImplementedError

    def set_goal(self, **kwargs: Any) -> Any:
        raise NotImplementedError

    def is_done(self) -> Any:
        return False

    def is_success(self) -> Any:
        return {"task": False}

    def serialize(self) -> Any:
        return {"env_name": self.name, "type": self.type, "env_kwargs": self._kwargs}

    @classmethod
    def create_for_data_processing(cls, env_name: str, **kwargs: Any) -> Any:
        return cls(env_name)

    action_dimension = property(lambda self: 2)
    name = property(lambda self: self._env_name)
    type = property(lambda self: "dice")
    rollout_exceptions = property(lambda self: ())
    base_env = property(lambda self: None)


def test_a_kind_written_for_robomimic_is_made_and_its_episodes_follow_from_their_seeds() -> None:
    register_env_kind("dice")(EnvDice)
    meta = {"env_name": "Throw", "type": "dice", "env_kwargs": {"sides": 6}}
    env = env_from_metadata(meta, reads={"thrown": "low_dim", "front": "rgb"})
    assert isinstance(env, EnvDice)
    assert env.asked == (False, False, True, False)
    assert env_from_metadata(meta, render=True).asked == (False, True, False, False)  # type: ignore[attr-defined]
    assert env.serialize() == meta
    first, other, again = (env.reset(seed=seed)["thrown"] for seed in (5, 6, 5))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()
    # Steps of another environment in between change nothing.
    alone = [env.step(np.zeros(2))[0]["thrown"][0] for _ in range(3)]
    second = env_from_metadata(meta)
    env.reset(seed=5)
    second.reset(seed=9)
    for expected in alone:
        second.step(np.zeros(2))
        assert env.step(np.zeros(2))[0]["thrown"][0] == expected
    policy = PolicyInterface({"thrown": [2]}, {}, 2)
    assert check_fit(meta, policy).low == [-np.inf] * 2
    env.close()
    with pytest.raises(EnvError, match=r"'Throw' has settings 'render' .* its class takes none"):
        env_from_metadata({**meta, "render": {"shadows": False}})


@pytest.mark.parametrize(
    ("kind", "package"), [(1, "robosuite"), ("metaworld", "metaworld"), (2, "ogbench")]
)
def test_a_simulator_that_is_not_installed_is_named_with_its_extra(
    kind: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = kinds._KINDS[kind]
    if package == "ogbench":
        monkeypatch.setattr(env_gym, "find_spec", lambda name: None)
        monkeypatch.delitem(sys.modules, "ogbench", raising=False)
        name = "cube-quintuple-v0"
    else:
        assert isinstance(entry, kinds.OwnKind)
        monkeypatch.delitem(sys.modules, entry.place.partition(":")[0], raising=False)
        monkeypatch.setitem(sys.modules, package, None)
        name = "task"
    with pytest.raises(EnvError, match=rf"'{name}' .*{re.escape(pip_install(package))}"):
        env_from_metadata({"env_name": name, "type": kind})


def test_a_simulator_that_fails_on_a_newer_mujoco_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds.metadata, "version", {"mujoco": "4.0.0", "robosuite": "1.5.1"}.get)
    said = kinds._failure(1, AssertionError("joint"))
    assert said == (
        "cannot be made: AssertionError: joint; robosuite 1.5.1 is not known to run on MuJoCo "
        "4.0.0: pip install 'mujoco<3.10'"
    )
    monkeypatch.setattr(kinds.metadata, "version", {"mujoco": "3.8.1"}.get)
    assert kinds._failure(1, AssertionError("joint")) == "cannot be made: AssertionError: joint"


def test_a_simulator_is_imported_once_an_environment_is_made(tmp_path: Path) -> None:
    code = "import sys, raymimic.envs.fit as fit, raymimic.envs.kinds as kinds\n"
    code += "kinds.read_env_meta({'env_name': 'Hopper-v5', 'type': 2})\n"
    code += "print([m for m in ('gymnasium', 'mujoco') if m in sys.modules])"
    ran = run_process("-c", code, cwd=tmp_path)
    assert (ran.status, ran.out) == (0, "[]\n"), ran.err
