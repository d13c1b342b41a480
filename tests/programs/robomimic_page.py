"""Runs the Python blocks of a page of robomimic's documentation: `robomimic_page.py PAGE`.

The current folder holds `demos.hdf5`, of robosuite's task Lift, `model.pth`, trained on it, and
`config.json`. The blocks of a page share one namespace, as those of a reader do; it begins with the
modules and objects that the pages take for granted. Prints a line of JSON for each block: its line,
and its error or null.
"""

import ast
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^ *```python\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
SUPPOSED = """
import json, math
from collections import OrderedDict
import numpy as np
import torch
import torch.nn as nn
import robomimic.models.obs_nets as ObsNets
import robomimic.models.policy_nets as PolicyNets
import robomimic.models.value_nets as ValueNets
import robomimic.utils.env_utils as EnvUtils
import robomimic.utils.file_utils as FileUtils
import robomimic.utils.hyperparam_utils as HyperparamUtils
import robomimic.utils.torch_utils as TorchUtils
from robomimic.algo import *
from robomimic.config import config_factory
from robomimic.config.base_config import BaseConfig
from robomimic.utils.dataset import SequenceDataset
from robomimic.utils.file_utils import config_from_checkpoint, maybe_dict_from_checkpoint

config = config_factory("diffusion_policy" if diffusion else "bc")
device = "cpu"
dataset_path = "demos.hdf5"
env_name = "Lift"
camera2_shape = [3, 224, 224]
x_seq = {"rgb": torch.zeros(10, 10, 3, 8, 8)}
your_func = torch.neg
raw_action = input_min = output_min = mean = epsilon = np.zeros(1)
input_max = output_max = std = np.ones(1)
generator = HyperparamUtils.ConfigGenerator(
    base_config_file="config.json", script_file="generated/out.sh"
)
"""
SUPPOSED_OF_ALGORITHMS = """
policy, _ = FileUtils.policy_from_checkpoint(ckpt_path="model.pth", device="cpu")
model = policy.policy
env_meta = FileUtils.get_env_metadata_from_dataset(dataset_path)
env = EnvUtils.create_env_from_metadata(env_meta=env_meta)
dataset = SequenceDataset(
    hdf5_path=dataset_path,
    obs_keys=("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object"),
    action_keys=("actions",),
    dataset_keys=("actions", "rewards", "dones"),
    action_config={"actions": {}},
)
data_loader = torch.utils.data.DataLoader(dataset, batch_size=100, shuffle=True, drop_last=True)
"""


def parse(text: str) -> ast.Module:
    """Parses a block; a piece of a dictionary is put into one."""
    text = textwrap.dedent(text)
    try:
        return ast.parse(text)
    except SyntaxError:
        return ast.parse(f"{{{text}}}")


[page] = sys.argv[1:]
text = Path(page).read_text()
names: dict[str, Any] = {"diffusion": "diffusion" in page}
exec(SUPPOSED, names)
if page.endswith("/algorithms.md"):
    exec(SUPPOSED_OF_ALGORITHMS, names)
for match in BLOCK.finditer(text):
    error = None
    try:
        exec(compile(parse(match[1]), page, "exec"), names)
    except Exception as fault:
        error = f"{type(fault).__name__}: {' '.join(str(fault).split())}"
    print(json.dumps({"line": text.count("\n", 0, match.start()) + 1, "error": error}), flush=True)
