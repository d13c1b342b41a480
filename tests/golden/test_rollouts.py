"""Episodes of every kind of policy follow from their seeds alone, not from episodes beside them."""

from typing import Any

import pytest
import torch
from reference import variant_config

from raymimic.algo import RolloutPolicy, algo_factory
from raymimic.rollout.episodes import Rules, run_episodes

HOPPER = {"env_name": "Hopper-v5", "type": 2}
NOISY: dict[str, dict[str, Any]] = {
    "bc_gaussian": {"algo.gaussian.low_noise_eval": False},
    "bc_rnn_gmm": {"algo.gmm.low_noise_eval": False},
    "bc_rnn_open_loop": {},
    "bc_transformer_gmm": {"algo.gmm.low_noise_eval": False},
    "bc_vae_categorical_prior_obs_dependent": {},
    "bcq_as_vae_gmm_prior_obs_dependent_weights_learned": {},
    "cql_fixed_gaussian": {},
    "diffusion_policy_ddpm": {
        "algo.unet.diffusion_step_embed_dim": 8,
        "algo.unet.down_dims": [8, 16],
        "algo.unet.n_groups": 4,
        "algo.ddpm.num_inference_timesteps": 3,
    },
    "hbc_vae_gaussian_prior_obs_dependent": {"algo.subgoal_update_interval": 3},
    "iris": {"algo.value_planner.num_samples": 4},
    "iql_gmm": {"algo.actor.net.common.low_noise_eval": False},
}


@pytest.mark.parametrize("name", NOISY)
def test_one_environment_and_eight_play_the_same_episodes(name: str) -> None:
    config = variant_config(name)
    for path, value in NOISY[name].items():
        config.set_path(path, value)
    for path, keys in list(config.observation.leaves()):
        if path.endswith(".low_dim") and "modalities" in path and keys:
            config.observation.set_path(path, ["flat"])
    torch.manual_seed(0)
    algo = algo_factory(config.algo_name, config, {"flat": [11]}, 3, "cpu")
    policy, seeds = RolloutPolicy(algo), range(40, 49)

    def play(part: range, num_envs: int) -> list[tuple[int, float, int]]:
        episodes = run_episodes(policy, HOPPER, part, Rules(12), num_envs)
        return [(e.seed, e.episode_return, e.length) for e in episodes]

    alone = play(seeds, 1)
    assert play(seeds, 8) == alone
    assert play(seeds[:4], 8) + play(seeds[4:], 3) == alone
    assert len({episode_return for _, episode_return, _ in alone}) == len(seeds)
