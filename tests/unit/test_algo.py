"""The work of base classes for algorithms, in numbers."""

from typing import Any

import pytest
import torch
from tiny import small_config

from raymimic.algo import BC, TD3_BC, Algo, algo_factory, register_algo_factory_func
from raymimic.config import BaseConfig, config_factory
from raymimic.errors import CheckpointError, ConfigError

torch.set_num_threads(1)


def make_config(name: str = "td3_bc") -> BaseConfig:
    config = config_factory(name)
    if name == "td3_bc":
        config.algo.actor.layer_dims = config.algo.critic.layer_dims = (8, 8)
    else:
        config.algo.actor_layer_dims = (8, 8)
    config.observation.modalities.obs.low_dim = ["flat"]
    return config


def make(config: BaseConfig, seed: int = 0) -> Algo:
    torch.manual_seed(seed)
    algo = algo_factory(config.algo_name, config, {"flat": [2]}, ac_dim=1, device="cpu")
    algo.set_train()
    return algo


def raw_batch(length: int = 3) -> dict[str, Any]:
    steps = torch.arange(float(length))
    flat = torch.stack([steps, 10 + steps])[..., None].expand(2, length, 2)
    return {
        "obs": {"flat": flat},
        "next_obs": {"flat": flat + 1},
        "actions": torch.full((2, length, 1), 0.5),
        "rewards": torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])[:, :length],
        "dones": torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])[:, :length],
    }


def test_n_step_returns():
    config = make_config()
    config.algo.n_step, config.algo.discount = 3, 0.5
    algo = make(config)
    batch = algo.process_batch_for_training(raw_batch())
    assert batch["rewards"].tolist() == [[1 + 1 + 1], [8 + 8 + 8]]
    assert batch["dones"].tolist() == [[0], [1]]
    assert batch["obs"]["flat"][:, 0].tolist() == [0, 10]
    assert batch["next_obs"]["flat"][:, 0].tolist() == [3, 13]
    assert algo.discount == 0.125


def test_n_step_needs_sequences_as_long():
    config = make_config()
    config.algo.n_step = 3
    with pytest.raises(ConfigError, match=r"train.seq_length=3 \(it is 1\)"):
        make(config).process_batch_for_training(raw_batch(length=1))


def test_infinite_horizon_scales_terminal_rewards():
    config = make_config()
    config.algo.n_step, config.algo.discount, config.algo.infinite_horizon = 2, 0.5, True
    batch = make(config).process_batch_for_training(raw_batch())
    assert batch["rewards"].flatten().tolist() == pytest.approx([1 + 1, (8 + 8) / (1 - 0.25)])


def test_batch_without_what_the_dataset_lacks():
    raw = {k: v for k, v in raw_batch().items() if k in ("obs", "actions")}
    batch = make(make_config("bc")).process_batch_for_training(raw)
    assert set(batch) == {"obs", "actions", "goal_obs"}


def test_observations_are_normalised_wherever_they_are():
    algo = make(make_config())
    batch = algo.process_batch_for_training(raw_batch())
    stats = {"flat": {"offset": [[1.0, 2.0]], "scale": [[2.0, 4.0]]}}
    done = algo.postprocess_batch_for_training({"part": batch}, obs_normalization_stats=stats)[
        "part"
    ]
    assert done["obs"]["flat"].tolist() == [[-0.5, -0.5], [4.5, 2.0]]
    assert done["next_obs"]["flat"].tolist() == [[0.0, -0.25], [5.0, 2.25]]
    assert batch["obs"]["flat"].tolist() == [[0.0, 0.0], [10.0, 10.0]]


def test_numbers_of_the_config_are_read_at_each_step():
    config = make_config()
    algo = make(config)
    batch = algo.process_batch_for_training(raw_batch())
    with config.values_unlocked():
        for discount in (0.5, 0.0):
            config.algo.discount = discount
            target = algo.compute_td_target(batch)
            assert torch.equal(target, batch["rewards"]) == (discount == 0.0)

        loss = {}
        for alpha in (0.0, 1.0, 2.0):
            config.algo.alpha = alpha
            loss[alpha] = algo.compute_actor_loss(batch).item()
        assert loss[2.0] - loss[1.0] == pytest.approx(loss[1.0] - loss[0.0], rel=1e-4)
        assert abs(loss[1.0] - loss[0.0]) == pytest.approx(1.0, rel=1e-4)  # one sign of Q here

        before = algo.nets["critic_target"].state_dict()["0.nets.decoder.nets.value.bias"].clone()
        config.algo.actor.update_freq, config.algo.target_tau = 1, 1.0
        algo.train_on_batch(batch, epoch=1)
        after = algo.nets["critic_target"].state_dict()
        assert not torch.equal(after["0.nets.decoder.nets.value.bias"], before)
        for key, x in algo.nets["critic"].state_dict().items():
            assert torch.equal(after[key], x)


def test_an_assigned_discount_takes_the_configs_place():
    algo = make(make_config())
    assert algo.discount == 0.99
    algo.discount = 0.5
    assert algo.discount == algo.training_state()["_discount"] == 0.5


def test_actor_and_targets_follow_every_second_step():
    algo = make(make_config())
    batch = algo.process_batch_for_training(raw_batch())
    for step in range(1, 5):
        before = {k: x.clone() for k, x in algo.nets.state_dict().items()}
        log = algo.log_info(algo.train_on_batch(batch, epoch=1))
        changed = {
            k.split(".")[0] for k, x in algo.nets.state_dict().items() if (x != before[k]).any()
        }
        updates_actor = step % 2 == 0
        assert changed == ({"critic", *algo.nets} if updates_actor else {"critic"})
        assert ("Actor/Grad_Norms" in log) == updates_actor
    assert algo.actor_update_counter == 4


def test_ensemble_weight_mixes_minimum_and_maximum():
    config = make_config()
    config.algo.critic.ensemble.n, config.algo.critic.ensemble.weight = 3, 0.75
    config.algo.discount = 1.0
    algo = make(config)
    for critic, value in zip(algo.nets["critic_target"], (1.0, 5.0, 3.0), strict=True):
        for p in critic.parameters():
            p.data.zero_()
        critic.nets["decoder"].nets["value"].bias.data.fill_(value)
    batch = algo.process_batch_for_training(raw_batch(length=1))
    batch["dones"] = torch.tensor([[0.0], [1.0]])
    assert algo.compute_td_target(batch).tolist() == [[1 + 0.75 * 1 + 0.25 * 5], [8.0]]


def test_networks_learn_between_their_start_and_end_epochs():
    config = make_config()
    config.algo.optim_params.critic.start_epoch = 2
    config.algo.optim_params.actor.end_epoch = 3
    algo = make(config)
    batch = algo.process_batch_for_training(raw_batch())
    learned = []
    for epoch in (1, 2, 2, 3, 3):
        log = algo.log_info(algo.train_on_batch(batch, epoch))
        learned.append(("Critic/Critic1_Grad_Norms" in log, "Actor/Grad_Norms" in log))
    assert learned == [(False, True), (True, False), (True, True), (True, False), (True, False)]


def test_lambda_is_a_statistic_of_the_global_batch():
    class Doubling:
        """Other workers' |Q| are such that the mean over all is twice this one's."""

        def average_gradients(self, params):
            raise AssertionError("nothing is learned here")

        def mean(self, x):
            return 2 * x.detach().mean()

    config = make_config()
    algo = make(config)
    batch = algo.process_batch_for_training(raw_batch())
    local = algo.compute_actor_loss(batch)
    algo.grad_sync = Doubling()
    shared = algo.compute_actor_loss(batch)
    config.algo.alpha = 1.25
    algo.grad_sync = None
    assert shared.item() == pytest.approx(algo.compute_actor_loss(batch).item(), rel=1e-5)
    assert shared.item() != pytest.approx(local.item(), rel=1e-2)


def test_schedules_step_with_batches_or_with_epochs():
    config = make_config()
    config.algo.optim_params.critic.learning_rate.epoch_schedule = [1]
    rate = config.algo.optim_params.actor.learning_rate
    rate.epoch_schedule, rate.step_every_batch = [2], True
    config.algo.actor.update_freq = 1
    algo = make(config)

    def rates() -> list[float]:
        return [o.param_groups[0]["lr"] for _, o in algo.named_optimizers()]

    batch = algo.process_batch_for_training(raw_batch())
    for _ in range(2):
        assert rates() == pytest.approx([3e-4, 3e-4, 3e-4])
        algo.train_on_batch(batch, epoch=1)
        algo.on_gradient_step()
    assert rates() == pytest.approx([3e-4, 3e-4, 3e-5])
    algo.on_epoch_end(1)
    assert rates() == pytest.approx([3e-5, 3e-5, 3e-5])
    assert [name for name, _ in algo.named_optimizers()] == ["critic0", "critic1", "actor"]


def test_log_names_and_means():
    algo = make(make_config("bc"))
    info = {
        "losses": {"action_loss": torch.tensor(2.0, requires_grad=True)},
        "kl_loss": torch.tensor([1.0, 3.0]),
        "done_masks": torch.tensor([True, False]),
        "temperature": 0.5,
        "distribution": object(),
    }
    log = {k: float(x) for k, x in algo.log_info(info).items()}
    assert log == pytest.approx(
        {
            "Optimizer/policy0_lr": 1e-4,
            "Losses/Action_Loss": 2.0,
            "Kl_Loss": 2.0,
            "Done_Masks": 0.5,
            "Temperature": 0.5,
            "Loss": 4.0,
        }
    )


def test_old_checkpoints_hold_networks_alone():
    algo, other = make(make_config("bc")), make(make_config("bc"), seed=1)
    other.deserialize(algo.serialize()["nets"])
    for x, y in zip(algo.nets.parameters(), other.nets.parameters(), strict=True):
        assert torch.equal(x, y)
    with pytest.raises(CheckpointError, match="training cannot resume"):
        other.deserialize(algo.serialize()["nets"], load_optimizers=True)


def test_the_state_of_a_training_replaces_no_part_of_an_algorithm():
    algo = make(make_config())
    state = algo.training_state()
    algo.load_training_state({**state, "of_a_later_step": 3.0})
    for name in ("nets", "optimizers", "global_config", "get_action", "__class__"):
        with pytest.raises(ValueError, match=f"'{name}' is no part"):
            algo.load_training_state({**state, name: 5})


def test_checkpoint_of_another_architecture():
    config = make_config("bc")
    config.algo.actor_layer_dims = (4, 4)
    with pytest.raises(CheckpointError, match=r"does not fit the config.*size mismatch"):
        make(make_config("bc")).deserialize(make(config).serialize())


def test_missing_observation_key_names_the_nearest():
    config = make_config()
    config.observation.modalities.obs.low_dim = ["flt"]
    with pytest.raises(
        ConfigError, match=r"'flt' of observation.modalities.obs.*did you mean 'flat'"
    ):
        make(config)


def test_key_of_two_modalities():
    config = make_config()
    config.observation.modalities.obs.rgb = ["flat"]
    with pytest.raises(ConfigError, match="'flat' is listed as low_dim and as rgb"):
        make(config)


def test_registry():
    with pytest.raises(ConfigError, match="unknown algorithm 'td3bc'; did you mean 'td3_bc'"):
        algo_factory("td3bc", make_config(), {"flat": [2]}, 1, "cpu")
    with pytest.raises(ConfigError, match="the config is for 'bc', not for 'td3_bc'"):
        algo_factory("td3_bc", make_config("bc"), {"flat": [2]}, 1, "cpu")
    with pytest.raises(ConfigError, match="an algorithm 'bc' is registered already"):
        register_algo_factory_func("bc")(lambda algo_config: (TD3_BC, {}))
    assert type(make(make_config("bc"))) is BC


@pytest.mark.parametrize(
    ("name", "key", "settings"),
    [
        ("bc", "algo.actor_layer_dims", {}),
        ("bc", "algo.vae.decoder_layer_dims", {"algo.vae.enabled": True}),
        ("td3_bc", "algo.actor.layer_dims", {}),
        ("td3_bc", "algo.critic.layer_dims", {}),
        ("cql", "algo.critic.layer_dims", {}),
        ("iql", "algo.actor.layer_dims", {}),
        ("bcq", "algo.action_sampler.vae.encoder_layer_dims", {}),
        ("gl", "algo.ae.planner_layer_dims", {"algo.vae.enabled": False}),
        ("hbc", "algo.planner.ae.planner_layer_dims", {"algo.planner.vae.enabled": False}),
        ("iris", "algo.value_planner.value.critic.layer_dims", {}),
    ],
)
def test_a_network_without_layers_is_named_by_its_key(
    name: str, key: str, settings: dict[str, Any]
) -> None:
    config = small_config(name, **settings, **{key: ()})
    with pytest.raises(ConfigError, match=f"'{key}' is empty, .* such as \\[256, 256\\]"):
        make(config)
