"""Settings of BCQ (https://arxiv.org/abs/1812.02900)."""

from collections.abc import Iterator
from math import inf

from raymimic.config.q_learning_config import QLearningConfig
from raymimic.config.sections import (
    BoundedCriticSection,
    GMMSection,
    OptimizerSection,
    VAESection,
    enabled_of,
)


class BCQConfig(QLearningConfig):
    """Batch-constrained Q-learning, with a VAE or a Gaussian mixture that proposes actions.

    Keys and defaults as in `robomimic/config/bcq_config.py`, and
    `critic.distributional.clip_to_second_atom`.
    """

    __slots__ = ()

    ALGO_NAME = "bcq"
    IN_ROBOMIMIC = True
    OWN_KEYS = (*QLearningConfig.OWN_KEYS, "algo.critic.distributional.clip_to_second_atom")
    RANGES = {
        "algo.critic.num_action_samples*": (1, inf),
        "algo.critic.ensemble.weight": (0, 1),
        "algo.critic.distributional.num_atoms": (2, inf),
        "algo.action_sampler.actor_layer_dims": (1, inf),
        "algo.action_sampler.freeze_encoder_epoch": (-1, inf),
        "algo.actor.perturbation_scale": (0, inf),
        "algo.actor.layer_dims": (1, inf),
    }

    def algo_config(self) -> None:
        """Fills `algo`."""
        # Networks: the critics, the model that proposes actions, the one that perturbs them.
        for net in ("critic", "action_sampler", "actor"):
            self.algo.optim_params[net] = OptimizerSection(1e-3, start_epoch=-1, end_epoch=-1)

        super().algo_config()

        self.algo.critic = BoundedCriticSection()
        # [lowest, highest] value; null: unbounded. A distributional critic needs them.
        self.algo.critic.value_bounds = None
        self.algo.critic.num_action_samples = 10  # actions that a target maximises over
        self.algo.critic.num_action_samples_rollout = 100  # actions that the policy chooses from
        self.algo.critic.ensemble.n = 2  # number of critics; 1 if they are distributional
        self.algo.critic.ensemble.weight = 0.75  # weight of the critics' minimum; rest: the maximum
        self.algo.critic.distributional.enabled = False  # predict distributions of returns (C51)
        self.algo.critic.distributional.num_atoms = 51  # values that a return may have
        # Clip returns at the second lowest of these values, as robomimic does by mistake;
        # false: at the highest, as in C51.
        self.algo.critic.distributional.clip_to_second_atom = True

        self.algo.action_sampler.actor_layer_dims = (1024, 1024)  # hidden layers of a GMM
        self.algo.action_sampler.gmm = GMMSection()
        self.algo.action_sampler.gmm.enabled = False  # propose by a Gaussian mixture
        self.algo.action_sampler.vae = VAESection()
        self.algo.action_sampler.vae.enabled = True  # propose by a VAE, unless gmm.enabled
        self.algo.action_sampler.freeze_encoder_epoch = -1  # VAE's encoder learns until; -1: always

        self.algo.actor.enabled = False  # learn to move proposed actions (the perturbation network)
        self.algo.actor.perturbation_scale = 0.05  # how far, in each dimension
        self.algo.actor.layer_dims = (300, 400)  # hidden layers

    def problems(self) -> Iterator[str]:
        """Looks at the model that proposes actions, and at distributional critics."""
        yield from super().problems()
        sampler, critic = self.algo.action_sampler, self.algo.critic
        if not enabled_of(sampler, "vae", "gmm"):
            yield (
                f"'{sampler.dotted()}' samples from nothing: set '{sampler.dotted('vae.enabled')}' "
                f"or '{sampler.dotted('gmm.enabled')}'"
            )
        if critic.distributional.enabled and critic.value_bounds is None:
            yield (
                f"'{critic.dotted('distributional')}' spreads its atoms over "
                f"'{critic.dotted('value_bounds')}', which is null: give [lowest, highest]"
            )

    def warnings(self) -> Iterator[str]:
        """Looks at distributional critics."""
        yield from super().warnings()
        distributional = self.algo.critic.distributional
        if distributional.enabled and distributional.clip_to_second_atom:
            yield (
                f"'{distributional.dotted()}' cuts every return off at the second lowest atom, as "
                "robomimic does by mistake: set its 'clip_to_second_atom' to false for C51"
            )
