"""HBC: the actor's targets, plans of each episode, modes, exact resume."""

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from hierarchies import SHAPES, A, B, T, hbc_config, make, observations, processed, raw_batch, step

from raymimic.algo import HBC, RolloutPolicy
from raymimic.errors import CheckpointError
from raymimic.training.grad_sync import GradientSync

LATENT = {
    "algo__latent_subgoal__enabled": True,
    "observation__actor__modalities__goal__low_dim": ["latent_subgoal"],
}
CORRECTED = {
    **LATENT,
    "algo__latent_subgoal__prior_correction__enabled": True,
    "algo__latent_subgoal__prior_correction__num_samples": 50,
}
CATEGORICAL = {
    **LATENT,
    "algo__planner__vae__prior__use_categorical": True,
    "algo__planner__vae__prior__categorical_dim": 3,
}
RNN = {"algo__actor__rnn__enabled": True}
VARIANTS = [{}, {"algo__mode": "cascade"}, LATENT, CORRECTED, CATEGORICAL]
VARIANTS += [{**LATENT, "algo__mode": "cascade"}, {"algo__actor_use_random_subgoals": True}]
VARIANTS += [{**CORRECTED, "algo__actor_use_random_subgoals": True}, RNN]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def actor_goal(algo: Any, batch: dict[str, Any], monkeypatch: Any) -> Any:
    """The goal that the actor is trained towards by one step."""
    seen = []
    train = algo.actor.train_on_batch
    monkeypatch.setattr(
        algo.actor,
        "train_on_batch",
        lambda batch, *args: seen.append(batch["goal_obs"]) or train(batch, *args),
    )
    algo.train_on_batch(batch, epoch=1)
    return seen[0]


# ------------------------------------------------------------------------------ subgoals


def test_actor_is_trained_towards_the_state_that_was_reached(monkeypatch):
    algo, raw = make(hbc_config()), raw_batch()
    goal = actor_goal(algo, processed(algo, raw), monkeypatch)
    assert {k: torch.equal(x, raw["next_obs"][k][:, 2]) for k, x in goal.items()} == dict.fromkeys(
        SHAPES, True
    )


def test_actor_sees_normalised_subgoals(monkeypatch):
    stats = {
        k: {"offset": torch.ones(1, *s), "scale": 2 * torch.ones(1, *s)} for k, s in SHAPES.items()
    }
    algo, raw = make(hbc_config()), raw_batch()
    goal = actor_goal(algo, processed(algo, raw, stats), monkeypatch)
    torch.testing.assert_close(goal["far"], (raw["next_obs"]["far"][:, 2] - 1) / 2)

    algo = make(hbc_config(algo__actor_use_random_subgoals=True))
    monkeypatch.setattr(torch, "randint", lambda low, high, size, **_: torch.full(size, high - 1))
    goal = actor_goal(algo, processed(algo, raw, stats), monkeypatch)
    torch.testing.assert_close(goal["far"], (raw["next_obs"]["far"][:, T - 1] - 1) / 2)


def test_random_subgoals_are_any_state_of_the_same_sequence(monkeypatch):
    algo, raw = make(hbc_config(algo__actor_use_random_subgoals=True)), raw_batch()
    raw["next_obs"]["far"][:] = (torch.arange(B)[:, None] * T + torch.arange(T))[..., None]
    seen = set()
    for _ in range(30):
        goal = processed(algo, raw)["random"]["target_subgoals"]["far"][:, 0]
        assert torch.equal(goal.long() // T, torch.arange(B))
        seen |= set((goal.long() % T).tolist())
    assert seen == set(range(T))
    # The planner's own targets stay the same.
    assert processed(algo, raw)["planner"]["target_subgoals"]["far"][0, 0] == 2


def test_cascade_trains_the_actor_towards_predictions(monkeypatch):
    config = hbc_config(algo__mode="cascade", algo__planner__vae__enabled=False)
    algo = make(config)
    batch = processed(algo, raw_batch())
    goal = actor_goal(algo, batch, monkeypatch)
    predicted = algo.planner.get_subgoal_predictions(batch["planner"]["obs"])  # after its step
    torch.testing.assert_close(goal, {k: x.detach() for k, x in predicted.items()})
    assert not any(x.requires_grad for x in goal.values())


def test_latent_subgoals_are_the_encoders(monkeypatch):
    algo = make(hbc_config(**LATENT))
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    batch = processed(algo, raw_batch())
    goal = actor_goal(algo, batch, monkeypatch)
    vae, planner_batch = algo.planner.nets["goal_network"], batch["planner"]
    posterior = vae.encode(planner_batch["target_subgoals"], planner_batch["obs"])
    assert goal.keys() == {"latent_subgoal"}
    torch.testing.assert_close(goal["latent_subgoal"], posterior["mean"].detach())


def test_prior_correction_takes_the_nearest_sample_of_each_prior(monkeypatch):
    algo = make(hbc_config(**CORRECTED))
    vae, n = algo.planner.nets["goal_network"], 50
    samples = torch.randn(B, n, 4)
    posterior = torch.randn(B, 4)
    monkeypatch.setattr(vae, "sample_prior", lambda obs, goal, num: samples.flatten(0, 1))
    monkeypatch.setattr(vae.prior, "sample_posterior", lambda _: posterior)
    batch = processed(algo, raw_batch())
    z = algo._actor_goal(batch)["latent_subgoal"]
    for row in range(B):
        distances = [(samples[row, i] - posterior[row]).norm().item() for i in range(n)]
        assert torch.equal(z[row], samples[row, int(np.argmin(distances))])


def test_latents_of_a_categorical_prior_are_one_hot_in_rollouts_and_wide_enough():
    algo = make(hbc_config(**CATEGORICAL))
    assert algo.actor.goal_shapes == {"latent_subgoal": (12,)}
    algo.set_eval()
    algo.get_action(observations(B))
    z = algo.current_subgoal["latent_subgoal"].unflatten(1, (4, 3))
    assert torch.equal(z.sum(dim=2), torch.ones(B, 4))


def test_an_actor_that_sees_no_subgoal_is_robomimics():
    """By default, as there: ``observation.actor.modalities.goal`` is empty."""
    algo = make(hbc_config(observation__actor__modalities__goal__low_dim=[]))
    assert algo.actor.goal_shapes == {}
    assert next(algo.actor.nets["policy"].nets["mlp"].parameters()).shape[1] == 5
    assert np.isfinite(step(algo, 0)["Loss"])
    assert algo.get_action(observations(B)).shape == (B, A)


def test_stacked_observations_are_the_actors_alone():
    stacked = {
        "train__frame_stack": 3,
        "algo__actor__rnn__enabled": False,
        "algo__actor__transformer__enabled": True,
        "algo__actor__transformer__context_length": 3,
        "algo__actor__transformer__embed_dim": 8,
    }
    algo = make(hbc_config(**stacked))
    raw = raw_batch(length=T + 2)
    batch = algo.process_batch_for_training(raw)["planner"]
    assert torch.equal(batch["obs"]["far"], raw["obs"]["far"][:, 2])
    assert torch.equal(batch["target_subgoals"]["far"], raw["next_obs"]["far"][:, 2 + 2])


# --------------------------------------------------------------------------------- modes


@pytest.mark.parametrize(
    ("mode", "trained"),
    [
        ("separate", {"planner", "actor"}),
        ("cascade", {"planner", "actor"}),
        ("planner_only", {"planner"}),
        ("actor_only", {"actor"}),
    ],
)
@pytest.mark.filterwarnings("error")  # a schedule stepped without its optimizer
def test_modes_train_what_they_say(mode, trained):
    algo = make(hbc_config(algo__mode=mode))
    before = {name: copy.deepcopy(part.nets.state_dict()) for name, part in algo.parts.items()}
    logs = [step(algo, 0) for _ in range(20)]
    algo.on_epoch_end(1)
    for name, part in algo.parts.items():
        moved = [not torch.equal(x, before[name][k]) for k, x in part.nets.state_dict().items()]
        assert all(moved) if name in trained else not any(moved)
        assert (f"{name.title()}/Loss" in logs[0]) == (name in trained)
        assert part.nets.training == (name in trained)
    assert logs[-1]["Loss"] < logs[0]["Loss"]
    assert logs[0]["Loss"] == pytest.approx(sum(logs[0][f"{n.title()}/Loss"] for n in trained))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains_validates_and_acts(variant):
    algo = make(hbc_config(**variant))
    logs = [step(algo, 0) for _ in range(30)]
    assert logs[-1]["Loss"] < logs[0]["Loss"]
    algo.set_eval()
    before = copy.deepcopy(algo.serialize())
    assert np.isfinite(step(algo, 1, validate=True)["Loss"])
    torch.testing.assert_close(algo.serialize(), before, rtol=0, atol=0)
    algo.reset()
    actions = algo.get_action(observations(B))
    assert actions.shape == (B, A)
    assert actions.isfinite().all()


def test_metrics_are_robomimics():
    log = step(make(hbc_config()), 0)
    assert {"Planner/Optimizer/goal_network0_lr", "Actor/Optimizer/policy0_lr"} <= log.keys()
    assert {"Planner/Grad_Norms", "Planner/KL_Loss", "Actor/Policy_Grad_Norms"} <= log.keys()
    assert log["Loss"] == pytest.approx(log["Planner/Loss"] + log["Actor/Loss"])


# ------------------------------------------------------------------------------- acting


def deterministic(**settings: Any) -> Any:
    algo = make(hbc_config(algo__planner__vae__enabled=False, **settings))
    algo.set_eval()
    return algo


def test_a_subgoal_is_followed_for_the_interval():
    algo = deterministic()
    steps = [observations(B) for _ in range(7)]
    for i, obs in enumerate(steps):
        action = algo.get_action(obs)
        planned_at = steps[i // 3 * 3]
        torch.testing.assert_close(
            algo.current_subgoal, algo.planner.get_subgoal_predictions(planned_at)
        )
        torch.testing.assert_close(action, algo.actor.get_action(obs, algo.current_subgoal))


def test_episodes_plan_by_their_own_clock():
    algo = deterministic()
    steps = [observations(B) for _ in range(6)]
    restarts = torch.arange(B) == 1
    planned = []  # at which step each row's subgoal was planned
    for i, obs in enumerate(steps):
        if i == 2:
            algo.reset(restarts)
        algo.get_action(obs)
        subgoal = algo.current_subgoal["far"]
        candidates = torch.stack([algo.planner.get_subgoal_predictions(o)["far"] for o in steps])
        distance = (candidates - subgoal).abs().amax(dim=2)
        assert distance.amin(dim=0).max() < 1e-6
        planned.append(distance.argmin(dim=0).tolist())
    assert [row[0] for row in planned] == [0, 0, 0, 3, 3, 3]
    assert [row[1] for row in planned] == [0, 0, 2, 2, 2, 5]


def test_reset_forgets_all_plans():
    algo = deterministic()
    algo.get_action(observations(B))
    with pytest.raises(RuntimeError, match="call reset"):
        algo.get_action(observations(2))
    algo.reset()
    with pytest.raises(RuntimeError, match="no subgoal before the first action"):
        _ = algo.current_subgoal
    obs = observations(2)
    algo.get_action(obs)
    torch.testing.assert_close(algo.current_subgoal, algo.planner.get_subgoal_predictions(obs))


@pytest.mark.parametrize("variant", [{}, LATENT, RNN, CATEGORICAL])
def test_an_episode_does_not_depend_on_the_others(variant):
    """Subgoals are sampled: an episode's follow from its own seed, alone or in a batch."""
    algo = make(hbc_config(**variant))
    steps = [{k: x.numpy() for k, x in observations(B).items()} for _ in range(8)]
    lengths = [3, 8, 5, 8, 8, 4]  # rows start a second episode after so many steps

    def alone(row: int, seed: int, first: int, last: int) -> list[Any]:
        policy = RolloutPolicy(algo)
        policy.start_episode(seeds=[seed])
        return [policy({k: x[row] for k, x in steps[i].items()}) for i in range(first, last)]

    together = RolloutPolicy(algo)
    together.start_episode(seeds=list(range(B)))
    actions: list[list[Any]] = [[] for _ in range(B)]
    for i, obs in enumerate(steps):
        mask = np.array([i == n for n in lengths])
        if mask.any():
            together.start_episode(mask, seeds=list(range(100, 100 + B)))
        for row, action in enumerate(together(obs, batched_ob=True)):
            actions[row].append(action)

    for row, n in enumerate(lengths):
        expected = alone(row, row, 0, n) + (alone(row, 100 + row, n, 8) if n < 8 else [])
        np.testing.assert_allclose(actions[row], expected, rtol=1e-4, atol=1e-6)


# -------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("variant", [*VARIANTS, {"algo__mode": "actor_only", **CATEGORICAL}])
def test_a_restored_hierarchy_continues_bit_by_bit(variant):
    algo = make(hbc_config(**variant), seed=1)
    for seed in range(3):
        step(algo, seed, epoch=2)
    algo.on_epoch_end(2)
    saved = io.BytesIO()
    torch.save({"model": algo.serialize(), "state": algo.training_state()}, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=True)

    restored = make(hbc_config(**variant), seed=2)
    restored.deserialize(loaded["model"], load_optimizers=True)
    restored.load_training_state(loaded["state"])
    for seed in range(3, 6):
        assert step(algo, seed, epoch=3) == step(restored, seed, epoch=3)
    torch.testing.assert_close(algo.serialize(), restored.serialize(), rtol=0, atol=0)


def test_schedules_are_each_parts_own():
    config = hbc_config()
    config.algo.actor.optim_params.policy.learning_rate.epoch_schedule = [1]
    algo = make(config)
    step(algo, 0)
    algo.on_epoch_end(1)
    log = step(algo, 1)
    assert log["Actor/Optimizer/policy0_lr"] == pytest.approx(1e-5)
    assert log["Planner/Optimizer/goal_network0_lr"] == pytest.approx(1e-4)
    restored = make(config)
    restored.deserialize(algo.serialize(), load_optimizers=True)
    assert step(restored, 2)["Actor/Optimizer/policy0_lr"] == pytest.approx(1e-5)


def test_a_checkpoint_has_robomimics_layout():
    algo = make(hbc_config())
    model = algo.serialize()
    assert set(model) == {"planner", "actor"}
    assert all(set(part) == {"nets", "optimizers", "lr_schedulers"} for part in model.values())
    assert all(key.startswith("policy.") for key in model["actor"]["nets"])
    weights = {name: part["nets"] for name, part in model.items()}  # as robomimic 0.3 saved it
    other = make(hbc_config(), seed=7)
    other.deserialize(weights)
    torch.testing.assert_close(other.nets.state_dict(), algo.nets.state_dict(), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="has no part 'actor'"):
        other.deserialize({"planner": model["planner"]})


@pytest.mark.parametrize(
    ("variant", "lacking"),
    [
        ({}, None),
        (RNN, None),
        ({"algo__mode": "cascade"}, None),
        ({"algo__mode": "actor_only"}, "the mode 'actor_only'"),
        (LATENT, "latent subgoals"),
        ({"train__frame_stack": 2}, "train.frame_stack"),
        ({"algo__planner__vae__decoder__is_conditioned": False}, "algo.planner.vae.decoder"),
    ],
)
def test_what_robomimic_cannot_do_is_not_exported(variant, lacking):
    found = HBC.why_not_exportable(hbc_config(**variant))
    assert (found is None) == (lacking is None)
    assert lacking is None or lacking in found


def test_other_workers_reach_every_part():
    algo = make(hbc_config())
    sync = GradientSync(1)
    algo.grad_sync = sync
    assert algo.planner.grad_sync is algo.actor.grad_sync is sync
    names = dict(algo.named_optimizers())
    assert set(names) == {"planner/goal_network", "actor/policy"}
    parameters = {id(p) for o in names.values() for g in o.param_groups for p in g["params"]}
    assert parameters == {id(p) for p in algo.nets.parameters()}  # by which replicas are compared


def test_shapes_are_those_of_the_parts():
    config = hbc_config(observation__planner__modalities__goal__low_dim=["near"])
    config.observation.actor.modalities.obs.low_dim = ["near"]
    config.observation.planner.modalities.obs.low_dim = ["far"]
    algo = make(config)
    assert set(algo.obs_shapes) == {"far", "near"}
    assert set(algo.goal_shapes) == {"near"}  # the task's goal; the actor's is the subgoal
    assert set(algo.subgoal_shapes) == {"far", "near"}
    algo.set_eval()
    action = algo.get_action(observations(B), {"near": torch.randn(B, 2)})
    assert action.shape == (B, A)
