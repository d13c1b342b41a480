"""Isaac Lab's recordings: robomimic's form, nested groups, no rewards, dones and `next_obs`.

See `isaaclab/utils/datasets/hdf5_dataset_file_handler.py` and its recorder terms: `obs` and
`actions` are those before a step, `states` those after it, `initial_state` is one row.
"""

from typing import Any

import numpy as np

from raymimic.data.convert.heads import Head
from raymimic.data.convert.registry import register_format
from raymimic.data.convert.robomimic import DemoArrays, RobomimicReader
from raymimic.data.hdf5 import DemoReader
from raymimic.envs.env_base import FLAT_KEY
from raymimic.storage import parse_json


@register_format("isaac_lab")
class IsaacLabReader(RobomimicReader):
    """Derives rewards and dones from the attribute `success` of each demo, where it is recorded."""

    general = False

    @classmethod
    def recognises(cls, head: Head) -> bool:
        """Whether a demo has an initial state, or the environment's name is one of Isaac Lab's."""
        demo = head.demo
        if demo is None or not {"obs", "actions"} <= set(demo.names):
            return False
        try:
            env_args = parse_json(str(demo.data_attrs.get("env_args")))
        except ValueError:
            env_args = None
        name = env_args.get("env_name") if isinstance(env_args, dict) else None
        named = isinstance(name, str) and name.startswith("Isaac-")
        return named or "initial_state" in demo.names

    def complete(self, demo: DemoReader, arrays: DemoArrays, attrs: dict[str, Any]) -> None:
        """Names groups as robomimic does, and adds rewards and dones."""
        others = arrays.others
        if "obs" in others:
            arrays.obs[FLAT_KEY] = others.pop("obs")
            self.note(f"obs, one array -> obs/{FLAT_KEY}")
        self.note("actions -> actions", *(f"obs/{key} -> obs/{key}" for key in arrays.obs))
        for name in [name for name in others if name.startswith("states/")]:
            others[f"scene_{name}"] = others.pop(name)
            self.note("states/… -> scene_states/…, after each step")
        if arrays.drop_others_of_another_length():
            self.note("initial_state/… and others without a row for each step: left out")
        succeeded = attrs.get("success")
        if "rewards" not in others and "dones" not in others and succeeded is not None:
            solved = np.zeros(arrays.steps)
            solved[-1:] = bool(succeeded)
            others["rewards"], others["dones"] = solved, solved.astype(np.int64)
            self.note("success of the demo -> rewards and dones, 1 at the last step, else 0")
        elif "rewards" not in others:
            self.note("no success, no rewards: algorithms that learn from rewards cannot train")
