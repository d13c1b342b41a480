"""Settings of goal learning (GL), the planner of hierarchical algorithms."""

from raymimic.config.base_config import BaseConfig


class GLConfig(BaseConfig):
    """Goal learning: predicts, or samples, the observation some steps ahead.

    Keys and defaults as in ``robomimic/config/gl_config.py``; ``train.seq_length`` has to be at
    least ``algo.subgoal_horizon``. It does not act, so there are no rollouts; ``hbc`` and ``iris``
    put an actor below it.
    """

    __slots__ = ()

    ALGO_NAME = "gl"

    def train_config(self) -> None:
        """Takes sequences that reach to the subgoal (robomimic's default of 1 does not)."""
        super().train_config()
        self.train.seq_length = 10  # time steps in a sample

    def algo_config(self) -> None:
        """Fills ``algo``."""
        self.algo.optim_params.goal_network.learning_rate.initial = 1e-4  # learning rate
        self.algo.optim_params.goal_network.learning_rate.decay_factor = 0.1  # factor at each decay
        self.algo.optim_params.goal_network.learning_rate.epoch_schedule = []  # epochs of decays
        self.algo.optim_params.goal_network.regularization.L2 = 0.00  # weight decay

        self.algo.subgoal_horizon = 10  # steps from an observation to its subgoal

        self.algo.ae.planner_layer_dims = (300, 400)  # hidden layers where there is no VAE

        self.algo.vae.enabled = True  # sample subgoals from a VAE; else predict one
        self.algo.vae.latent_dim = 16  # size of the latent
        self.algo.vae.latent_clip = None  # bound of latents drawn from the prior; null: none
        self.algo.vae.kl_weight = 1.0  # weight of the KL term (beta-VAE)
        self.algo.vae.decoder.is_conditioned = True  # decoder sees the observation
        self.algo.vae.decoder.reconstruction_sum_across_elements = False  # sum, not mean, the error

        self.algo.vae.prior.learn = False  # learn the prior; else it is N(0, 1) or uniform
        self.algo.vae.prior.is_conditioned = False  # prior sees the observation
        self.algo.vae.prior.use_gmm = False  # Gaussian mixture prior
        self.algo.vae.prior.gmm_num_modes = 10  # Gaussians in it
        self.algo.vae.prior.gmm_learn_weights = False  # learn the weights of the mixture
        self.algo.vae.prior.use_categorical = False  # categorical prior
        self.algo.vae.prior.categorical_dim = 10  # classes of each latent dimension
        self.algo.vae.prior.categorical_gumbel_softmax_hard = False  # one-hot samples
        self.algo.vae.prior.categorical_init_temp = 1.0  # temperature at the start
        self.algo.vae.prior.categorical_temp_anneal_step = 0.001  # less by this each epoch
        self.algo.vae.prior.categorical_min_temp = 0.3  # least temperature

        self.algo.vae.encoder_layer_dims = (300, 400)  # hidden layers of the encoder
        self.algo.vae.decoder_layer_dims = (300, 400)  # hidden layers of the decoder
        self.algo.vae.prior_layer_dims = (300, 400)  # hidden layers of a conditioned prior

    def observation_config(self) -> None:
        """Adds what a subgoal consists of."""
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
