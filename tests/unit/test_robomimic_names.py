"""Names that robomimic's users import are there, and take robomimic's arguments.

`tests/golden/robomimic_names.json` lists names of robomimic 0.5 that its documentation, examples
and tests, 29 public projects and 10 copies of it use, with the parameters of functions and
classes.
"""

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

NAMES = json.loads((Path(__file__).parents[1] / "golden" / "robomimic_names.json").read_text())

# Not robomimic's own: a project assigns it.
ASSIGNED = {"envs.env_base.EnvType.OMNIGIBSON_TYPE"}

# Made by others than their users: by a subclass, by `algo_factory`; or never.
NOT_CALLED = {
    *("envs.env_base.EnvBase", "envs.env_ig_momart.EnvGibsonMOMART"),
    *("algo.gl.ValuePlanner", "algo.hbc.HBC", "algo.iris.IRIS"),
}

# robomimic reads them nowhere (`vae_nets.py`).
UNREAD = {"models.vae_nets.VAE": {"output_scales", "output_ranges"}}

# Classes whose arguments have another order: all known callers name them.
BY_KEYWORD = {
    "models.obs_nets.ObservationEncoder",  # which also takes its keys at once
    *(f"models.policy_nets.{name}ActorNetwork" for name in ("GMM", "Gaussian", "RNN", "RNNGMM")),
    "models.vae_nets.VAE",
}

ENTRIES = [entry for entry in NAMES if entry["name"] not in ASSIGNED]


def resolve(entry: dict[str, Any]) -> Any:
    module = ".".join(filter(None, ["raymimic", entry["module"]]))
    found: Any = importlib.import_module(module)
    for part in filter(None, entry["attribute"].split(".")):
        found = getattr(found, part)
    return found


def test_the_table_is_whole():
    assert len(NAMES) == 197
    assert len(ENTRIES) == 197 - 1


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])
def test_a_name_is_there_and_takes_robomimics_arguments(entry: dict[str, Any]):
    found = resolve(entry)
    if "parameters" not in entry or entry["name"] in NOT_CALLED:
        return
    wanted = [p for p in entry["parameters"] if p not in UNREAD.get(entry["name"], ())]
    parameters = inspect.signature(found).parameters
    own = [name for name in parameters if name != "self"]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    assert takes_any or set(wanted) <= set(own)
    if entry["name"] not in BY_KEYWORD:
        assert own[: len(wanted)] == wanted
    # Those that robomimic does not have may be left out.
    more = [parameters[name] for name in own if name not in wanted]
    empty = inspect.Parameter.empty
    assert all(p.default is not empty or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in more)
