"""Settings of behavioural cloning (BC) and its policy variants."""

from collections.abc import Iterator
from math import inf

from raymimic.config.base_config import BaseConfig
from raymimic.config.sections import (
    GaussianSection,
    GMMSection,
    OptimizerSection,
    RNNSection,
    TransformerPolicySection,
    VAESection,
    enabled_of,
)


class BCConfig(BaseConfig):
    """Behavioural cloning, with the policy variants of robomimic's `bc`.

    Keys and defaults as in `robomimic/config/bc_config.py`.
    """

    __slots__ = ()

    ALGO_NAME = "bc"
    IN_ROBOMIMIC = True
    RANGES = {"algo.loss.*_weight": (0, inf), "algo.actor_layer_dims": (1, inf)}
    SEES_STACKS = "algo.transformer.enabled"

    def train_config(self) -> None:
        """Leaves out next_obs, which imitation does not read."""
        super().train_config()
        self.train.hdf5_load_next_obs = False  # load next_obs (where the algorithm uses it)

    def algo_config(self) -> None:
        """Fills `algo`."""
        self.algo.optim_params.policy = OptimizerSection(
            1e-4, optimizer_type="adam", learning_rate={"scheduler_type": "multistep"}
        )

        self.algo.loss.l2_weight = 1.0  # weight of the squared error
        self.algo.loss.l1_weight = 0.0  # weight of the smooth absolute error
        self.algo.loss.cos_weight = 0.0  # weight of the angle between the first 3 dimensions

        self.algo.actor_layer_dims = (1024, 1024)  # hidden layers after encoder and RNN

        self.algo.gaussian = GaussianSection()
        self.algo.gmm = GMMSection()
        self.algo.vae = VAESection()
        self.algo.vae.enabled = False  # policy that decodes actions from a latent
        self.algo.vae.latent_dim = 14  # size of the latent; twice the action's is usual
        self.algo.rnn = RNNSection()
        self.algo.transformer = TransformerPolicySection()

    def problems(self) -> Iterator[str]:
        """Looks at the policy's variants, and at the loss."""
        yield from super().problems()
        algo = self.algo
        name = algo.dotted()
        variants = enabled_of(algo, "gaussian", "gmm", "vae")
        if len(variants) > 1:
            listed = ", ".join(f"'{algo.dotted(variant)}'" for variant in variants)
            yield f"{listed} exclude each other: set all but one '{name}.*.enabled' to false"
        memories = enabled_of(algo, "rnn", "transformer")
        if len(memories) > 1:
            yield (
                f"'{name}.rnn', '{name}.transformer' exclude each other: set one "
                f"'{name}.*.enabled' to false"
            )
        heads = enabled_of(algo, "gaussian", "vae")
        if heads and memories:
            yield (
                f"'{name}.{heads[0]}' and '{name}.{memories[0]}' cannot be combined: a policy with "
                f"memory is deterministic or a mixture ('{name}.gmm'); set one 'enabled' to false"
            )
        if not any(algo.loss.values()):
            yield f"all weights in '{name}.loss' are 0 ({', '.join(algo.loss)}): raise one"
