"""Settings of BCQ (https://arxiv.org/abs/1812.02900)."""

from raymimic.config.base_config import BaseConfig
from raymimic.config.bc_config import BCConfig


class BCQConfig(BaseConfig):
    """Batch-constrained Q-learning, with a VAE or a Gaussian mixture that proposes actions.

    Keys and defaults as in ``robomimic/config/bcq_config.py``, and
    ``critic.distributional.clip_to_second_atom``.
    """

    __slots__ = ()

    ALGO_NAME = "bcq"
    OWN_KEYS = (*BaseConfig.OWN_KEYS, "algo.critic.distributional.clip_to_second_atom")

    def algo_config(self) -> None:
        """Fills ``algo``."""
        self.algo.optim_params.critic.learning_rate.initial = 1e-3  # learning rate of the critics
        self.algo.optim_params.critic.learning_rate.decay_factor = 0.1  # factor at each decay
        self.algo.optim_params.critic.learning_rate.epoch_schedule = []  # epochs of the decays
        self.algo.optim_params.critic.regularization.L2 = 0.00  # weight decay
        self.algo.optim_params.critic.start_epoch = -1  # first epoch that trains them; -1: at once
        self.algo.optim_params.critic.end_epoch = -1  # train them before this epoch; -1: to the end

        # Of the model that proposes actions: its learning rate.
        self.algo.optim_params.action_sampler.learning_rate.initial = 1e-3
        self.algo.optim_params.action_sampler.learning_rate.decay_factor = 0.1  # at each decay
        self.algo.optim_params.action_sampler.learning_rate.epoch_schedule = []  # of the decays
        self.algo.optim_params.action_sampler.regularization.L2 = 0.00  # weight decay
        self.algo.optim_params.action_sampler.start_epoch = -1  # first epoch that trains it
        self.algo.optim_params.action_sampler.end_epoch = -1  # train it before this epoch; -1: all

        self.algo.optim_params.actor.learning_rate.initial = 1e-3  # of the perturbation network
        self.algo.optim_params.actor.learning_rate.decay_factor = 0.1  # factor at each decay
        self.algo.optim_params.actor.learning_rate.epoch_schedule = []  # epochs of the decays
        self.algo.optim_params.actor.regularization.L2 = 0.00  # weight decay
        self.algo.optim_params.actor.start_epoch = -1  # first epoch that trains it; -1: at once
        self.algo.optim_params.actor.end_epoch = -1  # train it before this epoch; -1: to the end

        self.algo.discount = 0.99  # of rewards, per environment step
        self.algo.n_step = 1  # rewards summed before the bootstrap value
        self.algo.target_tau = 0.005  # share of the network that moves into its target
        self.algo.infinite_horizon = False  # scale terminal rewards by 1 / (1 - discount)

        self.algo.critic.use_huber = False  # Huber loss instead of the squared one
        self.algo.critic.max_gradient_norm = None  # clip gradients to this L2 norm; null: don't
        # [lowest, highest] value; null: unbounded. A distributional critic needs them.
        self.algo.critic.value_bounds = None
        self.algo.critic.num_action_samples = 10  # actions that a target maximises over
        self.algo.critic.num_action_samples_rollout = 100  # actions that the policy chooses from
        self.algo.critic.ensemble.n = 2  # number of critics; a distributional one is alone
        self.algo.critic.ensemble.weight = 0.75  # of the ensemble's minimum, the rest its maximum
        self.algo.critic.distributional.enabled = False  # predict distributions of returns (C51)
        self.algo.critic.distributional.num_atoms = 51  # values that a return may have
        # Cut returns off at the second lowest of these values, as robomimic does by mistake;
        # false: at the highest, which is C51.
        self.algo.critic.distributional.clip_to_second_atom = True
        self.algo.critic.layer_dims = (300, 400)  # hidden layers

        bc = BCConfig().algo
        self.algo.action_sampler.actor_layer_dims = bc.actor_layer_dims  # hidden layers of a GMM
        self.algo.action_sampler.gmm = bc.gmm  # propose by a Gaussian mixture; keys as bc's
        self.algo.action_sampler.vae = bc.vae  # propose by a VAE; keys as bc's
        self.algo.action_sampler.vae.enabled = True  # unless gmm.enabled
        self.algo.action_sampler.freeze_encoder_epoch = -1  # VAE's encoder learns until; -1: always

        self.algo.actor.enabled = False  # learn to move proposed actions (the perturbation network)
        self.algo.actor.perturbation_scale = 0.05  # how far, in each dimension
        self.algo.actor.layer_dims = (300, 400)  # hidden layers
