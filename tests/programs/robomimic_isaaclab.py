"""Makes the calls of IsaacLab's `train.py`, `play.py` and `robust_eval.py`, whose robomimic is 0.4.

usage: robomimic_isaaclab.py DATASET FOLDER
"""

import json
import os
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import robomimic.utils.env_utils as EnvUtils
import robomimic.utils.file_utils as FileUtils
import robomimic.utils.obs_utils as ObsUtils
import robomimic.utils.torch_utils as TorchUtils
import robomimic.utils.train_utils as TrainUtils
import torch
from robomimic.algo import algo_factory
from robomimic.config import Config, config_factory
from robomimic.utils.log_utils import DataLogger, PrintLogger
from torch.utils.data import DataLoader

dataset, folder = sys.argv[1:]

external = {
    "algo_name": "bc",
    "experiment": {
        "name": "their_run",
        "validate": True,
        "logging": {"terminal_output_to_txt": True, "log_tb": True},
        "save": {"enabled": True, "every_n_epochs": 1, "on_best_rollout_return": False},
        "epoch_every_n_steps": 5,
        "rollout": {"enabled": False},
    },
    "train": {
        **{"batch_size": 16, "num_epochs": 2, "hdf5_normalize_obs": True, "seed": 101},
        **{"hdf5_filter_key": "train", "hdf5_validation_filter_key": "valid"},
    },
    "algo": {"actor_layer_dims": [16]},
    "observation": {"modalities": {"obs": {"low_dim": ["flat"]}}},
}
config = config_factory(external["algo_name"])
with config.values_unlocked():
    config.update(external)
assert isinstance(config, Config)
config.train.data = dataset
config.train.output_dir = folder
log_dir, ckpt_dir, video_dir = TrainUtils.get_exp_dir(config)
device = TorchUtils.get_torch_device(try_to_use_cuda=config.train.cuda)
config.lock()

np.random.seed(config.train.seed)
torch.manual_seed(config.train.seed)
terminal = sys.stdout
sys.stdout = sys.stderr = PrintLogger(f"{log_dir}/log.txt")
print(config)
ObsUtils.initialize_obs_utils_with_config(config)
env_meta = FileUtils.get_env_metadata_from_dataset(dataset_path=config.train.data)
shape_meta = FileUtils.get_shape_metadata_from_dataset(
    dataset_path=config.train.data, all_obs_keys=config.all_obs_keys, verbose=True
)
envs = OrderedDict()
env = EnvUtils.create_env_from_metadata(
    env_meta=env_meta,
    env_name=env_meta["env_name"],
    render=False,
    render_offscreen=False,
    use_image_obs=shape_meta["use_images"],
)
envs[env.name] = env
data_logger = DataLogger(log_dir, config=config, log_tb=config.experiment.logging.log_tb)
model = algo_factory(
    algo_name=config.algo_name,
    config=config,
    obs_key_shapes=shape_meta["all_shapes"],
    ac_dim=shape_meta["ac_dim"],
    device=device,
)
with Path(log_dir, "..", "config.json").open("w") as outfile:
    json.dump(config, outfile, indent=4)
print(model)

trainset, validset = TrainUtils.load_data_for_training(config, obs_keys=shape_meta["all_obs_keys"])
assert len(validset) == 20
sampler = trainset.get_dataset_sampler()
print(trainset)
stats = trainset.get_obs_normalization_stats()
loader = DataLoader(
    dataset=trainset,
    sampler=sampler,
    batch_size=config.train.batch_size,
    shuffle=(sampler is None),
    num_workers=0,
    drop_last=True,
)
valid_loader = DataLoader(
    dataset=validset, sampler=validset.get_dataset_sampler(), batch_size=16, drop_last=True
)
for epoch in range(1, config.train.num_epochs + 1):
    step_log = TrainUtils.run_epoch(
        model=model,
        data_loader=loader,
        epoch=epoch,
        num_steps=config.experiment.epoch_every_n_steps,
    )
    model.on_epoch_end(epoch)
    print(json.dumps(step_log, sort_keys=True, indent=4))
    for k, v in step_log.items():
        prefix = "Timing_Stats/Train_" if k.startswith("Time_") else "Train/"
        data_logger.record(f"{prefix}{k}", v, epoch)
    with torch.no_grad():
        step_log = TrainUtils.run_epoch(
            model=model, data_loader=valid_loader, epoch=epoch, validate=True, num_steps=None
        )
    data_logger.record("Valid/Loss", step_log["Loss"], epoch)
    TrainUtils.save_model(
        model=model,
        config=config,
        env_meta=env_meta,
        shape_meta=shape_meta,
        ckpt_path=f"{ckpt_dir}/model_epoch_{epoch}_best_validation_{step_log['Loss']}.pth",
        obs_normalization_stats=stats,
    )
data_logger.close()
sys.stdout = sys.stderr = terminal

# play.py and robust_eval.py
device = TorchUtils.get_torch_device(try_to_use_cuda=False)
models = sorted(file.name for file in os.scandir(ckpt_dir) if file.is_file())
actions = []
for model in models:
    policy, _ = FileUtils.policy_from_checkpoint(
        ckpt_path=f"{ckpt_dir}/{model}", device=device, verbose=True
    )
    policy.start_episode()
    obs = {"flat": torch.squeeze(torch.as_tensor(env.reset()["flat"])[None]).bfloat16()}
    action = torch.from_numpy(policy({**obs, "other": None})).to(device=device).view(1, 3)
    env.step(action[0].numpy())
    actions.append(list(action.shape))
results = TrainUtils.rollout_with_stats(policy, envs, horizon=5, num_episodes=2)
told = {"models": models, "actions": actions, "logs": results[0][env.name], "run": log_dir}
print(json.dumps(told))
