"""Settings of CQL (https://arxiv.org/abs/2006.04779)."""

from raymimic.config.base_config import BaseConfig


class CQLConfig(BaseConfig):
    """Conservative Q-learning, on top of soft actor-critic.

    Keys and defaults as in ``robomimic/config/cql_config.py``, which has no ``infinite_horizon``.
    """

    __slots__ = ()

    ALGO_NAME = "cql"
    OWN_KEYS = (*BaseConfig.OWN_KEYS, "algo.infinite_horizon")

    def train_config(self) -> None:
        """Takes large batches."""
        super().train_config()
        self.train.batch_size = 1024  # samples of a gradient step, over all workers

    def algo_config(self) -> None:
        """Fills ``algo``."""
        self.algo.optim_params.critic.learning_rate.initial = 1e-3  # of critics and CQL's weight
        self.algo.optim_params.critic.learning_rate.decay_factor = 0.0  # factor at each decay
        self.algo.optim_params.critic.learning_rate.epoch_schedule = []  # epochs of the decays
        self.algo.optim_params.critic.regularization.L2 = 0.00  # weight decay

        self.algo.optim_params.actor.learning_rate.initial = 3e-4  # of actor and entropy's weight
        self.algo.optim_params.actor.learning_rate.decay_factor = 0.0  # factor at each decay
        self.algo.optim_params.actor.learning_rate.epoch_schedule = []  # epochs of the decays
        self.algo.optim_params.actor.regularization.L2 = 0.00  # weight decay

        self.algo.discount = 0.99  # of rewards, per environment step
        self.algo.n_step = 1  # rewards summed before the bootstrap value
        self.algo.infinite_horizon = False  # scale terminal rewards by 1 / (1 - discount)
        self.algo.target_tau = 0.005  # share of the network that moves into its target

        self.algo.actor.bc_start_steps = 0  # first gradient steps, in which the actor imitates
        # Entropy that its weight is tuned for; "default": minus the number of action dimensions;
        # null: the weight stays 1.
        self.algo.actor.target_entropy = "default"
        self.algo.actor.max_gradient_norm = None  # clip gradients to this L2 norm; null: don't

        self.algo.actor.net.type = "gaussian"  # the policy's distribution; there is only this one
        self.algo.actor.net.common.std_activation = "exp"  # maps output to std, or "softplus"
        self.algo.actor.net.common.use_tanh = True  # tanh of a Gaussian; false: Gaussian about tanh
        self.algo.actor.net.common.low_noise_eval = True  # act by the mean in evaluation
        # Bound of the last layer's uniform initialisation; null: torch's.
        self.algo.actor.net.gaussian.init_last_fc_weight = 0.001
        self.algo.actor.net.gaussian.init_std = 0.3  # std at the start, with softplus or fixed
        self.algo.actor.net.gaussian.fixed_std = False  # keep the std at init_std

        self.algo.actor.layer_dims = (300, 400)  # hidden layers

        self.algo.critic.use_huber = False  # Huber loss instead of the squared one
        self.algo.critic.max_gradient_norm = None  # clip gradients to this L2 norm; null: don't
        self.algo.critic.value_bounds = None  # [lowest, highest] value; null: unbounded

        # Next actions of which the best enters the TD target; with more than one the target has no
        # entropy term.
        self.algo.critic.num_action_samples = 1

        self.algo.critic.cql_weight = 1.0  # weight of the conservative term without target_q_gap
        self.algo.critic.deterministic_backup = True  # TD target without the entropy term
        self.algo.critic.min_q_weight = 1.0  # factor of the gap between soft maximum and data
        # Gap that the conservative term's weight is tuned for; null or negative: it is cql_weight.
        self.algo.critic.target_q_gap = 5.0
        self.algo.critic.num_random_actions = 10  # sampled for the gap, of each of three kinds

        self.algo.critic.ensemble.n = 2  # number of critics

        self.algo.critic.layer_dims = (300, 400)  # hidden layers
