"""Settings of behavioural cloning (BC) and its policy variants."""

from raymimic.config.base_config import BaseConfig


class BCConfig(BaseConfig):
    """Behavioural cloning, with the policy variants of robomimic's ``bc``.

    Keys and defaults as in ``robomimic/config/bc_config.py``.
    """

    __slots__ = ()

    ALGO_NAME = "bc"

    def train_config(self) -> None:
        """Leaves out next_obs, which imitation does not read."""
        super().train_config()
        self.train.hdf5_load_next_obs = False  # load next_obs (where the algorithm uses it)

    def algo_config(self) -> None:
        """Fills ``algo``."""
        self.algo.optim_params.policy.optimizer_type = "adam"  # or "adamw"
        self.algo.optim_params.policy.learning_rate.initial = 1e-4  # learning rate of the policy
        self.algo.optim_params.policy.learning_rate.decay_factor = 0.1  # factor at each decay
        self.algo.optim_params.policy.learning_rate.epoch_schedule = []  # epochs of the decays
        # "multistep": decays at the scheduled epochs; "linear": towards decay_factor at the one
        # scheduled epoch; "cosine": with step_every_batch, warmup_steps, num_cycles.
        self.algo.optim_params.policy.learning_rate.scheduler_type = "multistep"
        self.algo.optim_params.policy.regularization.L2 = 0.00  # weight decay

        self.algo.loss.l2_weight = 1.0  # weight of the squared error
        self.algo.loss.l1_weight = 0.0  # weight of the smooth absolute error
        self.algo.loss.cos_weight = 0.0  # weight of the angle between the first 3 dimensions

        self.algo.actor_layer_dims = (1024, 1024)  # hidden layers after encoder and RNN

        self.algo.gaussian.enabled = False  # policy with Gaussian actions
        self.algo.gaussian.fixed_std = False  # keep the standard deviation at init_std
        self.algo.gaussian.init_std = 0.1  # standard deviation at the start
        self.algo.gaussian.min_std = 0.01  # least standard deviation
        self.algo.gaussian.std_activation = "softplus"  # maps the network's output to it, or "exp"
        self.algo.gaussian.low_noise_eval = True  # nearly no noise in evaluation

        self.algo.gmm.enabled = False  # policy with Gaussian mixture actions
        self.algo.gmm.num_modes = 5  # Gaussians in the mixture
        self.algo.gmm.min_std = 0.0001  # least standard deviation
        self.algo.gmm.std_activation = "softplus"  # maps the network's output to it, or "exp"
        self.algo.gmm.low_noise_eval = True  # nearly no noise in evaluation

        self.algo.vae.enabled = False  # policy that decodes actions from a latent
        self.algo.vae.latent_dim = 14  # size of the latent; twice the action's is usual
        self.algo.vae.latent_clip = None  # bound of the latent when acting; null: none
        self.algo.vae.kl_weight = 1.0  # weight of the KL term (beta-VAE)
        self.algo.vae.decoder.is_conditioned = True  # decoder sees the observation
        self.algo.vae.decoder.reconstruction_sum_across_elements = False  # sum, not mean, the error

        self.algo.vae.prior.learn = False  # learn the prior; else it is N(0, 1)
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

        self.algo.rnn.enabled = False  # policy with memory
        self.algo.rnn.horizon = 10  # steps that it is unrolled; must equal train.seq_length
        self.algo.rnn.hidden_dim = 400  # size of the hidden state
        self.algo.rnn.rnn_type = "LSTM"  # or "GRU"
        self.algo.rnn.num_layers = 2  # recurrent layers
        self.algo.rnn.open_loop = False  # act on the first observation of each horizon only
        self.algo.rnn.kwargs.bidirectional = False  # further arguments of torch's RNN
        self.algo.rnn.kwargs.do_not_lock_keys()

        self.algo.transformer.enabled = False  # transformer policy
        self.algo.transformer.context_length = 10  # steps it sees; must equal train.frame_stack
        self.algo.transformer.embed_dim = 512  # size of the embeddings
        self.algo.transformer.num_layers = 6  # blocks
        self.algo.transformer.num_heads = 8  # attention heads; must divide embed_dim
        self.algo.transformer.emb_dropout = 0.1  # dropout of the embeddings
        self.algo.transformer.attn_dropout = 0.1  # dropout of the attention
        self.algo.transformer.block_output_dropout = 0.1  # dropout after each block
        self.algo.transformer.sinusoidal_embedding = False  # sine and cosine for time steps
        self.algo.transformer.activation = "gelu"  # in the blocks' MLPs
        self.algo.transformer.supervise_all_steps = False  # imitate all actions, not just the last
        self.algo.transformer.nn_parameter_for_timesteps = True  # else an embedding table
        self.algo.transformer.pred_future_acs = False  # predict the actions to come
