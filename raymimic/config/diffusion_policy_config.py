"""Settings of Diffusion Policy (https://arxiv.org/abs/2303.04137)."""

from raymimic.config.base_config import BaseConfig


class DiffusionPolicyConfig(BaseConfig):
    """Diffusion Policy, with a U-Net or a transformer.

    Keys and defaults as in ``robomimic/config/diffusion_policy_config.py``, and a section for the
    transformer, whose defaults are the paper's for low-dimensional observations.
    """

    __slots__ = ()

    ALGO_NAME = "diffusion_policy"
    OWN_KEYS = (*BaseConfig.OWN_KEYS, "algo.transformer", "algo.ddpm.respace_steps")

    def train_config(self) -> None:
        """Leaves out next_obs, and makes sequences as long as the horizons."""
        super().train_config()
        self.train.hdf5_load_next_obs = False  # load next_obs (where the algorithm uses it)
        self.train.seq_length = 16  # steps in a sample; at least the prediction horizon
        self.train.frame_stack = 2  # observations at each step; must equal the observation horizon

    def algo_config(self) -> None:
        """Fills ``algo``."""
        self.algo.optim_params.policy.optimizer_type = "adamw"  # or "adam"
        self.algo.optim_params.policy.learning_rate.initial = 1e-4  # learning rate of the policy
        self.algo.optim_params.policy.learning_rate.decay_factor = 0.1  # factor at each decay
        self.algo.optim_params.policy.learning_rate.step_every_batch = True  # schedule counts steps
        # "cosine": down to zero at the last step; "multistep" and "linear": see epoch_schedule.
        self.algo.optim_params.policy.learning_rate.scheduler_type = "cosine"
        self.algo.optim_params.policy.learning_rate.num_cycles = 0.5  # cycles of the cosine
        self.algo.optim_params.policy.learning_rate.warmup_steps = 500  # steps up to initial
        self.algo.optim_params.policy.learning_rate.epoch_schedule = []  # epochs of other decays
        self.algo.optim_params.policy.learning_rate.do_not_lock_keys()
        self.algo.optim_params.policy.regularization.L2 = 1e-6  # weight decay

        self.algo.horizon.observation_horizon = 2  # steps that the policy sees
        self.algo.horizon.action_horizon = 8  # actions that are taken before it predicts anew
        self.algo.horizon.prediction_horizon = 16  # actions that it predicts

        self.algo.unet.enabled = True  # predict noise by convolutions over time
        self.algo.unet.diffusion_step_embed_dim = 256  # size of the diffusion step's embedding
        self.algo.unet.down_dims = [256, 512, 1024]  # channels; each level but the last halves time
        self.algo.unet.kernel_size = 5  # of the convolutions; odd
        self.algo.unet.n_groups = 8  # of the group norms; divides all of down_dims

        self.algo.transformer.enabled = False  # predict noise by a transformer; disable the U-Net
        self.algo.transformer.embed_dim = 256  # size of the tokens
        self.algo.transformer.num_layers = 8  # blocks
        self.algo.transformer.num_heads = 4  # attention heads; must divide embed_dim
        self.algo.transformer.emb_dropout = 0.0  # dropout of the tokens
        self.algo.transformer.attn_dropout = 0.3  # dropout inside the blocks

        self.algo.ema.enabled = True  # act by a moving average of the weights
        self.algo.ema.power = 0.75  # after n steps its decay is 1 - n^-power

        self.algo.ddpm.enabled = True  # denoise by DDPM
        self.algo.ddpm.num_train_timesteps = 100  # diffusion steps
        self.algo.ddpm.num_inference_timesteps = 100  # of these, taken to act
        # Where fewer are taken: each removes the noise of those left out too; robomimic's do not.
        self.algo.ddpm.respace_steps = False
        self.algo.ddpm.beta_schedule = "squaredcos_cap_v2"  # or "linear", "scaled_linear"
        self.algo.ddpm.clip_sample = True  # keep denoised actions in [-1, 1]
        self.algo.ddpm.prediction_type = "epsilon"  # noise; or "sample", "v_prediction"

        self.algo.ddim.enabled = False  # denoise by DDIM, in fewer steps; disable DDPM
        self.algo.ddim.num_train_timesteps = 100  # diffusion steps
        self.algo.ddim.num_inference_timesteps = 10  # of these, taken to act
        self.algo.ddim.beta_schedule = "squaredcos_cap_v2"  # or "linear", "scaled_linear"
        self.algo.ddim.clip_sample = True  # keep denoised actions in [-1, 1]
        self.algo.ddim.set_alpha_to_one = True  # the last step leaves no noise
        self.algo.ddim.steps_offset = 0  # added to the diffusion steps taken
        self.algo.ddim.prediction_type = "epsilon"  # noise; or "sample", "v_prediction"
