"""Makes the calls of robomimic's examples, and of diffusion_policy's.

usage: robomimic_examples.py DATASET FOLDER
"""

import json
import sys
from collections import OrderedDict

import numpy as np
import robomimic.macros as Macros
import robomimic.utils.file_utils as FileUtils
import robomimic.utils.obs_utils as ObsUtils
import robomimic.utils.tensor_utils as TensorUtils
import robomimic.utils.torch_utils as TorchUtils
import torch
from robomimic.algo import algo_factory
from robomimic.algo.algo import PolicyAlgo
from robomimic.config import config_factory
from robomimic.config.base_config import Config
from robomimic.config.bc_config import BCConfig
from robomimic.models import EncoderCore, Randomizer
from robomimic.models.base_nets import MLP
from robomimic.models.obs_core import CropRandomizer
from robomimic.models.obs_nets import ObservationDecoder, ObservationEncoder
from robomimic.scripts.train import train
from robomimic.utils.dataset import SequenceDataset
from robomimic.utils.obs_utils import Modality, ScanModality
from torch.utils.data import DataLoader

dataset_path, folder = sys.argv[1:]
told = {}

# ---------------------------------------------------------------------------- a config with locks
free = Config()
free.train.batch_size = 100
free.train.rate = 1e-3
free.algo.sizes = [1000, 1000]
free.lock()
try:
    free.train.optimizer = "Adam"
except RuntimeError:
    told["locks"] = [free.train.batch_size]
with free.values_unlocked():
    free.train.batch_size = 200
    free.update({"train": {"rate": 1e-4}, "algo": {"sizes": [10]}})
with free.unlocked():
    free.test.num_eval = 10
assert free.is_locked
assert free.test.is_locked
told["locks"] += [free.train.batch_size, free.train.rate, free.algo.sizes, free.test.num_eval]
assert '"num_eval": 10' in str(free)

# ------------------------------------------------------------------ a training loop of its own
config = config_factory(algo_name="bc")
config.train.data = [{"path": dataset_path}]
config.observation.modalities.obs.low_dim = ["flat"]
config.algo.actor_layer_dims = [16]
ObsUtils.initialize_obs_utils_with_config(config)
shape_meta = FileUtils.get_shape_metadata_from_dataset(
    dataset_config=config.train.data[0],
    action_keys=config.train.action_keys,
    all_obs_keys=sorted(("flat",)),
)
dataset = SequenceDataset(
    hdf5_path=dataset_path,
    obs_keys=("flat",),
    action_keys=("actions",),
    dataset_keys=("actions", "rewards", "dones"),
    action_config={"actions": {}},
    load_next_obs=True,
    frame_stack=1,
    seq_length=10,
    pad_frame_stack=True,
    pad_seq_length=True,
    get_pad_mask=False,
    goal_mode=None,
    hdf5_cache_mode="all",
    hdf5_use_swmr=True,
    hdf5_normalize_obs=False,
    filter_by_attribute=None,
)
model = algo_factory(
    algo_name=config.algo_name,
    config=config,
    obs_key_shapes=shape_meta["all_shapes"],
    ac_dim=shape_meta["ac_dim"],
    device=TorchUtils.get_torch_device(try_to_use_cuda=False),
)
loader = DataLoader(dataset=dataset, sampler=None, batch_size=20, shuffle=True, drop_last=True)
model.set_train()
losses = []
for batch in loader:
    batch = model.process_batch_for_training(batch)
    batch = model.postprocess_batch_for_training(batch, obs_normalization_stats=None)
    info = model.train_on_batch(batch=batch, epoch=1, validate=False)
    losses.append(model.log_info(info)["Loss"])
model.on_epoch_end(1)
told["losses"] = bool(np.isfinite(np.mean(losses)))

# ----------------------------------------------------------------- an encoder made key by key
encoder = ObservationEncoder(feature_activation=torch.nn.ReLU)
shape, other = [3, 64, 64], [3, 70, 66]
kwargs = {
    "input_shape": shape,
    "backbone_class": "ResNet18Conv",
    "backbone_kwargs": {"pretrained": False, "input_coord_conv": False},
    "pool_class": "SpatialSoftmax",
    "pool_kwargs": {"num_kp": 8},
}
encoder.register_obs_key(name="one", shape=shape, net_class="VisualCore", net_kwargs=kwargs)
crop = CropRandomizer(input_shape=other, crop_height=64, crop_width=64)
kwargs["input_shape"] = crop.output_shape_in(other)
net = ObsUtils.OBS_ENCODER_CORES["VisualCore"](**kwargs)
encoder.register_obs_key(name="two", shape=other, net=net, randomizers=crop)
encoder.register_obs_key(name="three", shape=shape, share_net_from="one")
net = MLP(input_dim=12, output_dim=32, layer_dims=(16,), output_activation=None)
encoder.register_obs_key(name="proprio", shape=[12], net=net)
ObsUtils.initialize_obs_modality_mapping_from_dict(
    modality_mapping={"low_dim": ["proprio"], "rgb": ["one", "two", "three"]}
)
encoder.make()
inputs = {"one": shape, "two": other, "three": shape, "proprio": [12]}
inputs = TensorUtils.to_batch({key: torch.randn(size) for key, size in inputs.items()})
inputs = TensorUtils.to_device(inputs, torch.device("cpu"))
features = encoder(inputs)
decoder = ObservationDecoder(
    input_feat_dim=encoder.output_shape()[0], decode_shapes=OrderedDict({"action": (7,)})
)
told["features"] = [list(features.shape), list(decoder(features)["action"].shape)]


# ----------------------------------------------------- a modality, an encoder and a randomizer
class Centred(Modality):
    name = "centred"

    @classmethod
    def _default_obs_processor(cls, obs):
        return (obs / 255.0 - 0.5) * 2

    @classmethod
    def _default_obs_unprocessor(cls, obs):
        return ((obs / 2) + 0.5) * 255.0


class Scaled(EncoderCore):
    def __init__(self, input_shape, factor):
        super().__init__(input_shape=input_shape)
        self.factor = factor

    def output_shape(self, input_shape=None):
        return input_shape

    def forward(self, inputs):
        return inputs * self.factor


class Copies(Randomizer):
    def __init__(self, input_shape, number=1):
        super().__init__()
        self.number = number

    def output_shape_in(self, input_shape=None):
        return list(input_shape)

    def output_shape_out(self, input_shape=None):
        return list(input_shape)

    def forward_in(self, inputs):
        if not self.training:
            return inputs
        out = TensorUtils.unsqueeze_expand_at(inputs, size=self.number, dim=1)
        return TensorUtils.join_dimensions(out, 0, 1)

    def forward_out(self, inputs):
        if not self.training:
            return inputs
        out = TensorUtils.reshape_dimensions(
            inputs, begin_axis=0, end_axis=0, target_dims=(-1, self.number)
        )
        return out.mean(dim=1)


ScanModality.set_obs_processor(processor=lambda obs: obs[1:-1])
told["scan"] = ObsUtils.process_obs(np.arange(5), obs_modality="scan").tolist()
ScanModality.set_obs_processor(None)

config = BCConfig()
own = config.observation.encoder.centred
own.core_class = "Scaled"
own.core_kwargs.factor = 3.0
own.obs_randomizer_class = "Copies"
own.obs_randomizer_kwargs.number = 4
config.observation.modalities.obs.low_dim = []
config.observation.modalities.obs.centred = ["picture"]
config.algo.actor_layer_dims = [8]
model: PolicyAlgo = algo_factory("bc", config, {"picture": [2, 3]}, ac_dim=2, device="cpu")
batch = {"obs": {"picture": torch.full((5, 1, 2, 3), 255.0)}, "actions": torch.zeros(5, 1, 2)}
batch = model.process_batch_for_training(batch)
batch = model.postprocess_batch_for_training(batch, obs_normalization_stats=None)
model.set_train()
told["own"] = [float(batch["obs"]["picture"].mean())]
told["own"].append("Loss" in model.log_info(model.train_on_batch(batch, 1)))
model.set_eval()
told["own"].append(list(model.get_action(batch["obs"]).shape))

# ------------------------------------------------------------------- a training set up in a script
Macros.DEBUG = True
config = config_factory(algo_name="bc")
config.experiment.name = "bc_rnn"
config.experiment.validate = True
config.experiment.save.every_n_epochs = 1
config.experiment.epoch_every_n_steps = 3
config.experiment.validation_epoch_every_n_steps = 3
config.experiment.rollout.enabled = False
config.train.data = dataset_path
config.train.output_dir = folder
config.train.num_data_workers = 0
config.train.hdf5_filter_key = "train"
config.train.hdf5_validation_filter_key = "valid"
config.train.seq_length = 5
config.train.dataset_keys = ("actions", "rewards", "dones")
config.train.batch_size = 10
config.train.num_epochs = 2
config.observation.modalities.obs.low_dim = ["flat"]
config.algo.actor_layer_dims = ()
config.algo.gmm.enabled = True
config.algo.rnn.enabled = True
config.algo.rnn.horizon = 5
config.algo.rnn.hidden_dim = 8
config.ray.num_workers = 0  # in this process
config.mlflow.enabled = False
train(config, device=TorchUtils.get_torch_device(try_to_use_cuda=False))
print(json.dumps(told))
