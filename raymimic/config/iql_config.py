"""Settings of IQL (https://arxiv.org/abs/2110.06169)."""

from math import inf

from raymimic.config.q_learning_config import QLearningConfig
from raymimic.config.sections import (
    ABOVE_0,
    CriticSection,
    OptimizerSection,
    StochasticPolicySection,
)


class IQLConfig(QLearningConfig):
    """Implicit Q-learning.

    Keys and defaults as in `robomimic/config/iql_config.py`, which has no `n_step` and no
    `infinite_horizon`.
    """

    __slots__ = ()

    ALGO_NAME = "iql"
    IN_ROBOMIMIC = True
    OWN_KEYS = (*QLearningConfig.OWN_KEYS, "algo.n_step", "algo.infinite_horizon")
    RANGES = {
        "algo.actor.net.gmm.num_modes": (1, inf),
        "algo.actor.net.gmm.min_std": (0, inf),
        "algo.actor.layer_dims": (1, inf),
        "algo.actor.max_gradient_norm": (ABOVE_0, inf),
        "algo.adv.beta": (1e-6, inf),
        "algo.vf_quantile": (0, 1),
    }
    EXAMPLES = {"algo.actor.max_gradient_norm": 1.0, "algo.adv.clip_adv_value": 1.0}

    def algo_config(self) -> None:
        """Fills `algo`."""
        for net in ("critic", "vf", "actor"):  # vf: the state values' network
            self.algo.optim_params[net] = OptimizerSection(1e-4, decay_factor=0.0)

        super().algo_config()
        self.algo.target_tau = 0.01

        self.algo.actor.net = StochasticPolicySection()
        self.algo.actor.net.type = "gaussian"  # the policy's distribution, or "gmm"
        self.algo.actor.net.gmm.num_modes = 5  # Gaussians in the mixture
        self.algo.actor.net.gmm.min_std = 0.0001  # least standard deviation

        self.algo.actor.layer_dims = (300, 400)  # hidden layers
        self.algo.actor.max_gradient_norm = None  # clip gradients to this L2 norm; null: don't

        self.algo.critic = CriticSection()
        self.algo.critic.use_huber = False  # Huber loss instead of the squared one, for Q
        self.algo.critic.max_gradient_norm = None  # clip those of Q and V to this L2 norm
        self.algo.critic.layer_dims = (300, 400)  # hidden layers of Q and V

        self.algo.adv.clip_adv_value = None  # greatest advantage that counts; null: any
        self.algo.adv.beta = 1.0  # temperature: the weight is exp(advantage / beta)
        self.algo.adv.use_final_clip = True  # weights of 100 at most

        self.algo.vf_quantile = 0.9  # expectile of Q that V is; 0.5: its mean, 1: its maximum
