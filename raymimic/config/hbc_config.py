"""Settings of hierarchical behavioural cloning (HBC, https://arxiv.org/abs/2003.06085)."""

from collections.abc import Iterator
from math import inf

from raymimic.config.base_config import BaseConfig, sections_named
from raymimic.config.bc_config import BCConfig
from raymimic.config.gl_config import GLConfig
from raymimic.errors import did_you_mean

# The actor's goal where subgoals are latents of the planner's VAE: no key of the data.
LATENT_SUBGOAL = "latent_subgoal"


class HBCConfig(BaseConfig):
    """HBC: a planner (`gl`) proposes subgoals, an actor (`bc`) pursues them.

    Keys and defaults as in `robomimic/config/hbc_config.py`. So by default the actor sees no
    subgoal: list its part of them in `observation.actor.modalities.goal`.
    """

    __slots__ = ()

    ALGO_NAME = "hbc"
    IN_ROBOMIMIC = True
    RANGES = {
        "algo.subgoal_update_interval": (1, inf),
        "algo.latent_subgoal.prior_correction.num_samples": (1, inf),
    }
    CHOICES = {"algo.mode": ("separate", "cascade", "planner_only", "actor_only")}
    SEES_STACKS = "algo.actor.transformer.enabled"

    def train_config(self) -> None:
        """Takes sequences, at whose ends subgoals lie."""
        super().train_config()
        self.train.seq_length = 10  # time steps in a sample

    def algo_config(self) -> None:
        """Fills `algo`."""
        # "separate": both are trained on the data, the actor towards states that were reached;
        # "cascade": the actor is trained towards the planner's predictions; "planner_only" and
        # "actor_only" train only one of them.
        self.algo.mode = "separate"
        self.algo.actor_use_random_subgoals = False  # train towards any state of the sequence
        self.algo.subgoal_update_interval = 10  # environment steps between two plans

        self.algo.latent_subgoal.enabled = False  # subgoals are latents of the planner's VAE
        # Train towards that one of several samples of the prior which is nearest to the
        # encoder's latent, as the actor meets samples of the prior when it acts.
        self.algo.latent_subgoal.prior_correction.enabled = False
        self.algo.latent_subgoal.prior_correction.num_samples = 100  # how many samples

        self.algo.planner = GLConfig().algo  # the planner: as gl
        self.algo.planner.vae.enabled = True  # sample subgoals; else predict one

        self.algo.actor = BCConfig().algo  # the actor: as bc
        self.algo.actor.rnn.enabled = True  # policy with memory
        self.algo.actor.rnn.horizon = 10  # steps that it remembers; usually train.seq_length
        for variant in ("gaussian", "gmm", "vae"):
            del self.algo.actor[variant]

    def observation_config(self) -> None:
        """Gives planner and actor observations of their own."""
        self.observation.planner = GLConfig().observation  # of the planner: as in gl
        self.observation.actor = BCConfig().observation  # of the actor: as in bc
        # Keys of a subgoal that the actor sees, or ["latent_subgoal"].
        self.observation.actor.modalities.goal.low_dim = []

    @property
    def all_obs_keys(self) -> list[str]:
        """All observation keys of all parts, sorted."""
        return [key for key in super().all_obs_keys if key != LATENT_SUBGOAL]

    def problems(self) -> Iterator[str]:
        """Looks at the planner's subgoals, and at the keys of them that the actor sees."""
        yield from super().problems()
        latent = self.algo.latent_subgoal
        if latent.enabled and not self.algo.planner.vae.enabled:
            yield (
                f"'{latent.dotted('enabled')}' takes latents of the planner's VAE: set "
                f"'{self.algo.planner.dotted('vae.enabled')}' to true"
            )
        path, planned = self._subgoal_keys()
        for key in self._actors_goal_keys():
            if key not in planned:
                yield (
                    f"'{self.observation.actor.dotted('modalities.goal')}' names '{key}', which is "
                    f"no part of a subgoal ({path}){did_you_mean(key, planned)}"
                )

    def warnings(self) -> Iterator[str]:
        """Looks for an actor without subgoals, and for parts that are not trained."""
        yield from super().warnings()
        if not self._actors_goal_keys():
            yield (
                f"'{self.observation.actor.dotted('modalities.goal')}' is empty, so the actor does "
                "not see its subgoals (as in robomimic): list keys of them there, from "
                f"{', '.join(self._subgoal_keys()[1])}"
            )
        untrained = {"planner_only": "actor", "actor_only": "planner"}.get(self.algo.mode)
        if untrained and self.experiment.rollout.enabled and self.experiment.ckpt_path is None:
            yield (
                f"'{self.algo.dotted('mode')}' is '{self.algo.mode}', so evaluation shows an "
                f"untrained {untrained}: set 'experiment.ckpt_path' to a checkpoint that has one, "
                "or 'experiment.rollout.enabled' to false"
            )

    def _subgoal_keys(self) -> tuple[str, list[str]]:
        """Returns the setting that defines subgoals, and their keys."""
        if self.algo.latent_subgoal.enabled:
            return self.algo.dotted("latent_subgoal.enabled"), [LATENT_SUBGOAL]
        modalities = next(
            section
            for _, section in sections_named(self.observation, "modalities")
            if "subgoal" in section
        )
        keys = [key for group in modalities.subgoal.values() for key in group]
        return modalities.dotted("subgoal"), keys

    def _actors_goal_keys(self) -> list[str]:
        groups = self.observation.actor.modalities.goal.values()
        return [key for keys in groups for key in keys]
