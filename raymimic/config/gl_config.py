"""Settings of goal learning (GL), the planner of hierarchical algorithms."""

from collections.abc import Iterator
from math import inf

from raymimic.config.base_config import BaseConfig
from raymimic.config.sections import OptimizerSection, VAESection


class GLConfig(BaseConfig):
    """Goal learning: predicts, or samples, the observation some steps ahead.

    Keys and defaults as in `robomimic/config/gl_config.py`; `train.seq_length` has to be at
    least `algo.subgoal_horizon`. It does not act, so there are no rollouts; `hbc` and `iris`
    put an actor below it.
    """

    __slots__ = ()

    ALGO_NAME = "gl"
    IN_ROBOMIMIC = True
    RANGES = {"algo.subgoal_horizon": (1, inf), "algo.ae.planner_layer_dims": (1, inf)}
    SEES_STACKS = False

    def train_config(self) -> None:
        """Takes sequences that reach to the subgoal (robomimic's default of 1 does not)."""
        super().train_config()
        self.train.seq_length = 10  # time steps in a sample

    def algo_config(self) -> None:
        """Fills `algo`."""
        self.algo.optim_params.goal_network = OptimizerSection(1e-4)

        self.algo.subgoal_horizon = 10  # steps from an observation to its subgoal

        self.algo.ae.planner_layer_dims = (300, 400)  # hidden layers where there is no VAE

        self.algo.vae = VAESection()
        self.algo.vae.enabled = True  # sample subgoals from a VAE; else predict one
        self.algo.vae.latent_dim = 16  # size of the latent

    def problems(self) -> Iterator[str]:
        """Looks at the distance of subgoals."""
        yield from super().problems()
        horizon, seq_length = self.algo.subgoal_horizon, self.train.seq_length
        if horizon > seq_length:
            yield (
                f"'{self.algo.dotted('subgoal_horizon')}' is {horizon} but 'train.seq_length' is "
                f"{seq_length}: raise 'train.seq_length' to {horizon}"
            )

    def observation_config(self) -> None:
        """Adds the observations that make up a subgoal."""
        super().observation_config()
        # Keys by modality that make up a subgoal.
        self.observation.modalities.subgoal.low_dim = [
            "robot0_eef_pos",
            "robot0_eef_quat",
            "robot0_gripper_qpos",
            "object",
        ]
        self.observation.modalities.subgoal.rgb = []  # colour images
        self.observation.modalities.subgoal.depth = []  # depth images
        self.observation.modalities.subgoal.scan = []  # laser scans

        # Modalities of the user's own may be added.
        self.observation.modalities.subgoal.do_not_lock_keys()
