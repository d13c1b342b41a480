"""Settings of IQL (https://arxiv.org/abs/2110.06169)."""

from raymimic.config.base_config import BaseConfig


class IQLConfig(BaseConfig):
    """Implicit Q-learning.

    Keys and defaults as in ``robomimic/config/iql_config.py``, which has no ``n_step`` and no
    ``infinite_horizon``.
    """

    __slots__ = ()

    ALGO_NAME = "iql"
    OWN_KEYS = (*BaseConfig.OWN_KEYS, "algo.n_step", "algo.infinite_horizon")

    def algo_config(self) -> None:
        """Fills ``algo``."""
        self.algo.optim_params.critic.learning_rate.initial = 1e-4  # learning rate of the critics
        self.algo.optim_params.critic.learning_rate.decay_factor = 0.0  # factor at each decay
        self.algo.optim_params.critic.learning_rate.epoch_schedule = []  # epochs of the decays
        self.algo.optim_params.critic.regularization.L2 = 0.00  # weight decay

        self.algo.optim_params.vf.learning_rate.initial = 1e-4  # of the state value's network
        self.algo.optim_params.vf.learning_rate.decay_factor = 0.0  # factor at each decay
        self.algo.optim_params.vf.learning_rate.epoch_schedule = []  # epochs of the decays
        self.algo.optim_params.vf.regularization.L2 = 0.00  # weight decay

        self.algo.optim_params.actor.learning_rate.initial = 1e-4  # learning rate of the actor
        self.algo.optim_params.actor.learning_rate.decay_factor = 0.0  # factor at each decay
        self.algo.optim_params.actor.learning_rate.epoch_schedule = []  # epochs of the decays
        self.algo.optim_params.actor.regularization.L2 = 0.00  # weight decay

        self.algo.discount = 0.99  # of rewards, per environment step
        self.algo.n_step = 1  # rewards summed before the bootstrap value
        self.algo.infinite_horizon = False  # scale terminal rewards by 1 / (1 - discount)
        self.algo.target_tau = 0.01  # share of the network that moves into its target

        self.algo.actor.net.type = "gaussian"  # the policy's distribution, or "gmm"
        self.algo.actor.net.common.std_activation = "softplus"  # maps output to std, or "exp"
        self.algo.actor.net.common.low_noise_eval = True  # nearly no noise in evaluation
        self.algo.actor.net.common.use_tanh = False  # tanh of samples; false: tanh of the mean
        # Bound of the last layer's uniform initialisation; null: torch's.
        self.algo.actor.net.gaussian.init_last_fc_weight = 0.001
        self.algo.actor.net.gaussian.init_std = 0.3  # std at the start, with softplus or fixed
        self.algo.actor.net.gaussian.fixed_std = False  # keep the std at init_std

        self.algo.actor.net.gmm.num_modes = 5  # Gaussians in the mixture
        self.algo.actor.net.gmm.min_std = 0.0001  # least standard deviation

        self.algo.actor.layer_dims = (300, 400)  # hidden layers
        self.algo.actor.max_gradient_norm = None  # clip gradients to this L2 norm; null: don't

        self.algo.critic.ensemble.n = 2  # number of critics
        self.algo.critic.layer_dims = (300, 400)  # hidden layers of Q and V
        self.algo.critic.use_huber = False  # Huber loss instead of the squared one, for Q
        self.algo.critic.max_gradient_norm = None  # clip those of Q and V to this L2 norm

        self.algo.adv.clip_adv_value = None  # greatest advantage that counts; null: any
        self.algo.adv.beta = 1.0  # temperature: the weight is exp(advantage / beta)
        self.algo.adv.use_final_clip = True  # weights of 100 at most

        self.algo.vf_quantile = 0.9  # expectile of Q that V is; 0.5: its mean, 1: its maximum
