"""Settings of CQL (https://arxiv.org/abs/2006.04779)."""

from collections.abc import Iterator
from math import inf

from raymimic.config.q_learning_config import QLearningConfig
from raymimic.config.sections import (
    ABOVE_0,
    AnyOf,
    BoundedCriticSection,
    OptimizerSection,
    StochasticPolicySection,
)


class CQLConfig(QLearningConfig):
    """Conservative Q-learning, on top of soft actor-critic.

    Keys and defaults as in `robomimic/config/cql_config.py`, which has no `infinite_horizon`.
    """

    __slots__ = ()

    ALGO_NAME = "cql"
    IN_ROBOMIMIC = True
    OWN_KEYS = (*QLearningConfig.OWN_KEYS, "algo.infinite_horizon")
    RANGES = {
        "algo.actor.bc_start_steps": (0, inf),
        "algo.actor.max_gradient_norm": (ABOVE_0, inf),
        "algo.actor.layer_dims": (1, inf),
        "algo.critic.num_action_samples": (1, inf),
        "algo.critic.cql_weight": (0, inf),
        "algo.critic.min_q_weight": (0, inf),
        "algo.critic.num_random_actions": (1, inf),
    }
    EXAMPLES = {
        "algo.actor.target_entropy": AnyOf(("default", -1.0)),
        "algo.actor.max_gradient_norm": 1.0,
    }
    NULLABLE = ("algo.actor.target_entropy", "algo.critic.target_q_gap")

    def train_config(self) -> None:
        """Takes large batches."""
        super().train_config()
        self.train.batch_size = 1024  # samples of a gradient step, over all workers

    def algo_config(self) -> None:
        """Fills `algo`."""
        self.algo.optim_params.critic = OptimizerSection(decay_factor=0.0)
        self.algo.optim_params.critic.learning_rate.initial = 1e-3  # of critics and CQL's weight
        self.algo.optim_params.actor = OptimizerSection(decay_factor=0.0)
        self.algo.optim_params.actor.learning_rate.initial = 3e-4  # of actor and entropy's weight

        super().algo_config()

        self.algo.actor.bc_start_steps = 0  # first gradient steps, in which the actor imitates
        # Entropy that its weight is tuned for; "default": minus the number of action dimensions;
        # null: the weight stays 1.
        self.algo.actor.target_entropy = "default"
        self.algo.actor.max_gradient_norm = None  # clip gradients to this L2 norm; null: don't

        self.algo.actor.net = StochasticPolicySection()
        self.algo.actor.net.type = "gaussian"  # the policy's distribution; there is only this one
        self.algo.actor.net.common.std_activation = "exp"
        self.algo.actor.net.common.use_tanh = True  # tanh of a Gaussian; false: Gaussian about tanh
        self.algo.actor.net.common.low_noise_eval = True  # act by the mean in evaluation

        self.algo.actor.layer_dims = (300, 400)  # hidden layers

        self.algo.critic = BoundedCriticSection()
        # Next actions of which the best enters the TD target; with more than one the target has no
        # entropy term.
        self.algo.critic.num_action_samples = 1

        self.algo.critic.cql_weight = 1.0  # weight of the conservative term without target_q_gap
        self.algo.critic.deterministic_backup = True  # TD target without the entropy term
        self.algo.critic.min_q_weight = 1.0  # factor of the gap between soft maximum and data
        # Gap that the conservative term's weight is tuned for; null or negative: it is cql_weight.
        self.algo.critic.target_q_gap = 5.0
        self.algo.critic.num_random_actions = 10  # sampled for the gap, of each of three kinds

    def problems(self) -> Iterator[str]:
        """Looks at the entropy."""
        yield from super().problems()
        actor = self.algo.actor
        if isinstance(actor.target_entropy, str) and actor.target_entropy != "default":
            yield (
                f"'{actor.dotted('target_entropy')}' is '{actor.target_entropy}': it must be a "
                "number, 'default' or null (a fixed weight of the entropy)"
            )
