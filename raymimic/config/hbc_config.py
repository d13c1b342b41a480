"""Settings of hierarchical behavioural cloning (HBC, https://arxiv.org/abs/2003.06085)."""

from raymimic.config.base_config import BaseConfig
from raymimic.config.bc_config import BCConfig
from raymimic.config.gl_config import GLConfig

# The actor's goal where subgoals are latents of the planner's VAE: no key of the data.
LATENT_SUBGOAL = "latent_subgoal"


class HBCConfig(BaseConfig):
    """HBC: a planner (``gl``) proposes subgoals, an actor (``bc``) pursues them.

    Keys and defaults as in ``robomimic/config/hbc_config.py``. So by default the actor sees no
    subgoal: ``observation.actor.modalities.goal`` lists what it sees of them.
    """

    __slots__ = ()

    ALGO_NAME = "hbc"

    def train_config(self) -> None:
        """Takes sequences, at whose ends subgoals lie."""
        super().train_config()
        self.train.seq_length = 10  # time steps in a sample

    def algo_config(self) -> None:
        """Fills ``algo``."""
        # "separate": both are trained on the data, the actor towards states that were reached;
        # "cascade": the actor is trained towards the planner's predictions; "planner_only" and
        # "actor_only" train one of them and leave the other as it is.
        self.algo.mode = "separate"
        self.algo.actor_use_random_subgoals = False  # train towards any state of the sequence
        self.algo.subgoal_update_interval = 10  # environment steps between two plans

        self.algo.latent_subgoal.enabled = False  # subgoals are latents of the planner's VAE
        # Train towards that one of several samples of the prior which is nearest to the
        # encoder's latent, as the actor meets samples of the prior when it acts.
        self.algo.latent_subgoal.prior_correction.enabled = False
        self.algo.latent_subgoal.prior_correction.num_samples = 100  # how many samples

        self.algo.planner = GLConfig().algo  # the planner: as gl
        self.algo.planner.subgoal_horizon = 10  # steps from an observation to its subgoal
        self.algo.planner.vae.enabled = True  # sample subgoals; else predict one

        self.algo.actor = BCConfig().algo  # the actor: as bc
        self.algo.actor.rnn.enabled = True  # policy with memory
        self.algo.actor.rnn.horizon = 10  # steps that it is unrolled; must equal train.seq_length
        for variant in ("gaussian", "gmm", "vae"):
            del self.algo.actor[variant]

    def observation_config(self) -> None:
        """Gives planner and actor observations of their own."""
        self.observation.planner = GLConfig().observation  # of the planner: as in gl
        self.observation.actor = BCConfig().observation  # of the actor: as in bc
        # What the actor sees of a subgoal: keys of it, or ["latent_subgoal"].
        self.observation.actor.modalities.goal.low_dim = []

    @property
    def use_goals(self) -> bool:
        """Whether the planner is given goals; the actor's are its subgoals."""
        return any(self.observation.planner.modalities.goal.values())

    @property
    def all_obs_keys(self) -> list[str]:
        """All observation keys of all parts, sorted."""
        return [key for key in super().all_obs_keys if key != LATENT_SUBGOAL]
