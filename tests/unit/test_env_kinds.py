"""The registry of environment kinds."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import run_process

from raymimic.envs import kinds
from raymimic.envs.env_base import EnvBase
from raymimic.envs.env_gym import EnvGym
from raymimic.envs.kinds import UnknownEnvError, env_from_metadata, register_env_kind
from raymimic.errors import ConfigError, EnvError

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
    monkeypatch.setitem(kinds._KINDS, "robosuite", "no_such_simulator.env:Env")
    with pytest.raises(EnvError, match=r"needs a package .* No module named 'no_such_simulator'"):
        env_from_metadata({**TOY, "type": "robosuite"})


def test_a_simulator_is_imported_once_an_environment_is_made(tmp_path: Path) -> None:
    code = "import sys, raymimic.envs.fit as fit, raymimic.envs.kinds as kinds\n"
    code += "kinds.read_env_meta({'env_name': 'Hopper-v5', 'type': 2})\n"
    code += "print([m for m in ('gymnasium', 'mujoco') if m in sys.modules])"
    ran = run_process("-c", code, cwd=tmp_path)
    assert (ran.status, ran.out) == (0, "[]\n"), ran.err
