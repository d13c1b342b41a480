"""BCQ: what is proposed, what is learned from it, and in which order."""

from typing import Any

import pytest
import torch
from torch import Tensor

from raymimic.algo import algo_factory
from raymimic.algo.bcq import (
    BCQ,
    BCQ_GMM,
    BCQ_Distributional,
    BCQ_GMM_Distributional,
    Candidates,
)
from raymimic.config import BaseConfig, config_factory
from raymimic.config.checks import warnings_for
from raymimic.errors import ConfigError
from raymimic.models.distributions import DiscreteValueDistribution

torch.set_num_threads(1)

BATCH, OBS_DIM, ACTION_DIM = 6, 3, 2
GMM = {"action_sampler.gmm.enabled": True}
C51 = {"critic.distributional.enabled": True, "critic.value_bounds": [0.0, 4.0]}


def make_config(**settings: Any) -> BaseConfig:
    config = config_factory("bcq")
    for path, _ in config.algo.leaves():
        if path.endswith("layer_dims"):
            config.algo.set_path(path, [16, 16])
    config.algo.action_sampler.vae.latent_dim = 2
    for path, value in settings.items():
        config.algo.set_path(path, value)
    config.observation.modalities.obs.low_dim = ["flat"]
    return config


def make(settings: dict[str, Any] | None = None, seed: int = 0, ac_dim: int = ACTION_DIM) -> BCQ:
    config = make_config(**settings or {})
    torch.manual_seed(seed)
    algo = algo_factory("bcq", config, {"flat": [OBS_DIM]}, ac_dim, "cpu")
    algo.set_train()
    assert isinstance(algo, BCQ)
    return algo


def make_batch(rows: int = BATCH, ac_dim: int = ACTION_DIM) -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    return {
        "obs": {"flat": torch.randn(rows, OBS_DIM, generator=g)},
        "next_obs": {"flat": torch.randn(rows, OBS_DIM, generator=g)},
        "goal_obs": None,
        "actions": torch.rand(rows, ac_dim, generator=g) * 2 - 1,
        "rewards": torch.rand(rows, 1, generator=g),
        "dones": torch.zeros(rows, 1),
    }


def changed(algo: BCQ, before: dict[str, Tensor]) -> set[str]:
    return {k.split(".")[0] for k, x in algo.nets.state_dict().items() if (x != before[k]).any()}


def snapshot(algo: BCQ) -> dict[str, Tensor]:
    return {k: x.clone() for k, x in algo.nets.state_dict().items()}


# --------------------------------------------------------------------------------- variants


@pytest.mark.parametrize(
    ("settings", "cls"),
    [({}, BCQ), (GMM, BCQ_GMM), (C51, BCQ_Distributional), (GMM | C51, BCQ_GMM_Distributional)],
)
def test_settings_choose_the_variant(settings, cls):
    algo = make({**settings, "actor.enabled": True})
    assert type(algo) is cls
    algo.train_on_batch(make_batch(), epoch=1)
    algo.set_eval()
    with torch.no_grad():
        action = algo.get_action(make_batch()["obs"])
    assert action.shape == (BATCH, ACTION_DIM)
    assert action.abs().max() <= 1.0
    assert algo.get_state_value(make_batch()["obs"]).shape == (BATCH, 1)


def test_a_sampler_and_bounds_of_atoms_are_demanded():
    with pytest.raises(ConfigError, match=r"algo.action_sampler.vae.enabled"):
        make({"action_sampler.vae.enabled": False})
    with pytest.raises(ConfigError, match=r"algo.critic.value_bounds=\[low,high\]"):
        make({"critic.distributional.enabled": True})


# -------------------------------------------------------------------------------- proposals


def test_candidates_of_a_state_lie_side_by_side():
    algo = make()
    obs = make_batch()["obs"]
    candidates = algo.propose(obs, None, 4, "actor")
    values = algo.get_state_action_value(*candidates).view(BATCH, 4)
    for i, actions in enumerate(candidates.actions.view(BATCH, 4, -1)):
        rows = {"flat": obs["flat"][i].expand(4, OBS_DIM)}
        torch.testing.assert_close(algo.get_state_action_value(rows, actions)[:, 0], values[i])
    assert candidates.actions.shape == (4 * BATCH, ACTION_DIM)
    assert len(candidates.actions.unique(dim=0)) == 4 * BATCH  # no draw is shared


def test_perturbation_moves_as_far_as_the_config_says_at_that_moment():
    algo = make({"actor.enabled": True})
    obs, still = make_batch()["obs"], torch.zeros(BATCH, ACTION_DIM)
    moved = {}
    with algo.global_config.values_unlocked():
        for scale in (0.0, 0.1, 0.2):
            algo.algo_config.actor.perturbation_scale = scale
            moved[scale] = algo._perturb("actor", obs, still, None)
    assert moved[0.0].count_nonzero() == 0
    assert 0.0 < moved[0.1].abs().max() <= 0.1
    torch.testing.assert_close(moved[0.2], 2 * moved[0.1])


def test_the_best_candidate_by_the_first_critic_is_taken(monkeypatch):
    algo = make({"critic.num_action_samples_rollout": 3})
    actions = torch.tensor([[[0.1], [0.9], [0.2]], [[-0.5], [-0.9], [-0.8]]]).view(6, 1)
    monkeypatch.setattr(algo, "propose", lambda *args: Candidates({}, actions, None))
    monkeypatch.setattr(algo, "get_state_action_value", lambda obs, a, goal=None: 10 * a)
    torch.testing.assert_close(algo.get_action({}), torch.tensor([[0.9], [-0.5]]))
    torch.testing.assert_close(algo.get_state_value({}), torch.tensor([[9.0], [-5.0]]))


@pytest.mark.parametrize("settings", [{}, GMM])
def test_model_proposes_in_evaluation_mode_and_learns_in_training_mode(settings, monkeypatch):
    algo = make({**settings, "actor.enabled": True})
    sampler = algo.nets["action_sampler"]
    modes = []

    def spied(name: str) -> Any:
        method = getattr(sampler, name)

        def spy(*args: Any) -> Any:
            modes.append((name, sampler.training))
            return method(*args)

        return spy

    for name in ("forward_train", "sample"):
        monkeypatch.setattr(sampler, name, spied(name))
    algo.train_on_batch(make_batch(), epoch=1)
    assert modes == [("forward_train", True), ("sample", False), ("sample", False)]
    assert sampler.training


@pytest.mark.parametrize("settings", [{}, {"action_sampler.vae.prior.learn": True}, GMM])
def test_model_proposes_the_same_as_for_repeated_states(settings):
    if "action_sampler.vae.prior.learn" in settings:
        settings = {**settings, "action_sampler.vae.prior.is_conditioned": True}
    algo = make(settings)
    algo.set_eval()
    sampler, obs = algo.nets["action_sampler"], make_batch()["obs"]
    repeated = {"flat": obs["flat"].repeat_interleave(3, dim=0)}
    torch.manual_seed(0)
    once = sampler.sample(obs, None, 3)  # which sees each state once
    torch.manual_seed(0)
    torch.testing.assert_close(once, sampler(repeated))


# ------------------------------------------------------------------------------------ learning


def test_target_maximises_over_candidates_the_mix_of_critics(monkeypatch):
    algo = make({"critic.num_action_samples": 2, "critic.ensemble.weight": 0.75, "discount": 0.5})
    actions = torch.tensor([[1.0], [2.0], [3.0], [8.0]])
    asked = []

    def propose(obs: Any, goal: Any, n: int, actor: str) -> Candidates:
        asked.append((n, actor))
        return Candidates(obs, actions, goal)

    monkeypatch.setattr(algo, "propose", propose)
    monkeypatch.setattr(
        algo, "ensemble_values", lambda name, obs, a, goal: torch.stack([a, 5.0 - a])
    )
    batch = {
        "next_obs": {},
        "goal_obs": None,
        "rewards": torch.tensor([[1.0], [2.0]]),
        "dones": torch.tensor([[0.0], [1.0]]),
    }
    # First state: 0.75 * 1 + 0.25 * 4 = 1.75 and 0.75 * 2 + 0.25 * 3 = 2.25.
    assert algo.compute_td_target(batch).tolist() == [[1.0 + 0.5 * 2.25], [2.0]]
    batch["dones"] = torch.zeros(2, 1)
    # Second: 0.75 * 2 + 0.25 * 3 = 2.25 and 0.75 * -3 + 0.25 * 8 = -0.25.
    assert algo.compute_td_target(batch)[1].tolist() == [2.0 + 0.5 * 2.25]
    assert asked == [(2, "actor_target")] * 2


def test_networks_learn_between_their_epochs_and_targets_only_with_them():
    prefix = "optim_params"
    algo = make(
        {
            "actor.enabled": True,
            f"{prefix}.action_sampler.end_epoch": 2,
            f"{prefix}.critic.start_epoch": 2,
            f"{prefix}.actor.start_epoch": 3,
        }
    )
    moved = []
    for epoch in (1, 2, 3):
        before = snapshot(algo)
        info = algo.train_on_batch(make_batch(), epoch)
        moved.append(changed(algo, before))
        assert ("actor/grad_norms" in info) == (epoch == 3)
        assert all(f"{net}/loss" in info for net in ("action_sampler", "actor"))
    assert moved == [
        {"action_sampler"},
        {"critic", "critic_target"},
        {"critic", "critic_target", "actor", "actor_target"},
    ]


def test_validation_changes_nothing_and_reports_the_same_losses():
    algo = make({"actor.enabled": True})
    algo.set_eval()
    before = snapshot(algo)
    torch.manual_seed(0)
    log = algo.log_info(algo.train_on_batch(make_batch(), epoch=1, validate=True))
    assert not changed(algo, before)
    assert not algo.nets["action_sampler"].training
    parts = ("Action_Sampler/Loss", "Critic/Critic1_Loss", "Critic/Critic2_Loss", "Actor/Loss")
    assert float(log["Loss"]) == pytest.approx(sum(float(log[part]) for part in parts))


def test_actors_loss_gives_critics_no_gradient():
    algo = make({"actor.enabled": True})
    algo.compute_actor_loss(make_batch()).backward()
    assert all(p.grad is None for p in algo.nets["critic"].parameters())
    assert all(p.grad is None for p in algo.nets["action_sampler"].parameters())
    assert all(p.grad is not None for p in algo.nets["actor"].parameters())


def test_vaes_encoder_freezes_at_its_epoch():
    algo = make({"action_sampler.freeze_encoder_epoch": 2})
    encoder = algo.nets["action_sampler"]._vae.nets["encoder"]
    moves = []
    for epoch in (1, 2):
        before = [p.clone() for p in encoder.parameters()]
        whole = snapshot(algo)
        algo.train_on_batch(make_batch(), epoch)
        pairs = zip(encoder.parameters(), before, strict=True)
        moves.append(any(not torch.equal(p, b) for p, b in pairs))
        assert "action_sampler" in changed(algo, whole)  # the decoder goes on
    # Adam's momentum must not move it either: no gradient is no step.
    assert moves == [True, False]


def test_temperature_of_a_categorical_latent_falls_by_the_epoch():
    algo = make(
        {
            "action_sampler.vae.prior.use_categorical": True,
            "action_sampler.vae.prior.categorical_temp_anneal_step": 0.25,
        }
    )
    logged = [
        algo.log_info(algo.train_on_batch(make_batch(), e))["Action_Sampler/Gumbel_Temperature"]
        for e in (1, 2, 9)
    ]
    assert logged == pytest.approx([0.75, 0.5, 0.3])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        GMM,
        C51
        | {
            "critic.value_bounds": [-1.0, 1.0],
            "critic.distributional.clip_to_second_atom": False,
        },
    ],
)
def test_policy_prefers_the_better_of_the_actions_in_the_data(settings):
    algo = make(
        {
            **settings,
            "actor.enabled": True,
            "action_sampler.vae.kl_weight": 0.05,
            "critic.num_action_samples_rollout": 20,
        },
        ac_dim=1,
    )
    batch = make_batch(64, ac_dim=1)
    batch["actions"] = 0.6 * torch.sign(batch["actions"])
    batch["rewards"] = batch["actions"].clone()
    batch["dones"] = torch.ones(64, 1)
    for _ in range(250):
        algo.train_on_batch(batch, epoch=1)
    algo.set_eval()
    with torch.no_grad():
        actions = algo.get_action(batch["obs"])
        good = algo.get_state_action_value(batch["obs"], torch.full((64, 1), 0.6))
        bad = algo.get_state_action_value(batch["obs"], torch.full((64, 1), -0.6))
    # An average of the data's actions would lie at zero.
    assert (actions > 0.0).float().mean() > 0.9
    assert actions.mean() > 0.4
    assert 0.2 < good.mean() < 0.7
    assert -0.7 < bad.mean() < -0.2


# ----------------------------------------------------------------------------- distributional


def c51(clip: bool) -> BCQ_Distributional:
    algo = make(
        {
            **C51,  # atoms 0, 1, 2, 3, 4
            "critic.distributional.num_atoms": 5,
            "critic.distributional.clip_to_second_atom": clip,
            "critic.num_action_samples": 2,
            "discount": 0.5,
        }
    )
    assert isinstance(algo, BCQ_Distributional)
    return algo


def test_distribution_of_the_best_candidate_is_backed_up_and_projected(monkeypatch):
    algo = c51(clip=False)
    assert algo.nets["critic"][0].atoms.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    probs = torch.tensor(
        [
            [1.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.5, 0.0, 0.0, 0.5],  # the better one of the first state
            [0.0, 0.0, 0.0, 0.0, 1.0],  # of the second
            [0.0, 0.0, 0.0, 1.0, 0.0],
        ]
    )
    atoms = algo.nets["critic"][0].atoms
    dist = DiscreteValueDistribution(atoms, logits=probs.clamp(min=1e-12).log())
    monkeypatch.setattr(algo, "_predict_returns", lambda name, *args: dist)
    batch = {
        "next_obs": {"flat": torch.zeros(2, OBS_DIM)},
        "goal_obs": None,
        "rewards": torch.tensor([[1.0], [3.5]]),
        "dones": torch.tensor([[0.0], [0.0]]),
    }
    # First: atoms 1 and 4 become 1.5 and 3. Second: 4 becomes 5.5, beyond the highest atom.
    expected = torch.tensor([[0.0, 0.25, 0.25, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]])
    torch.testing.assert_close(algo.compute_td_target(batch), expected)
    batch["dones"] = torch.ones(2, 1)
    expected = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.5, 0.5]])
    torch.testing.assert_close(algo.compute_td_target(batch), expected)

    with algo.global_config.values_unlocked():
        algo.algo_config.critic.distributional.clip_to_second_atom = True
    expected = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0]] * 2)  # as robomimic cuts returns off
    torch.testing.assert_close(algo.compute_td_target(batch), expected)


def test_robomimics_cut_of_returns_is_warned_of():
    config = make_config(**C51)
    config.train.data = "demos.hdf5"
    config.experiment.rollout.enabled = False
    (warning,) = warnings_for(config)
    assert "clip_to_second_atom" in warning
    config.algo.critic.distributional.clip_to_second_atom = False
    assert warnings_for(config) == []


def test_a_distributional_critic_is_alone_whatever_the_ensemble():
    algo = make(C51 | {"critic.ensemble.n": 3})
    assert len(algo.nets["critic"]) == len(algo.optimizers["critic"]) == 1
    assert "critic.0.nets.decoder.nets.log_probs.weight" in algo.nets.state_dict()
    assert not any("atoms" in key for key in algo.nets.state_dict())
    values = algo.get_state_action_value(make_batch()["obs"], make_batch()["actions"])
    assert values.shape == (BATCH, 1)
    assert ((values > 0.0) & (values < 4.0)).all()
