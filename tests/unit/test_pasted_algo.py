"""The algorithm of robomimic's tutorial, pasted from it, against the one that is built in.

`tests/data/my_td3_bc.py` is that listing with import lines in front and another name. It leaves
out the work of base classes: batches, optimizers, schedules, epochs, counters, logging.
"""

import my_td3_bc
import pytest
import torch

from raymimic.algo import TD3_BC, Algo, algo_factory
from raymimic.config import config_factory

STATS = {"flat": {"offset": torch.full((1, 4), 0.5), "scale": torch.full((1, 4), 2.0)}}


def make(name: str) -> Algo:
    config = config_factory(name)
    config.algo.actor.layer_dims = config.algo.critic.layer_dims = (16, 16)
    config.algo.critic.max_gradient_norm = 0.5
    config.observation.modalities.obs.low_dim = ["flat"]
    algo = algo_factory(name, config, {"flat": [4]}, ac_dim=3, device="cpu")
    algo.set_train()
    return algo


def test_trains_like_the_built_in_algorithm():
    pasted, built_in = make("my_td3_bc"), make("td3_bc")
    assert type(pasted) is my_td3_bc.TD3_BC
    assert type(built_in) is TD3_BC
    assert pasted.needs == built_in.needs == {"next_obs", "rewards", "dones"}
    pasted.nets.load_state_dict(built_in.nets.state_dict())

    g = torch.Generator().manual_seed(0)
    for seed in range(6):
        raw = {
            "obs": {"flat": torch.randn(32, 1, 4, generator=g)},
            "next_obs": {"flat": torch.randn(32, 1, 4, generator=g)},
            "actions": torch.rand(32, 1, 3, generator=g) * 2 - 1,
            "rewards": torch.randn(32, 1, generator=g),
            "dones": (torch.rand(32, 1, generator=g) < 0.2).float(),
        }
        logs = []
        for algo in (pasted, built_in):
            torch.manual_seed(seed)
            batch = algo.process_batch_for_training(raw)
            batch = algo.postprocess_batch_for_training(batch, obs_normalization_stats=STATS)
            logs.append(algo.log_info(algo.train_on_batch(batch, epoch=1)))
            algo.on_gradient_step()
        done_masks = float(logs[0].pop("Done_Masks"))
        assert 100 * done_masks == pytest.approx(float(logs[1].pop("Critic/Done_Mask_Percentage")))
        assert {k: float(x) for k, x in logs[0].items()} == pytest.approx(
            {k: float(x) for k, x in logs[1].items()}, rel=1e-5
        )
    assert pasted.actor_update_counter == built_in.actor_update_counter == 6
    for x, y in zip(
        pasted.nets.state_dict().values(), built_in.nets.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)
