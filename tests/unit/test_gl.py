"""Goal learning: subgoals in batches, losses, samples, and the choice by value."""

from typing import Any

import pytest
import torch
from torch import Tensor

from raymimic.algo import GL, GL_VAE, Algo, ValuePlanner, algo_factory
from raymimic.algo.noise import EpisodeNoise
from raymimic.config import BCQConfig, Config, GLConfig
from raymimic.errors import ConfigError

B, T, A = 4, 5, 2
SHAPES = {"far": (3,), "near": (2,), "only_obs": (1,)}
SUBGOAL = ["far", "near"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def gl_config(vae: bool = True, goal: bool = False, **settings: Any) -> GLConfig:
    config = GLConfig()
    config.train.seq_length = T
    config.algo.subgoal_horizon = 3
    config.algo.ae.planner_layer_dims = (16,)
    config.algo.vae.enabled = vae
    config.algo.vae.latent_dim = 4
    for net in ("encoder", "decoder", "prior"):
        config.algo.vae[f"{net}_layer_dims"] = (16,)
    config.observation.modalities.obs.low_dim = ["near", "only_obs"]
    config.observation.modalities.subgoal.low_dim = SUBGOAL
    config.observation.modalities.goal.low_dim = ["far"] if goal else []
    for key, value in settings.items():
        config.set_path(key.replace("__", "."), value)
    return config


def make(config: GLConfig) -> Any:
    return algo_factory("gl", config, SHAPES, A, "cpu")


def raw_batch(goal: bool = False) -> dict[str, Any]:
    def observations(*size: int) -> dict[str, Tensor]:
        return {k: torch.randn(*size, *shape) for k, shape in SHAPES.items()}

    batch: dict[str, Any] = {
        "obs": observations(B, T),
        "next_obs": observations(B, T),
        "actions": torch.rand(B, T, A) * 2 - 1,
        "rewards": torch.rand(B, T),
        "dones": torch.zeros(B, T),
    }
    return batch | ({"goal_obs": observations(B)} if goal else {})


def processed(algo: Algo, raw: dict[str, Any], stats: Any = None) -> dict[str, Any]:
    return algo.postprocess_batch_for_training(algo.process_batch_for_training(raw), stats)


# ------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("horizon", [1, 3, T])
def test_subgoal_lies_horizon_steps_ahead(horizon):
    algo, raw = make(gl_config()), raw_batch()
    algo.algo_config.subgoal_horizon = horizon  # read at each step
    batch = processed(algo, raw)
    assert set(batch) == {"obs", "target_subgoals", "goal_obs"}
    assert set(batch["obs"]) == {"near", "only_obs"}
    assert set(batch["target_subgoals"]) == set(SUBGOAL)
    assert torch.equal(batch["obs"]["near"], raw["obs"]["near"][:, 0])
    for key in SUBGOAL:
        assert torch.equal(batch["target_subgoals"][key], raw["next_obs"][key][:, horizon - 1])
    assert batch["goal_obs"] is None


def test_subgoal_beyond_the_sequence_is_refused():
    algo = make(gl_config(algo__subgoal_horizon=T + 1))
    with pytest.raises(ConfigError, match=f"train.seq_length={T + 1}"):
        algo.process_batch_for_training(raw_batch())


@pytest.mark.parametrize("key", ["robot.pos", "keys"])
def test_a_subgoal_that_cannot_name_a_network(key):
    """Torch keeps modules under names without dots that are not its own."""
    config = gl_config(vae=False)
    config.observation.modalities.subgoal.low_dim = [key]
    with pytest.raises(ConfigError, match=f"observation key '{key}' cannot name a network"):
        algo_factory("gl", config, {**SHAPES, key: (2,)}, A, "cpu")


def test_subgoals_are_normalised_like_observations():
    algo, raw = make(gl_config()), raw_batch()
    stats = {
        key: {"offset": torch.full((1, *shape), 2.0), "scale": torch.full((1, *shape), 4.0)}
        for key, shape in SHAPES.items()
    }
    batch = processed(algo, raw, stats)
    torch.testing.assert_close(batch["obs"]["near"], (raw["obs"]["near"][:, 0] - 2) / 4)
    torch.testing.assert_close(
        batch["target_subgoals"]["far"], (raw["next_obs"]["far"][:, 2] - 2) / 4
    )


# -------------------------------------------------------------------------------- losses


def test_config_chooses_between_one_subgoal_and_a_distribution():
    assert type(make(gl_config(vae=False))) is GL
    assert type(make(gl_config(vae=True))) is GL_VAE


def test_regression_adds_the_keys_errors():
    algo = make(gl_config(vae=False))
    batch = processed(algo, raw_batch())
    algo.set_eval()
    log = algo.log_info(algo.train_on_batch(batch, epoch=1, validate=True))
    predictions = algo.get_subgoal_predictions(batch["obs"])
    errors = {k: (predictions[k] - batch["target_subgoals"][k]).square().mean() for k in SUBGOAL}
    for key, error in errors.items():
        torch.testing.assert_close(log[f"goal_{key}_loss"], error)
    torch.testing.assert_close(log["Loss"], errors["far"] + errors["near"])
    assert log["goal_loss"] == log["Loss"]
    assert "Grad_Norms" not in log


def test_vaes_loss_weighs_the_kl_as_the_config_says_at_each_step():
    algo = make(gl_config())
    batch = processed(algo, raw_batch())
    algo.set_eval()
    for weight in (1.0, 10.0):
        algo.algo_config.vae.kl_weight = weight
        log = algo.log_info(algo.train_on_batch(batch, epoch=1, validate=True))
        torch.testing.assert_close(
            log["Loss"], log["Reconstruction_Loss"] + weight * log["KL_Loss"]
        )
        assert log["KL_Loss"] > 0
        logvar = algo.nets["goal_network"].encode(batch["target_subgoals"], batch["obs"])["logvar"]
        torch.testing.assert_close(log["Encoder_Variance"], logvar.exp().mean())


@pytest.mark.parametrize("vae", [False, True])
def test_learns_what_follows(vae):
    """A subgoal that the observation determines."""
    algo, raw = make(gl_config(vae=vae)), raw_batch()
    algo.optimizers["goal_network"].param_groups[0]["lr"] = 1e-2
    raw["next_obs"]["near"][:, 2] = 2 * raw["obs"]["near"][:, 0]
    raw["next_obs"]["far"][:, 2] = raw["obs"]["only_obs"][:, 0] + 1
    batch = processed(algo, raw)
    algo.set_train()
    for _ in range(150):
        info = algo.train_on_batch(batch, epoch=1)
    assert algo.log_info(info)["Grad_Norms"] > 0
    subgoals = algo.get_subgoal_predictions(batch["obs"])
    error = (subgoals["near"] - 2 * batch["obs"]["near"]).abs().mean()
    assert error < 0.3
    assert batch["obs"]["near"].abs().mean() > 0.5


def test_goals_reach_the_networks():
    for vae in (False, True):
        algo = make(gl_config(vae=vae, goal=True))
        batch = processed(algo, raw_batch(goal=True))
        algo.set_eval()
        losses = []
        for shift in (0.0, 5.0):
            goal = {k: x + shift for k, x in batch["goal_obs"].items()}
            torch.manual_seed(0)
            info = algo.train_on_batch({**batch, "goal_obs": goal}, epoch=1, validate=True)
            losses.append(info["goal_loss"])
        assert losses[0] != losses[1]


def test_temperature_follows_from_the_epoch_and_is_logged():
    settings = {
        "algo__vae__prior__use_categorical": True,
        "algo__vae__prior__categorical_dim": 3,
        "algo__vae__prior__categorical_temp_anneal_step": 0.1,
    }
    algo = make(gl_config(**settings))
    batch = processed(algo, raw_batch())
    algo.set_train()
    logs = [algo.log_info(algo.train_on_batch(batch, epoch=epoch)) for epoch in (1, 4, 100)]
    assert [log["Gumbel_Temperature"] for log in logs] == pytest.approx([0.9, 0.6, 0.3])
    assert "Encoder_Variance" not in logs[0]


# ------------------------------------------------------------------------------ subgoals


@torch.no_grad()
def test_samples_of_one_state_are_its_own():
    """Under episodes' own noise a state's samples do not depend on the states beside it."""
    algo = make(gl_config())
    obs = processed(algo, raw_batch())["obs"]

    def sample(rows: list[int]) -> dict[str, Tensor]:
        noise = EpisodeNoise(len(rows))
        noise.seed([10 + row for row in rows])
        with noise:
            return algo.sample_subgoals({k: x[rows] for k, x in obs.items()}, num_samples=6)

    together, alone = sample([0, 1, 2, 3]), sample([2])
    assert {k: x.shape for k, x in together.items()} == {"far": (B, 6, 3), "near": (B, 6, 2)}
    for key in SUBGOAL:
        torch.testing.assert_close(together[key][2], alone[key][0])
    assert together["far"].std(dim=1).min() > 0


@torch.no_grad()
def test_samples_of_one_prediction_are_alike():
    algo = make(gl_config(vae=False))
    obs = processed(algo, raw_batch())["obs"]
    samples, prediction = (
        algo.sample_subgoals(obs, num_samples=3),
        algo.get_subgoal_predictions(obs),
    )
    for key in SUBGOAL:
        assert torch.equal(samples[key], prediction[key][:, None].repeat(1, 3, 1))


# --------------------------------------------------------------------------- value planner


def make_value_planner(value_keys: list[str] = SUBGOAL, goal: bool = False) -> ValuePlanner:
    gl, bcq = gl_config(goal=goal), BCQConfig()
    for net in (bcq.algo.critic, bcq.algo.actor):
        net.layer_dims = (8,)
    for net in ("encoder", "decoder", "prior"):
        bcq.algo.action_sampler.vae[f"{net}_layer_dims"] = (8,)
    bcq.algo.critic.num_action_samples_rollout = 2
    bcq.observation.modalities.obs.low_dim = value_keys
    bcq.observation.modalities.goal.low_dim = ["far"] if goal else []
    return ValuePlanner(
        algo_config=Config(planner=gl.algo, value=bcq.algo, num_samples=16),
        obs_config=Config(planner=gl.observation, value=bcq.observation),
        global_config=gl,
        obs_key_shapes=SHAPES,
        ac_dim=A,
        device=torch.device("cpu"),
    )


@torch.no_grad()
def test_the_subgoal_of_highest_value_is_chosen(monkeypatch):
    planner = make_value_planner(goal=True)
    obs = {k: torch.randn(B, *SHAPES[k]) for k in ("near", "only_obs")}
    goal = {"far": torch.arange(B)[:, None].expand(B, 3).float()}
    asked: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def value(obs_dict: Any, goal_dict: Any = None) -> Tensor:
        asked.append((obs_dict, goal_dict))
        return -(obs_dict["far"][:, :1] - goal_dict["far"][:, :1]).abs()

    monkeypatch.setattr(planner.value_net, "get_state_value", value)
    best = planner.get_subgoal_predictions(obs, goal)
    ((candidates, goals),) = asked  # all in one forward pass
    assert candidates["far"].shape == (B * 16, 3)
    assert torch.equal(goals["far"][:, 0], torch.arange(B).repeat_interleave(16).float())
    for row in range(B):
        own = slice(16 * row, 16 * row + 16)
        choice = (candidates["far"][own, 0] - row).abs().argmin()
        for key in SUBGOAL:
            assert torch.equal(best[key][row], candidates[key][own][choice])


def test_value_planner_trains_both_parts_and_adds_their_losses():
    planner = make_value_planner()
    before = {k: x.clone() for k, x in planner.nets.state_dict().items()}
    planner.set_train()
    batch = processed(planner, raw_batch())
    log = planner.log_info(planner.train_on_batch(batch, epoch=1))
    torch.testing.assert_close(log["Loss"], log["Planner/Loss"] + log["ValueNetwork/Loss"])
    moved = {
        k.split(".")[0] for k, x in planner.nets.state_dict().items() if (x != before[k]).any()
    }
    assert moved == {"planner", "value_net"}

    copy = make_value_planner()
    copy.deserialize(planner.serialize(), load_optimizers=True)
    for key, x in copy.nets.state_dict().items():
        assert torch.equal(x, planner.nets.state_dict()[key])
    assert copy.discount == copy.value_net.discount == 0.99


def test_value_of_what_no_subgoal_has_is_refused():
    with pytest.raises(ConfigError, match="only_obs"):
        make_value_planner(["near", "only_obs"])


# ----------------------------------------------------------------------------- checkpoints


def test_robomimics_decoders_see_the_observation_whatever_its_config_says():
    settings = {
        "algo__vae__decoder__is_conditioned": False,
        "algo__vae__prior__learn": True,
        "algo__vae__prior__is_conditioned": True,
    }
    config = gl_config(**settings)
    assert not config.algo.vae.decoder.is_conditioned
    assert "algo.vae.decoder" in GL_VAE.why_not_exportable(config)

    GL_VAE.correct_config_by_weights(config, {})
    assert config.algo.vae.decoder.is_conditioned
    assert GL_VAE.why_not_exportable(config) is None
