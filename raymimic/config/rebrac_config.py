"""Settings of ReBRAC (https://arxiv.org/abs/2305.09836)."""

from math import inf

from raymimic.config.td3_bc_config import TD3_BCConfig


class ReBRACConfig(TD3_BCConfig):
    """ReBRAC: TD3-BC with deep, normalised critics and a penalty on the next action too.

    Networks, learning rates and TD3's settings are the paper's for gym's locomotion tasks. The
    penalties are stronger than its choice for Walker2d's medium and expert data (0.01 and 0.001),
    and the batch is TD3-BC's instead of 1024, for trainings of some ten thousand steps instead of
    the paper's million. `docs/algorithms.md` compares these defaults with TD3-BC's; the paper's
    penalties were not tried at that length.
    """

    __slots__ = ()

    ALGO_NAME = "rebrac"
    RANGES = {
        "algo.actor.bc_weight": (0, inf),
        "algo.critic.bc_weight": (0, inf),
    }
    PERTURBABLE = ("algo.actor.bc_weight", "algo.critic.bc_weight")

    def algo_config(self) -> None:
        """Fills `algo`."""
        super().algo_config()
        del self.algo["alpha"]  # the penalties have weights of their own

        self.algo.optim_params.critic.learning_rate.initial = 1e-3  # learning rate of the critics
        self.algo.optim_params.actor.learning_rate.initial = 1e-3  # learning rate of the actor

        self.algo.critic.bc_weight = 0.01  # beta 2: weight of the penalty on the next action
        self.algo.critic.layer_norm = True  # normalise each hidden layer
        self.algo.critic.layer_dims = (256, 256, 256)  # hidden layers

        self.algo.actor.bc_weight = 0.1  # beta 1: weight of the penalty on the actor's action
        self.algo.actor.normalize_q = True  # divide Q by its mean magnitude in the actor's loss
        self.algo.actor.layer_dims = (256, 256, 256)  # hidden layers
