"""Makes the calls of mimicgen, robocasa and LIBERO.

usage: robomimic_mimicgen.py DATASET FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np
import robomimic
import robomimic.utils.env_utils as EnvUtils
import robomimic.utils.file_utils as FileUtils
import robomimic.utils.obs_utils as ObsUtils
import robomimic.utils.tensor_utils as TensorUtils
import torch
from robomimic.config.config import Config
from robomimic.envs.env_base import EnvBase, EnvType
from robomimic.envs.wrappers import FrameStackWrapper
from robomimic.models.base_nets import CropRandomizer
from robomimic.utils.log_utils import PrintLogger

dataset, folder = sys.argv[1:]
assert Path(robomimic.__path__[0], "exps", "templates").is_dir()

env_meta = FileUtils.get_env_metadata_from_dataset(dataset)
assert EnvUtils.get_env_type(env_meta=env_meta) == EnvType.GYM_TYPE
assert not EnvUtils.is_robosuite_env(env_meta)
env = EnvUtils.create_env_for_data_processing(
    env_meta=env_meta,
    camera_names=[],
    camera_height=84,
    camera_width=84,
    reward_shaping=False,
)
assert isinstance(env, EnvBase)
ObsUtils.initialize_obs_utils_with_obs_specs(
    obs_modality_specs={"obs": {"low_dim": ["flat"], "rgb": ["camera"]}}
)
stacked = FrameStackWrapper(env, num_frames=3)
first = stacked.reset()
steps = [env.step(np.zeros(env.action_dimension))[0] for _ in range(4)]
lists = TensorUtils.list_of_flat_dict_to_dict_of_list(steps)
image = ObsUtils.process_obs(np.full((2, 6, 5, 3), 255, np.uint8), obs_key="camera")
crop = CropRandomizer(input_shape=[3, 6, 5], crop_height=4, crop_width=4)
sequences = {"x": torch.arange(24.0).reshape(2, 3, 4)}
doubled = TensorUtils.time_distributed(sequences, op=lambda d: TensorUtils.map_tensor(d, torch.neg))

sys.stdout = PrintLogger(f"{folder}/log.txt")
print("a line of the log")
sys.stdout = sys.stdout.terminal

config = Config()
config.a.b = 1
print(
    json.dumps(
        {
            "first": list(first["flat"].shape),
            "steps": np.array(lists["flat"]).shape,
            "image": [list(image.shape), float(image.max())],
            "crop": crop.output_shape_in([3, 6, 5]),
            "joined": list(TensorUtils.join_dimensions(doubled["x"], 0, 1).shape),
            "config": config.a.b,
            "url": FileUtils.url_is_alive("http://127.0.0.1:9/none"),
        }
    )
)
