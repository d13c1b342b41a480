"""Settings of TD3-BC (https://arxiv.org/abs/2106.06860)."""

from raymimic.config.base_config import BaseConfig


class TD3_BCConfig(BaseConfig):
    """TD3-BC: TD3 with a behavioural cloning term, for offline data.

    Defaults are the paper's for gym's locomotion tasks, as in robomimic
    (``robomimic/config/td3_bc_config.py``).
    """

    __slots__ = ()

    ALGO_NAME = "td3_bc"

    def experiment_config(self) -> None:
        """Evaluates by return after each epoch of 5000 steps."""
        super().experiment_config()
        self.experiment.render_video = False  # record evaluation episodes
        self.experiment.save.every_n_epochs = 20  # keep one every so many epochs
        self.experiment.save.on_best_rollout_return = True  # keep each new highest mean return
        self.experiment.save.on_best_rollout_success_rate = False  # keep each new best success rate
        self.experiment.epoch_every_n_steps = 5000  # gradient steps in an epoch; null: one pass
        self.experiment.rollout.horizon = 1000  # longest episode, in environment steps
        self.experiment.rollout.rate = 1  # evaluate every so many epochs

    def train_config(self) -> None:
        """Trains for the paper's million steps on normalised observations."""
        super().train_config()
        self.train.hdf5_normalize_obs = True  # normalise observations by training statistics
        self.train.batch_size = 256  # samples of a gradient step, over all workers
        self.train.num_epochs = 200  # length of the training

    def algo_config(self) -> None:
        """Fills ``algo``."""
        self.algo.optim_params.critic.learning_rate.initial = 3e-4  # learning rate of the critics
        self.algo.optim_params.critic.learning_rate.decay_factor = 0.1  # factor at each decay
        self.algo.optim_params.critic.learning_rate.epoch_schedule = []  # epochs of the decays
        self.algo.optim_params.critic.regularization.L2 = 0.00  # weight decay
        self.algo.optim_params.critic.start_epoch = -1  # first epoch that trains them; -1: at once
        self.algo.optim_params.critic.end_epoch = -1  # train them before this epoch; -1: to the end

        self.algo.optim_params.actor.learning_rate.initial = 3e-4  # learning rate of the actor
        self.algo.optim_params.actor.learning_rate.decay_factor = 0.1  # factor at each decay
        self.algo.optim_params.actor.learning_rate.epoch_schedule = []  # epochs of the decays
        self.algo.optim_params.actor.regularization.L2 = 0.00  # weight decay
        self.algo.optim_params.actor.start_epoch = -1  # first epoch that trains it; -1: at once
        self.algo.optim_params.actor.end_epoch = -1  # train it before this epoch; -1: to the end

        self.algo.alpha = 2.5  # weight of the Q term against imitation (eq. 5)

        self.algo.discount = 0.99  # of rewards, per environment step
        self.algo.n_step = 1  # rewards summed before the bootstrap value
        self.algo.target_tau = 0.005  # share of the network that moves into its target
        self.algo.infinite_horizon = False  # scale terminal rewards by 1 / (1 - discount)

        self.algo.critic.use_huber = False  # Huber loss instead of the squared one
        self.algo.critic.max_gradient_norm = None  # clip gradients to this L2 norm; null: don't
        self.algo.critic.value_bounds = None  # [lowest, highest] value; null: unbounded
        self.algo.critic.ensemble.n = 2  # number of critics
        self.algo.critic.ensemble.weight = 1.0  # of the ensemble's minimum, the rest its maximum
        self.algo.critic.layer_dims = (256, 256)  # hidden layers

        self.algo.actor.update_freq = 2  # critic steps per step of actor and targets
        self.algo.actor.noise_std = 0.2  # of the Gaussian noise on target actions
        self.algo.actor.noise_clip = 0.5  # bound of that noise, in each dimension
        self.algo.actor.layer_dims = (256, 256)  # hidden layers

    def observation_config(self) -> None:
        """Takes gymnasium's flat observations."""
        super().observation_config()
        # Keys by modality that the policy sees.
        self.observation.modalities.obs.low_dim = ["flat"]
