"""Settings of TD3-BC (https://arxiv.org/abs/2106.06860)."""

from math import inf
from typing import ClassVar

from raymimic.config.q_learning_config import QLearningConfig
from raymimic.config.sections import BoundedCriticSection, OptimizerSection


class TD3_BCConfig(QLearningConfig):
    """TD3-BC: TD3 with a behavioural cloning term, for offline data.

    Defaults are the paper's for gym's locomotion tasks, as in robomimic
    (`robomimic/config/td3_bc_config.py`).
    """

    __slots__ = ()

    ALGO_NAME = "td3_bc"
    IN_ROBOMIMIC = True
    RANGES = {
        "algo.alpha": (0, inf),
        "algo.critic.ensemble.weight": (0, 1),
        "algo.actor.update_freq": (1, inf),
        "algo.actor.noise_std": (0, inf),
        "algo.actor.noise_clip": (0, inf),
        "algo.actor.layer_dims": (1, inf),
    }
    PERTURBABLE: ClassVar[tuple[str, ...]] = ("algo.alpha",)

    def experiment_config(self) -> None:
        """Evaluates after each epoch of 5000 steps; keeps the best by return and by success.

        robomimic keeps the best by return alone, which is wrong where episodes end once the task
        is solved: then the longer failures have the larger return.
        """
        super().experiment_config()
        self.experiment.render_video = False  # film the first episode of each evaluation
        self.experiment.save.every_n_epochs = 20  # keep a checkpoint every so many epochs
        self.experiment.save.on_best_rollout_return = True  # keep the best by mean return
        self.experiment.epoch_every_n_steps = 5000  # gradient steps in an epoch; null: one pass
        self.experiment.rollout.horizon = 1000  # longest episode, in environment steps
        self.experiment.rollout.rate = 1  # evaluate every so many epochs

    def train_config(self) -> None:
        """Trains for the paper's million steps on normalised observations."""
        super().train_config()
        self.train.hdf5_normalize_obs = True  # normalise observations by training statistics
        self.train.batch_size = 256  # samples of a gradient step, over all workers
        self.train.num_epochs = 200  # number of epochs

    def algo_config(self) -> None:
        """Fills `algo`."""
        for net in ("critic", "actor"):
            self.algo.optim_params[net] = OptimizerSection(3e-4, start_epoch=-1, end_epoch=-1)

        self.algo.alpha = 2.5  # weight of the Q term against imitation (eq. 5)

        super().algo_config()

        self.algo.critic = BoundedCriticSection()
        self.algo.critic.ensemble.weight = 1.0  # weight of the critics' minimum; rest: the maximum
        self.algo.critic.layer_dims = (256, 256)

        self.algo.actor.update_freq = 2  # critic steps per step of actor and targets
        self.algo.actor.noise_std = 0.2  # standard deviation of the noise on target actions
        self.algo.actor.noise_clip = 0.5  # bound of this noise, in each dimension
        self.algo.actor.layer_dims = (256, 256)  # hidden layers

    def observation_config(self) -> None:
        """Takes gymnasium's flat observations."""
        super().observation_config()
        # Keys by modality that the policy sees.
        self.observation.modalities.obs.low_dim = ["flat"]
