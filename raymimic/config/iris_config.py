"""Settings of IRIS (https://arxiv.org/abs/1911.05321)."""

from raymimic.config.bc_config import BCConfig
from raymimic.config.bcq_config import BCQConfig
from raymimic.config.gl_config import GLConfig
from raymimic.config.hbc_config import HBCConfig


class IRISConfig(HBCConfig):
    """IRIS: HBC whose planner chooses the best of many subgoals by their value (``bcq``).

    Keys and defaults as in ``robomimic/config/iris_config.py``. So by default the actor sees no
    subgoal: ``observation.actor.modalities.goal`` lists what it sees of them.
    """

    __slots__ = ()

    ALGO_NAME = "iris"
    OWN_KEYS = (
        *HBCConfig.OWN_KEYS,
        "algo.value_planner.value.critic.distributional.clip_to_second_atom",
    )

    def algo_config(self) -> None:
        """Fills ``algo``."""
        # "separate": all are trained on the data, the actor towards states that were reached;
        # "cascade": the actor is trained towards the planner's choices; "planner_only" and
        # "actor_only" train one of them and leave the other as it is.
        self.algo.mode = "separate"
        self.algo.actor_use_random_subgoals = False  # train towards any state of the sequence
        self.algo.subgoal_update_interval = 10  # environment steps between two plans

        self.algo.latent_subgoal.enabled = False  # not with iris, whose values are of states
        self.algo.latent_subgoal.prior_correction.enabled = False  # not with iris
        self.algo.latent_subgoal.prior_correction.num_samples = 100  # not with iris

        self.algo.value_planner.planner = GLConfig().algo  # what proposes subgoals: as gl
        self.algo.value_planner.planner.subgoal_horizon = 10  # steps from a state to its subgoal
        self.algo.value_planner.planner.vae.enabled = True  # sample subgoals; else predict one
        self.algo.value_planner.value = BCQConfig().algo  # what values them: as bcq
        self.algo.value_planner.value.actor.enabled = False  # perturb sampled actions
        self.algo.value_planner.num_samples = 100  # subgoals to choose from

        self.algo.actor = BCConfig().algo  # the actor: as bc
        self.algo.actor.rnn.enabled = True  # policy with memory
        self.algo.actor.rnn.horizon = 10  # steps that it is unrolled; must equal train.seq_length
        for variant in ("gaussian", "gmm", "vae"):
            del self.algo.actor[variant]

    def observation_config(self) -> None:
        """Gives planner, value and actor observations of their own."""
        self.observation.value_planner.planner = GLConfig().observation  # as in gl
        self.observation.value_planner.value = BCQConfig().observation  # as in bcq
        self.observation.actor = BCConfig().observation  # as in bc
        self.observation.actor.modalities.goal.low_dim = []  # what the actor sees of a subgoal

    @property
    def use_goals(self) -> bool:
        """Whether planner or value are given goals; the actor's are subgoals."""
        parts = self.observation.value_planner.values()
        return any(any(part.modalities.goal.values()) for part in parts)
