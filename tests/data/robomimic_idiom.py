"""Three algorithms of a user, in the form that robomimic's own files have.

Their constructors and methods rely on the contracts that such files rely on: a hierarchy whose
constructor makes its parts and calls none of its base, `reset` without a mask, `deserialize` without
optimizers, the table of modalities, a moving average of weights that `serialize` names.
"""

from collections import OrderedDict
from copy import deepcopy

import torch
import torch.nn as nn

import raymimic.models.base_nets as BaseNets
import raymimic.models.policy_nets as PolicyNets
import raymimic.utils.obs_utils as ObsUtils
import raymimic.utils.tensor_utils as TensorUtils
import raymimic.utils.torch_utils as TorchUtils
from raymimic.algo import (
    HierarchicalAlgo,
    PolicyAlgo,
    algo_factory,
    algo_name_to_factory_func,
    register_algo_factory_func,
)
from raymimic.config import config_factory
from raymimic.config.base_config import BaseConfig
from raymimic.config.bc_config import BCConfig
from raymimic.config.config import Config
from raymimic.config.gl_config import GLConfig


# ------------------------------------------------------------------------------- a hierarchy


class HierarchyConfig(BaseConfig):
    ALGO_NAME = "idiom_hierarchy"

    def train_config(self):
        super().train_config()
        self.train.seq_length = 4

    def algo_config(self):
        self.algo.planner = GLConfig().algo
        self.algo.planner.subgoal_horizon = 4
        self.algo.planner.vae.enabled = True
        self.algo.actor = BCConfig().algo
        self.algo.actor.rnn.enabled = True
        self.algo.actor.rnn.horizon = 4
        del self.algo.actor.vae
        self.algo.subgoal_update_interval = 3

    def observation_config(self):
        self.observation.planner = GLConfig().observation
        self.observation.actor = BCConfig().observation

    @property
    def use_goals(self):
        return len(self.observation.planner.modalities.goal.low_dim) > 0


@register_algo_factory_func("idiom_hierarchy")
def hierarchy_class(algo_config):
    actor_class, _ = algo_name_to_factory_func("bc")(algo_config.actor)
    return Hierarchy, dict(actor_class=actor_class)


class Hierarchy(HierarchicalAlgo):
    def __init__(
        self, actor_class, algo_config, obs_config, global_config, obs_key_shapes, ac_dim, device
    ):
        self.algo_config = algo_config
        self.obs_config = obs_config
        self.global_config = global_config
        self.ac_dim = ac_dim
        self.device = device
        self._steps = 0
        self._subgoal = None

        sections = {"algo": algo_config.planner, "observation": obs_config.planner}
        self.planner = algo_factory(
            "gl", config_factory("gl", sections), obs_key_shapes, ac_dim, device
        )
        subgoal_keys = {name: [] for name in ObsUtils.OBS_MODALITY_CLASSES}
        for key, shape in self.planner.subgoal_shapes.items():
            assert obs_key_shapes[key] == shape
            subgoal_keys[ObsUtils.OBS_KEYS_TO_MODALITIES[key]].append(key)
        actor_obs_config = deepcopy(obs_config.actor)
        with actor_obs_config.unlocked():
            actor_obs_config.modalities["goal"] = Config(**subgoal_keys)
        self.actor = actor_class(
            algo_config=algo_config.actor,
            obs_config=actor_obs_config,
            global_config=global_config,
            obs_key_shapes=deepcopy(obs_key_shapes),
            ac_dim=ac_dim,
            device=device,
        )

    def process_batch_for_training(self, batch):
        planner = self.planner.process_batch_for_training(batch)
        actor = self.actor.process_batch_for_training(batch)
        actor["goal_obs"] = self.planner.get_actor_goal_for_training_from_processed_batch(
            planner, use_latent_subgoals=False
        )
        inputs = dict(planner=planner, actor=actor)
        return TensorUtils.to_float(TensorUtils.to_device(inputs, self.device))

    def train_on_batch(self, batch, epoch, validate=False):
        return dict(
            planner=self.planner.train_on_batch(batch["planner"], epoch, validate=validate),
            actor=self.actor.train_on_batch(batch["actor"], epoch, validate=validate),
        )

    def log_info(self, info):
        planner, actor = self.planner.log_info(info["planner"]), self.actor.log_info(info["actor"])
        log = {f"Planner/{k}": v for k, v in planner.items()}
        log.update({f"Actor/{k}": v for k, v in actor.items()})
        log["Loss"] = planner["Loss"] + actor["Loss"]
        return log

    def on_epoch_end(self, epoch):
        self.planner.on_epoch_end(epoch)
        self.actor.on_epoch_end(epoch)

    def set_eval(self):
        self.planner.set_eval()
        self.actor.set_eval()

    def set_train(self):
        self.planner.set_train()
        self.actor.set_train()

    def serialize(self):
        return dict(planner=self.planner.serialize(), actor=self.actor.serialize())

    def deserialize(self, model_dict):
        self.planner.deserialize(model_dict["planner"])
        self.actor.deserialize(model_dict["actor"])

    def get_action(self, obs_dict, goal_dict=None):
        if self._steps % self.algo_config.subgoal_update_interval == 0:
            self._subgoal = self.planner.get_subgoal_predictions(obs_dict, goal_dict)
        self._steps += 1
        return self.actor.get_action(obs_dict=obs_dict, goal_dict=self._subgoal)

    def reset(self):
        self._steps = 0
        self._subgoal = None
        self.planner.reset()
        self.actor.reset()


# ----------------------------------------------------------- a policy with memory and average


class AveragedConfig(BaseConfig):
    ALGO_NAME = "idiom_averaged"

    def train_config(self):
        super().train_config()
        self.train.seq_length = 5

    def algo_config(self):
        policy = self.algo.optim_params.policy
        policy.optimizer_type = "adamw"
        policy.learning_rate.initial = 1e-3
        policy.learning_rate.decay_factor = 0.1
        policy.learning_rate.epoch_schedule = [1]
        policy.learning_rate.scheduler_type = "multistep"
        policy.learning_rate.step_every_batch = False
        policy.regularization.L2 = 0.01
        self.algo.actor_layer_dims = (16,)
        self.algo.ema.power = 0.75
        self.algo.rnn.horizon = 5
        self.algo.rnn.hidden_dim = 16
        self.algo.rnn.rnn_type = "LSTM"
        self.algo.rnn.num_layers = 1
        self.algo.rnn.kwargs.bidirectional = False
        self.algo.rnn.kwargs.do_not_lock_keys()


@register_algo_factory_func("idiom_averaged")
def averaged_class(algo_config):
    return Averaged, {}


class Averaged(PolicyAlgo):
    def _create_networks(self):
        nets = nn.ModuleDict()
        nets["policy"] = PolicyNets.RNNActorNetwork(
            obs_shapes=self.obs_shapes,
            goal_shapes=self.goal_shapes,
            ac_dim=self.ac_dim,
            mlp_layer_dims=self.algo_config.actor_layer_dims,
            encoder_kwargs=ObsUtils.obs_encoder_kwargs_from_config(self.obs_config.encoder),
            **BaseNets.rnn_args_from_config(self.algo_config.rnn),
        )
        self.nets = nets.float().to(self.device)
        self.ema = TorchUtils.EMAModel(model=self.nets, power=self.algo_config.ema.power)
        self._rnn_state = None

    def process_batch_for_training(self, batch):
        inputs = {name: batch.get(name) for name in ("obs", "goal_obs", "actions")}
        return TensorUtils.to_float(TensorUtils.to_device(inputs, self.device))

    def train_on_batch(self, batch, epoch, validate=False):
        with TorchUtils.maybe_no_grad(no_grad=validate):
            info = super().train_on_batch(batch, epoch, validate=validate)
            actions = self.nets["policy"](obs_dict=batch["obs"], goal_dict=batch["goal_obs"])
            losses = OrderedDict(l2_loss=nn.MSELoss()(actions, batch["actions"]))
            info["losses"] = TensorUtils.detach(losses)
            if not validate:
                info["policy_grad_norms"] = TorchUtils.backprop_for_loss(
                    net=self.nets, optim=self.optimizers["policy"], loss=losses["l2_loss"]
                )
                self.ema.step(self.nets)
        return info

    def log_info(self, info):
        log = super().log_info(info)
        log["Loss"] = info["losses"]["l2_loss"].item()
        return log

    def get_action(self, obs_dict, goal_dict=None):
        assert not self.nets.training
        policy = self.ema.averaged_model["policy"]
        if self._rnn_state is None:
            batch_size = len(next(iter(obs_dict.values())))
            self._rnn_state = policy.get_rnn_init_state(batch_size, device=self.device)
        action, self._rnn_state = policy.forward_step(
            obs_dict, goal_dict, rnn_state=self._rnn_state
        )
        return action

    def reset(self):
        self._rnn_state = None

    def serialize(self):
        return dict(
            nets=self.nets.state_dict(),
            optimizers={k: self.optimizers[k].state_dict() for k in self.optimizers},
            lr_schedulers={k: v and v.state_dict() for k, v in self.lr_schedulers.items()},
            ema=self.ema.averaged_model.state_dict(),
        )

    def deserialize(self, model_dict):
        self.nets.load_state_dict(model_dict["nets"])
        self.ema.averaged_model.load_state_dict(model_dict["ema"])


# --------------------------------------------------------------------------- a transformer


class WindowedConfig(BaseConfig):
    ALGO_NAME = "idiom_windowed"

    def train_config(self):
        super().train_config()
        self.train.frame_stack = 2
        self.train.seq_length = 2

    def algo_config(self):
        self.algo.optim_params.policy.learning_rate.initial = 1e-3
        self.algo.optim_params.policy.learning_rate.epoch_schedule = []
        self.algo.optim_params.policy.regularization.L2 = 0.0
        self.algo.transformer = BCConfig().algo.transformer
        self.algo.transformer.context_length = 2
        self.algo.transformer.embed_dim = 16
        self.algo.transformer.num_layers = 1
        self.algo.transformer.num_heads = 2


@register_algo_factory_func("idiom_windowed")
def windowed_class(algo_config):
    return Windowed, {}


class Windowed(PolicyAlgo):
    def _create_networks(self):
        self.nets = nn.ModuleDict()
        self.nets["policy"] = PolicyNets.TransformerActorNetwork(
            obs_shapes=self.obs_shapes,
            goal_shapes=self.goal_shapes,
            ac_dim=self.ac_dim,
            encoder_kwargs=ObsUtils.obs_encoder_kwargs_from_config(self.obs_config.encoder),
            **BaseNets.transformer_args_from_config(self.algo_config.transformer),
        )
        self.context_length = self.algo_config.transformer.context_length
        self.nets = self.nets.float().to(self.device)

    def process_batch_for_training(self, batch):
        inputs = dict(goal_obs=batch.get("goal_obs", None))
        inputs["obs"] = {k: x[:, : self.context_length] for k, x in batch["obs"].items()}
        inputs["actions"] = batch["actions"][:, : self.context_length]
        return TensorUtils.to_device(TensorUtils.to_float(inputs), self.device)

    def train_on_batch(self, batch, epoch, validate=False):
        with TorchUtils.maybe_no_grad(no_grad=validate):
            info = super().train_on_batch(batch, epoch, validate=validate)
            TensorUtils.assert_size_at_dim(
                batch["obs"], size=self.context_length, dim=1, msg="a window of another length"
            )
            actions = self.nets["policy"](
                obs_dict=batch["obs"], actions=None, goal_dict=batch["goal_obs"]
            )
            loss = nn.SmoothL1Loss()(actions, batch["actions"])
            info["loss"] = loss.detach()
            if not validate:
                TorchUtils.backprop_for_loss(
                    net=self.nets["policy"], optim=self.optimizers["policy"], loss=loss
                )
        return info

    def get_action(self, obs_dict, goal_dict=None):
        assert not self.nets.training
        return self.nets["policy"](obs_dict, actions=None, goal_dict=goal_dict)[:, -1, :]
