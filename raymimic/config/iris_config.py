"""Settings of IRIS (https://arxiv.org/abs/1911.05321)."""

from collections.abc import Iterator
from math import inf

from raymimic.config.bcq_config import BCQConfig
from raymimic.config.hbc_config import HBCConfig


class IRISConfig(HBCConfig):
    """IRIS: HBC whose planner chooses the best of many subgoals by their value (`bcq`).

    Keys and defaults as in `robomimic/config/iris_config.py`. So by default the actor sees no
    subgoal: list its part of them in `observation.actor.modalities.goal`.
    """

    __slots__ = ()

    ALGO_NAME = "iris"
    IN_ROBOMIMIC = True
    RANGES = {"algo.value_planner.num_samples": (1, inf)}
    OWN_KEYS = (
        *HBCConfig.OWN_KEYS,
        "algo.value_planner.value.critic.distributional.clip_to_second_atom",
    )

    def algo_config(self) -> None:
        """Fills `algo`."""
        super().algo_config()
        # "separate": all are trained on the data, the actor towards states that were reached;
        # "cascade": the actor is trained towards the planner's choices; "planner_only" and
        # "actor_only" train only one of them.
        self.algo.mode = "separate"
        self.algo.latent_subgoal.enabled = False  # not with iris, whose value network needs states
        self.algo.latent_subgoal.prior_correction.enabled = False  # not with iris
        self.algo.latent_subgoal.prior_correction.num_samples = 100  # not with iris

        self.algo.value_planner.planner = self.algo.pop("planner")  # proposes subgoals: as gl
        self.algo.value_planner.planner.vae.enabled = True  # sample subgoals; else predict one
        self.algo.value_planner.value = BCQConfig().algo  # estimates their values: as bcq
        self.algo.value_planner.value.actor.enabled = False  # perturb sampled actions
        self.algo.value_planner.num_samples = 100  # subgoals to choose from

    def observation_config(self) -> None:
        """Gives planner, value and actor observations of their own."""
        super().observation_config()
        self.observation.value_planner.planner = self.observation.pop("planner")  # as in gl
        self.observation.value_planner.value = BCQConfig().observation  # as in bcq
        self.observation.actor.modalities.goal.low_dim = []  # keys that the actor sees

    def problems(self) -> Iterator[str]:
        """Looks at the subgoals too."""
        latent = self.algo.latent_subgoal
        if latent.enabled:
            yield (
                f"'{latent.dotted('enabled')}' is true, but values are of states, not of latents: "
                "set it to false, or train hbc"
            )
        else:
            yield from super().problems()
