"""Every mistake that a config alone shows is found, in one sentence with key and remedy."""

import pytest

from raymimic.config import config_factory, parse_set
from raymimic.config.base_config import BaseConfig
from raymimic.config.checks import NO_EFFECT, check_config, problems, warnings_for
from raymimic.errors import ConfigError


def make(algo: str, *assignments: str) -> BaseConfig:
    config = config_factory(algo)
    config.train.data = "demos.hdf5"
    for assignment in assignments:
        config.set_path(*parse_set(assignment))
    return config


BUILT_IN = ["bc", "bcq", "cql", "diffusion_policy", "gl", "iql", "td3_bc"]  # and hierarchies, below


@pytest.mark.parametrize("algo", BUILT_IN)
def test_defaults_with_a_dataset_are_right(algo):
    config = make(algo)
    check_config(config)
    assert warnings_for(config) == []


WRONG_TYPES = {
    "train.batch_size=abc": "'train.batch_size' is 'abc': it must be a whole number",
    "train.batch_size=1.5": "'train.batch_size' is 1.5: it must be a whole number",
    "train.batch_size=true": "'train.batch_size' is true: it must be a whole number",
    "train.batch_size=null": "'train.batch_size' is null: it must be a whole number",
    'train.batch_size={"a": 1}': "it must be a whole number",
    "train.cuda=1": "'train.cuda' is 1: it must be true or false",
    "train.seed=null": "it must be a whole number",
    "train.dtype=32": "'train.dtype' is 32: it must be a text",
    "experiment.save.every_n_epochs=often": "it must be a whole number or null",
    "experiment.save.epochs=[1.5]": "it must be a list of whole numbers",
    "experiment.epoch_every_n_steps=all": "it must be a whole number or null",
    "experiment.additional_envs=Hopper-v5": "it must be a list of texts or null",
    "experiment.env=5": "'experiment.env' is 5: it must be a text or null",
    "algo.alpha=much": "'algo.alpha' is 'much': it must be a number",
    "algo.alpha=null": "it must be a number",
    "algo.critic.max_gradient_norm=big": "it must be a number or null",
    "algo.critic.layer_dims=256": "it must be a list of whole numbers",
    'algo.critic.layer_dims=[256, "x"]': "it must be a list of whole numbers",
    "algo.optim_params.actor.learning_rate.warmup_steps=abc": "it must be a whole number",
    "observation.modalities.obs.low_dim=flat": "it must be a list of texts",
    "ray.num_workers=two": "'ray.num_workers' is 'two': it must be a whole number",
    "mlflow.tracking_uri=5": "it must be a text or null",
    "train.data=5": "'train.data' must be the path of an HDF5 file or a list",
    'train.data=["a.hdf5"]': "'train.data' must be the path of an HDF5 file or a list",
    "train.data=null": "'train.data' names no dataset: give the path of an HDF5 file (--dataset)",
    "train.data=[]": "'train.data' names no dataset",
    'train.data=[{"weight": 1}]': "'train.data[0].path' is missing",
    'train.data=[{"path": "a", "wieght": 1}]': "'train.data[0].wieght'; did you mean 'weight'?",
    'train.data=[{"path": "a", "weight": 0}]': "'train.data[0].weight' is 0: it must be greater",
    'train.data=[{"path": "a", "demo_limit": 0}]': "'train.data[0].demo_limit' is 0",
    'train.data=[{"path": "a", "eval": "no"}]': "'train.data[0].eval' cannot be 'no'",
}


@pytest.mark.parametrize("assignment", WRONG_TYPES)
def test_wrong_types(assignment):
    found = problems(make("td3_bc", assignment))
    assert len(found) == 1
    assert WRONG_TYPES[assignment] in found[0]


@pytest.mark.parametrize(
    "assignment",
    [
        "algo.alpha=5",
        "algo.critic.layer_dims=[]",
        "algo.critic.value_bounds=[-100, 0]",
        "algo.critic.max_gradient_norm=10",
        "experiment.epoch_every_n_steps=null",
        "experiment.validation_epoch_every_n_steps=null",
        "experiment.save.every_n_epochs=null",
        "experiment.save.every_n_seconds=60",
        "experiment.save.epochs=[1, 5]",
        'experiment.additional_envs=["Hopper-v5"]',
        "train.hdf5_cache_mode=null",
        "train.max_grad_norm=1",
        'train.action_config={"actions": {"normalization": "min_max"}}',
        'train.data=[{"path": "a", "weight": 2, "eval": false, "key": "a", "lang": "pick"}]',
        "observation.encoder.rgb.core_class=null",
        "observation.encoder.rgb.core_kwargs.feature_dimension=64",
        "observation.modalities.obs.tactile=[]",
        "experiment.env_meta_update_dict.env_kwargs.ctrl_cost_weight=0.1",
        "ray.cpus_per_worker=1",
        "ray.num_workers=0",
        "ray.max_failures=-1",
        'mlflow.tags={"team": "a"}',
    ],
)
def test_what_is_right_stays_unsaid(assignment):
    assert problems(make("td3_bc", assignment)) == []


OUT_OF_RANGE = {
    "train.batch_size=0": "'train.batch_size' is 0: it must be at least 1",
    "train.batch_size=-4": "'train.batch_size' is -4: it must be at least 1",
    "train.num_epochs=0": "'train.num_epochs' is 0",
    "train.seq_length=0": "'train.seq_length' is 0",
    "train.frame_stack=0": "'train.frame_stack' is 0",
    "train.seed=-1": "'train.seed' is -1: it must be at least 0",
    "experiment.rollout.horizon=0": "'experiment.rollout.horizon' is 0: it must be at least 1",
    "experiment.rollout.rate=0": "'experiment.rollout.rate' is 0: it must be at least 1",
    "experiment.rollout.n=0": "'experiment.rollout.n' is 0",
    "experiment.rollout.warmstart=-1": "'experiment.rollout.warmstart' is -1",
    "experiment.epoch_every_n_steps=0": "'experiment.epoch_every_n_steps' is 0",
    "experiment.save.every_n_epochs=0": "'experiment.save.every_n_epochs' is 0",
    "experiment.save.epochs=[0]": "'experiment.save.epochs' is [0]: it must be at least 1",
    "experiment.video_skip=0": "'experiment.video_skip' is 0",
    "train.dtype=float16": "it must be one of 'float32', 'float64'",
    "train.goal_mode=first": "'train.goal_mode' is 'first': it must be one of null, 'last'",
    "train.hdf5_cache_mode=disk": "it must be one of null, 'auto', 'all', 'low_dim'",
    'train.action_config={"actions": {"normalization": "max"}}': (
        "'train.action_config.actions.normalization' is 'max': it must be one of null, 'min_max'"
    ),
    "ray.data_placement=shrad": "'ray.data_placement' is 'shrad': it must be one of 'replicate'",
    "ray.num_workers=-1": "'ray.num_workers' is -1: it must be at least 0",
    "ray.cpus_per_worker=0": "'ray.cpus_per_worker' is 0: it must be at least 0.001",
    "ray.envs_per_actor=0": "'ray.envs_per_actor' is 0",
    "algo.discount=1.5": "'algo.discount' is 1.5: it must be between 0 and 1",
    "algo.target_tau=-0.1": "'algo.target_tau' is -0.1: it must be between 0 and 1",
    "algo.alpha=-1": "'algo.alpha' is -1: it must be at least 0",
    "algo.critic.ensemble.n=0": "'algo.critic.ensemble.n' is 0",
    "algo.critic.layer_dims=[256, 0]": "'algo.critic.layer_dims' is [256, 0]: it must be at least",
    "algo.actor.update_freq=0": "'algo.actor.update_freq' is 0",
    "algo.optim_params.actor.learning_rate.initial=-1e-3": "learning_rate.initial' is -0.001",
    "algo.optim_params.actor.learning_rate.epoch_schedule=[0]": "epoch_schedule' is [0]",
    "algo.optim_params.actor.regularization.L2=-1": "regularization.L2' is -1",
    "algo.optim_params.actor.start_epoch=-2": "start_epoch' is -2: it must be at least -1",
    "algo.optim_params.actor.learning_rate.scheduler_type=cos": (
        "it must be one of 'multistep', 'linear', 'cosine'"
    ),
    "algo.optim_params.actor.optimizer_type=sgd": "it must be one of 'adam', 'adamw'",
}


@pytest.mark.parametrize("assignment", OUT_OF_RANGE)
def test_out_of_range(assignment):
    found = problems(make("td3_bc", assignment))
    assert len(found) == 1
    assert OUT_OF_RANGE[assignment] in found[0]


VALIDATE = "experiment.validate=true"
DP, VAE = "diffusion_policy", "algo.vae"
LR = "algo.optim_params.actor.learning_rate"
ACTORS_GOAL = "observation.actor.modalities.goal.low_dim"
COLOURED = (
    'observation.modalities.obs.rgb=["camera"] '
    "observation.encoder.rgb.obs_randomizer_class=ColorRandomizer"
)
NORMALIZED = "train.hdf5_normalize_obs=true"
AT_ODDS = [
    ("bc", ["algo.rnn.enabled=true"], None),
    ("bc", ["algo.rnn.enabled=true", "train.seq_length=10"], None),
    (
        "bc",
        ["algo.transformer.enabled=true"],
        "'algo.transformer.context_length' is 10 but 'train.frame_stack' is 1",
    ),
    ("bc", ["algo.transformer.enabled=true", "train.frame_stack=10"], None),
    ("td3_bc", ["train.frame_stack=3"], "'train.frame_stack' is 3, but this policy sees one"),
    (
        "bc",
        [
            "algo.transformer.enabled=true",
            "train.frame_stack=10",
            "train.seq_length=9",
            "algo.transformer.supervise_all_steps=true",
            "algo.transformer.pred_future_acs=true",
        ],
        "'algo.transformer.pred_future_acs' predicts 10 steps but 'train.seq_length' is 9",
    ),
    (
        "bc",
        [
            "algo.transformer.enabled=true",
            "train.frame_stack=10",
            "algo.transformer.supervise_all_steps=true",
        ],
        None,
    ),
    (
        "hbc",
        [
            "algo.actor.rnn.enabled=false",
            "algo.actor.transformer.enabled=true",
            "train.frame_stack=10",
        ],
        None,
    ),
    ("iql", ["algo.actor.net.type=tanh"], "'algo.actor.net.type' is 'tanh': it must be 'gaussian'"),
    ("gl", ["observation.modalities.subgoal.low_dim=[]"], "names no parts of a subgoal"),
    (
        "hbc",
        ["observation.planner.modalities.obs.low_dim=[]"],
        "'observation.planner.modalities.obs' names no observations",
    ),
    (
        "bc",
        ["algo.transformer.enabled=true", "train.frame_stack=10", "algo.transformer.num_heads=7"],
        "'algo.transformer.embed_dim' is 512, which 7 heads do not divide",
    ),
    (
        "bc",
        [
            "algo.transformer.enabled=true",
            "train.frame_stack=10",
            "algo.transformer.pred_future_acs=true",
        ],
        "'algo.transformer.pred_future_acs' needs 'algo.transformer.supervise_all_steps'",
    ),
    (
        "bc",
        ["algo.gmm.enabled=true", "algo.gaussian.enabled=true"],
        "'algo.gaussian', 'algo.gmm' exclude each other",
    ),
    (
        "bc",
        ["algo.loss.l2_weight=0"],
        "all weights in 'algo.loss' are 0 (l2_weight, l1_weight, cos_weight): raise one",
    ),
    ("td3_bc", [VALIDATE], "'train.hdf5_validation_filter_key' to a mask of demos.hdf5"),
    (
        "td3_bc",
        [VALIDATE, "train.hdf5_validation_filter_key=valid"],
        "'experiment.validate' needs 'train.hdf5_filter_key' too",
    ),
    (
        "td3_bc",
        [VALIDATE, "train.hdf5_validation_filter_key=valid", "train.hdf5_filter_key=valid"],
        "training and validation use the same demos of demos.hdf5",
    ),
    (
        "td3_bc",
        [VALIDATE, "train.hdf5_validation_filter_key=valid", "train.hdf5_filter_key=train"],
        None,
    ),
    (
        "td3_bc",
        [VALIDATE, 'train.data=[{"path": "a", "filter_key": "t", "validation_filter_key": "v"}]'],
        None,
    ),
    (
        "td3_bc",
        ["train.hdf5_validation_filter_key=valid"],
        "but 'experiment.validate' is false",
    ),
    (
        "td3_bc",
        ["train.batch_size=3", "ray.num_workers=4"],
        "'train.batch_size' is 3, which leaves nothing for some of the 4 workers",
    ),
    ("td3_bc", ["train.batch_size=4", "ray.num_workers=4"], None),
    ("td3_bc", ["ray.gpus_per_worker=1", "train.cuda=false"], "but 'train.cuda' is false"),
    ("td3_bc", ["experiment.name= "], "'experiment.name' is '': it is empty"),
    (
        "td3_bc",
        ['observation.modalities.goal.low_dim=["flat"]'],
        "'observation.modalities.goal' names goals, but 'train.goal_mode' is null",
    ),
    (
        "td3_bc",
        ['observation.modalities.goal.low_dim=["flat"]', "train.goal_mode=last"],
        None,
    ),
    (
        "td3_bc",
        ["observation.modalities.obs.low_dim=[]"],
        "'observation.modalities.obs' names no observations",
    ),
    ("td3_bc", ['observation.modalities.obs.rgb=["flat"]'], "'flat' is both low_dim and rgb"),
    (
        "td3_bc",
        ['observation.modalities.obs.tactile=["skin"]'],
        "modality 'tactile' of skin has no encoder: add 'observation.encoder.tactile'",
    ),
    ("td3_bc", ["train.action_keys=[]"], "'train.action_keys' is empty"),
    (
        "td3_bc",
        ['train.action_keys=["action"]'],
        "'train.action_keys' names 'action', which 'train.action_config' lacks; did you mean",
    ),
    (
        "td3_bc",
        ['train.action_config.actions={"normalisation": null}'],
        "'train.action_config.actions.normalisation'; did you mean 'normalization'?",
    ),
    (
        "td3_bc",
        [
            "train.action_config.actions.format=rot_6d",
            "train.action_config.actions.convert_at_runtime=rot_quat",
        ],
        "convert_at_runtime' is 'rot_quat': it must be 'rot_axis_angle' or 'rot_euler'",
    ),
    (
        "td3_bc",
        ["train.action_config.actions=5"],
        "'train.action_config.actions' holds the value 5",
    ),
    ("td3_bc", ["train.action_config.arm=5"], "'train.action_config.arm' must be a section"),
    (
        "td3_bc",
        [f"{LR}.epoch_schedule=[5, 3]"],
        "learning_rate.epoch_schedule' is [5, 3]: list the epochs in order",
    ),
    (
        "td3_bc",
        [f"{LR}.scheduler_type=linear", f"{LR}.epoch_schedule=[3, 5]"],
        "a linear schedule takes one epoch",
    ),
    (
        "td3_bc",
        [f"{LR}.scheduler_type=cosine"],
        f"set '{LR}.step_every_batch' to true",
    ),
    ("td3_bc", [f"{LR}.scheduler_type=cosine", f"{LR}.step_every_batch=true"], None),
    (
        "td3_bc",
        ["algo.optim_params.actor.start_epoch=5", "algo.optim_params.actor.end_epoch=2"],
        "'algo.optim_params.actor' ends (end_epoch 2) before it starts (5)",
    ),
    ("td3_bc", ["algo.n_step=3"], "'algo.n_step' is 3 but 'train.seq_length' is 1"),
    ("td3_bc", ["algo.n_step=3", "train.seq_length=3"], None),
    ("td3_bc", ["algo.infinite_horizon=true", "algo.discount=1.0"], "divides by 1 - discount"),
    ("td3_bc", ["algo.critic.value_bounds=[1, 0]"], "give [lowest, highest]"),
    ("td3_bc", ["algo.critic.value_bounds=[0]"], "give [lowest, highest]"),
    (
        "bc",
        ["algo.gaussian.enabled=true", "algo.rnn.enabled=true", "train.seq_length=10"],
        "'algo.gaussian' and 'algo.rnn' cannot be combined",
    ),
    (
        "bc",
        ["algo.rnn.enabled=true", "train.seq_length=10", "algo.rnn.kwargs.bidirectional=true"],
        "'algo.rnn.kwargs.bidirectional' is true, but a policy that acts step by step",
    ),
    (
        "bc",
        [f"{VAE}.enabled=true", f"{VAE}.prior.use_gmm=true"],
        "'algo.vae.prior.use_gmm' is a learned prior: set 'algo.vae.prior.learn' to true",
    ),
    (
        "bc",
        [
            *(f"{VAE}.enabled=true", f"{VAE}.prior.learn=true"),
            *(f"{VAE}.prior.use_gmm=true", f"{VAE}.prior.use_categorical=true"),
        ],
        "'algo.vae.prior.use_gmm' and 'algo.vae.prior.use_categorical' exclude each other",
    ),
    ("bc", [f"{VAE}.prior.use_gmm=true"], None),  # there is no VAE
    (
        "bcq",
        ["algo.action_sampler.vae.prior.is_conditioned=true"],
        "'algo.action_sampler.vae.prior.is_conditioned' needs a learned prior",
    ),
    (
        "gl",
        ["algo.vae.decoder.is_conditioned=false"],
        "so that nothing depends on the observation",
    ),
    (
        "gl",
        ["algo.vae.prior.use_categorical=true", "algo.vae.prior.categorical_min_temp=2"],
        "'algo.vae.prior.categorical_min_temp' is 2, above",
    ),
    ("gl", ["train.seq_length=5"], "'algo.subgoal_horizon' is 10 but 'train.seq_length' is 5"),
    (
        "bcq",
        ["algo.action_sampler.vae.enabled=false"],
        "'algo.action_sampler' samples from nothing",
    ),
    (
        "bcq",
        ["algo.critic.distributional.enabled=true"],
        "spreads its atoms over 'algo.critic.value_bounds', which is null",
    ),
    (
        "cql",
        ["algo.actor.net.type=gmm"],
        "'algo.actor.net.type' is 'gmm': it must be 'gaussian'",
    ),
    ("iql", ["algo.actor.net.type=gmm"], None),
    ("cql", ["algo.actor.target_entropy=high"], "'algo.actor.target_entropy' is 'high'"),
    ("cql", ["algo.actor.target_entropy=-3"], None),
    ("cql", ["algo.actor.target_entropy=null", "algo.critic.target_q_gap=null"], None),
    ("cql", ["algo.actor.target_entropy=true"], "it must be a text or a number or null"),
    ("iql", ["algo.vf_quantile=1.5"], "'algo.vf_quantile' is 1.5: it must be between 0 and 1"),
    ("iql", ["algo.adv.beta=0"], "'algo.adv.beta' is 0: it must be at least 1e-06"),
    ("iql", ["algo.adv.clip_adv_value=much"], "it must be a number or null"),
    (DP, ["train.seq_length=14"], "is 16 but a sample has 15 steps (train.frame_stack - 1 + tra"),
    (DP, ["train.seq_length=14"], "raise 'train.seq_length' to 15"),
    (DP, ["train.seq_length=15"], None),
    (DP, ["train.seq_length=20"], None),
    (DP, ["train.frame_stack=1"], "'algo.horizon.observation_horizon' is 2 but 'train.frame_st"),
    (DP, ["algo.horizon.action_horizon=16"], "it must be at most 15"),
    (DP, ["algo.horizon.action_horizon=15"], None),
    (
        DP,
        ["algo.ddim.enabled=true"],
        "both of 'algo.ddpm.enabled' and 'algo.ddim.enabled' are true",
    ),
    (DP, ["algo.unet.enabled=false"], "neither of 'algo.unet.enabled' and 'algo.transformer."),
    (DP, ["algo.unet.enabled=false", "algo.transformer.enabled=true"], None),
    (
        DP,
        ["algo.ddpm.num_inference_timesteps=200"],
        "more than 'algo.ddpm.num_train_timesteps' (100)",
    ),
    (DP, ["algo.unet.n_groups=7"], "not all multiples of 'algo.unet.n_groups' (7)"),
    (DP, ["algo.unet.kernel_size=4"], "'algo.unet.kernel_size' is 4: it must be odd"),
    (DP, ["algo.unet.down_dims=[8, 8, 8, 8, 8, 8]"], "make it a multiple of 32"),
    (DP, ["algo.ddpm.beta_schedule=cosine"], "it must be one of 'squaredcos_cap_v2', 'linear'"),
    ("hbc", [], None),
    ("iris", [], None),
    ("hbc", ["algo.mode=both"], "'algo.mode' is 'both': it must be one of 'separate', 'cascade'"),
    (
        "hbc",
        ["algo.planner.subgoal_horizon=12"],
        "'algo.planner.subgoal_horizon' is 12 but 'train.seq_length' is 10: raise",
    ),
    ("hbc", ["algo.planner.subgoal_horizon=5"], None),
    ("hbc", ["algo.actor.rnn.horizon=5"], None),
    (
        "iris",
        ["algo.value_planner.value.n_step=11"],
        "'algo.value_planner.value.n_step' is 11 but 'train.seq_length' is 10",
    ),
    (
        "iris",
        ["algo.value_planner.value.critic.value_bounds=[1, 0]"],
        "'algo.value_planner.value.critic.value_bounds' is [1, 0]",
    ),
    (
        "hbc",
        ["algo.actor.loss.l2_weight=0"],
        "all weights in 'algo.actor.loss' are 0",
    ),
    ("hbc", [f"{ACTORS_GOAL}='object'"], "it must be a list of texts"),
    ("hbc", [f'{ACTORS_GOAL}=["object"]'], None),
    (
        "hbc",
        [f'{ACTORS_GOAL}=["objct"]'],
        "names 'objct', which is no part of a subgoal (observation.planner.",
    ),
    (
        "iris",
        [f'{ACTORS_GOAL}=["latent_subgoal"]'],
        "(observation.value_planner.planner.modalities.subgoal)",
    ),
    ("hbc", ["algo.latent_subgoal.enabled=true", f'{ACTORS_GOAL}=["latent_subgoal"]'], None),
    (
        "hbc",
        ["algo.latent_subgoal.enabled=true", f'{ACTORS_GOAL}=["object"]'],
        "no part of a subgoal (algo.latent_subgoal.enabled); known are: latent_subgoal",
    ),
    (
        "hbc",
        ["algo.latent_subgoal.enabled=true", "algo.planner.vae.enabled=false"],
        "set 'algo.planner.vae.enabled' to true",
    ),
    ("iris", ["algo.latent_subgoal.enabled=true"], "values are of states, not of latents"),
    (
        "hbc",
        ['observation.planner.modalities.goal.low_dim=["object"]'],
        "'observation.planner.modalities.goal' names goals, but 'train.goal_mode' is null",
    ),
    (
        "hbc",
        ['observation.actor.modalities.obs.tactile=["touch"]'],
        "add 'observation.actor.encoder.tactile'",
    ),
    (
        "iris",
        ['observation.value_planner.value.modalities.obs.rgb=["object"]'],
        "'object' is both low_dim and rgb",
    ),
    (
        "bc",
        [*COLOURED.split(), NORMALIZED],
        "'observation.encoder.rgb.obs_randomizer_class' names ColorRandomizer, which takes images "
        "of 0 to 1, and 'train.hdf5_normalize_obs' is true",
    ),
    ("bc", [*COLOURED.split()], None),
    ("bc", [COLOURED.split()[1], NORMALIZED], None),  # of images that nobody sees
    (
        "hbc",
        [
            'observation.actor.modalities.obs.rgb=["camera"]',
            'observation.actor.encoder.rgb.obs_randomizer_class=["RandomShift","ColorRandomizer"]',
            "observation.actor.encoder.rgb.obs_randomizer_kwargs=[{},{}]",
            NORMALIZED,
        ],
        "'observation.actor.encoder.rgb.obs_randomizer_class' names ColorRandomizer",
    ),
]


@pytest.mark.parametrize(("algo", "assignments", "message"), AT_ODDS)
def test_settings_at_odds_with_each_other(algo, assignments, message):
    try:
        found = problems(make(algo, *assignments))
    except ConfigError as error:
        found = [str(error)]
    assert len(found) == (0 if message is None else 1), found
    assert message is None or message in found[0]


def test_an_algorithm_of_the_users_own_may_call_anything_anything():
    class Own(BaseConfig):  # without ALGO_NAME, which would register it
        def algo_config(self) -> None:
            self.algo.update(horizon=16, loss="l2", critic=3, actor="mlp", ddpm=True, vae=1)
            self.algo.net.layers, self.algo.unet.depth, self.algo.rnn.enabled = 2, 3, True
            self.algo.policy.vae.size = self.algo.policy.transformer.depth = 4

    Own.ALGO_NAME = "own"
    config = Own()
    config.train.data = "demos.hdf5"
    assert problems(config) == []
    assert warnings_for(config) == []


def test_several_mistakes_are_reported_together():
    config = make("td3_bc", "train.batch_size=0", "algo.discount=2", "experiment.validate=true")
    with pytest.raises(ConfigError, match=r"the config has 3 mistakes:") as error:
        check_config(config)
    assert len(str(error.value).splitlines()) == 4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("experiment.logging.log_wandb", True),
        ("experiment.logging.wandb_proj_name", "mine"),
        ("experiment.mse", {"enabled": True}),
        ("experiment.render", True),
        ("train.num_data_workers", 2),
        ("train.hdf5_use_swmr", False),
    ],
)
def test_keys_without_effect_are_warned_about_when_changed(key, value):
    config = make("td3_bc")
    config.set_path(key, value)
    assert warnings_for(config) == [f"'{key}' has no effect: {NO_EFFECT[key]}"]


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["train.num_epochs=5", "experiment.rollout.rate=50"], "asks for no evaluation in 5"),
        (["train.num_epochs=5", "experiment.rollout.warmstart=5"], "asks for no evaluation in 5"),
        (["experiment.save.on_best_validation=true"], "without 'experiment.validate'"),
        (["train.num_epochs=5", "experiment.save.epochs=[2, 9]"], "names [9], after the last"),
    ],
)
def test_settings_that_come_to_nothing_are_warned_about(assignments, message):
    config = make("td3_bc", *assignments)
    assert problems(config) == []
    (warning,) = warnings_for(config)
    assert message in warning


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        ([f"{ACTORS_GOAL}=[]"], "the actor does not see its subgoals"),
        (["algo.mode=planner_only"], "evaluation shows an untrained actor"),
        (["algo.mode=actor_only"], "evaluation shows an untrained planner"),
        (["algo.mode=actor_only", "experiment.ckpt_path=planner.pth"], None),
        (["algo.mode=actor_only", "experiment.rollout.enabled=false"], None),
    ],
)
@pytest.mark.parametrize("algo", ["hbc", "iris"])
def test_hierarchies_without_an_end_are_warned_about(algo, assignments, message):
    found = warnings_for(make(algo, f'{ACTORS_GOAL}=["object"]', *assignments))
    assert len(found) == (message is not None)
    assert message is None or message in found[0]


@pytest.mark.parametrize(
    ("name", "assignments", "warned"),
    [
        ("bc", {"algo.rnn.enabled": True}, ["algo.rnn.horizon"]),
        ("bc", {"algo.rnn.enabled": True, "train.seq_length": 10}, []),
        ("bc", {"algo.rnn.horizon": 5}, []),  # of a section that is off
        ("hbc", {"algo.actor.rnn.horizon": 5}, ["algo.actor.rnn.horizon"]),
    ],
)
def test_a_memory_of_another_length_than_the_sequences_is_a_warning(name, assignments, warned):
    config = config_factory(name)
    for key, value in assignments.items():
        config.set_path(key, value)
    assert [w.split("'")[1] for w in warnings_for(config) if ".horizon'" in w] == warned


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({}, 8),
        ({"batched": True}, 8),
        ({"batched": True, "num_batch_envs": 3}, 3),
        ({"batched": False, "num_batch_envs": 3}, 1),
        ({"num_batch_envs": 3}, 8),
    ],
)
def test_batches_of_environments_by_dexmimicgens_keys(settings, number):
    config = config_factory("bc", {"experiment": {"rollout": settings}})
    assert config.envs_per_actor == number
    config.ray.envs_per_actor = 5
    assert config.envs_per_actor == 5
    assert dict(config.experiment.rollout).items() >= settings.items()


@pytest.mark.parametrize("settings", [{"batched": 1}, {"batched": True, "num_batch_envs": 0}])
def test_batches_of_environments_that_are_none(settings):
    config = config_factory("bc", {"experiment": {"rollout": settings}})
    config.train.data = "demos.hdf5"
    key = list(settings)[-1]
    assert any(f"'experiment.rollout.{key}' is" in problem for problem in problems(config))


def test_an_unknown_key_is_a_runtime_error_as_in_robomimic():
    with pytest.raises(RuntimeError, match="unknown"):
        config_factory("bc", {"experiment": {"no_such_key": 1}})
