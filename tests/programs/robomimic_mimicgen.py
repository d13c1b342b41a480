"""Makes the calls of mimicgen, robocasa and LIBERO, and trains by a config that is generated.

usage: robomimic_mimicgen.py DATASET FOLDER
"""

import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import robomimic
import robomimic.utils.env_utils as EnvUtils
import robomimic.utils.file_utils as FileUtils
import robomimic.utils.obs_utils as ObsUtils
import robomimic.utils.tensor_utils as TensorUtils
import torch
from robomimic.config import config_factory
from robomimic.config.config import Config
from robomimic.envs.env_base import EnvBase, EnvType
from robomimic.envs.wrappers import FrameStackWrapper
from robomimic.models.base_nets import CropRandomizer
from robomimic.scripts.generate_paper_configs import modify_config_for_default_low_dim_exp
from robomimic.scripts.train import main as train
from robomimic.utils.hyperparam_utils import ConfigGenerator
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

base = json.loads(Path(robomimic.__path__[0], "exps/templates/bc.json").read_text())
base["experiment"]["name"] = "generated"
Path(folder, "base.json").write_text(json.dumps(base))
generator = ConfigGenerator(
    base_config_file=f"{folder}/base.json", script_file=f"{folder}/train.sh"
)
for key, values in {
    "train.data": [dataset],
    "train.output_dir": [f"{folder}/runs"],
    "train.num_epochs": [1],
    "experiment.epoch_every_n_steps": [2],
    "experiment.rollout.enabled": [False],
    "observation.modalities.obs.low_dim": [["flat"]],
    "ray.num_workers": [0],  # in this process
    "mlflow.enabled": [False],
}.items():
    generator.add_param(key=key, name="", group=-1, values=values)
generator.add_param(key="algo.actor_layer_dims", name="mlp", group=1, values=[[8], [4, 4]])
generator.generate()
lines = [line.split() for line in Path(folder, "train.sh").read_text().splitlines()]
generated = [words[words.index("--config") + 1] for words in lines if "--config" in words]
train(Namespace(config=generated[-1], algo=None, name=None, dataset=None, debug=False))
paper = modify_config_for_default_low_dim_exp(config_factory("bc"))

print(
    json.dumps(
        {
            "first": list(first["flat"].shape),
            "steps": np.array(lists["flat"]).shape,
            "image": [list(image.shape), float(image.max())],
            "crop": crop.output_shape_in([3, 6, 5]),
            "joined": list(TensorUtils.join_dimensions(doubled["x"], 0, 1).shape),
            "config": config.a.b,
            "generated": len(generated),
            "paper": paper.train.num_epochs,
            "url": FileUtils.url_is_alive("http://127.0.0.1:9/none"),
        }
    )
)
