"""Diffusion Policy: its steps against the papers' formulas, average, queues, checkpoints."""

import io
import json
import math
import re
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from raymimic.algo import RolloutPolicy, algo_factory
from raymimic.algo.diffusion_policy import DiffusionPolicyTransformer
from raymimic.algo.optimization import EMAModel
from raymimic.checkpoints.policy import config_from_checkpoint
from raymimic.config import config_factory
from raymimic.config.checks import problems, warnings_for
from raymimic.errors import ConfigError, pip_install

torch.set_num_threads(1)

SHAPES = {"flat": [3]}


def make_config(**settings):
    config = config_factory("diffusion_policy")
    config.observation.modalities.obs.low_dim = ["flat"]
    config.algo.unet.update(
        {"diffusion_step_embed_dim": 8, "down_dims": [4, 8], "kernel_size": 3, "n_groups": 2}
    )
    config.algo.transformer.update({"embed_dim": 8, "num_layers": 2, "num_heads": 2})
    config.algo.horizon.update(
        {"observation_horizon": 2, "action_horizon": 3, "prediction_horizon": 8}
    )
    config.algo.optim_params.policy.num_train_batches = 10
    config.algo.optim_params.policy.num_epochs = 10
    config.algo.optim_params.policy.learning_rate.warmup_steps = 0
    for key, value in settings.items():
        section, _, name = key.partition("__")
        config.algo[section][name] = value
    return config


def config_with_data(config):
    config.train.data = "demos.hdf5"
    return config


def use_transformer(config):
    config.algo.unet.enabled, config.algo.transformer.enabled = False, True
    return config


def use_ddim(config):
    config.algo.ddpm.enabled, config.algo.ddim.enabled = False, True
    return config


def make(config=None, seed=0):
    torch.manual_seed(seed)
    config = make_config() if config is None else config
    return algo_factory("diffusion_policy", config, SHAPES, ac_dim=2, device="cpu")


def raw_batch(size=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        "obs": {"flat": torch.randn(size, 9, 3, generator=generator)},
        "actions": torch.rand(size, 9, 2, generator=generator) * 2 - 1,
    }


def train(algo, steps, seed=2):
    algo.set_train()
    torch.manual_seed(seed)
    logs = []
    for _ in range(steps):
        batch = algo.process_batch_for_training(raw_batch())
        logs.append(algo.log_info(algo.train_on_batch(batch, epoch=1)))
        algo.on_gradient_step()
    return logs


class Predicts(nn.Module):
    """In the noise network's place: a known function of actions and diffusion step."""

    def __init__(self, slope=0.3):
        super().__init__()
        self.slope = slope

    def forward(self, sample, timestep, cond):
        step = torch.as_tensor(timestep).reshape(-1, 1, 1)
        return self.slope * sample + 0.002 * step + 0.1 * cond.mean(dim=(1, 2))[:, None, None]


def alpha_bar(count):
    """ᾱ of each step of the cosine schedule (Nichol & Dhariwal, 2021, eq. 17)."""

    def f(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f((i + 1) / count) / f(i / count), 0.999) for i in range(count)]
    return np.cumprod([1 - beta for beta in betas])


def predicted_noise(x, step, obs):
    return 0.3 * x + 0.002 * step + 0.1 * obs.mean(axis=(1, 2))[:, None, None]


def sampled(config):
    """Actions that the policy samples with known noise, and their first noise."""
    algo = make(config)
    algo.nets["policy"]["noise_pred_net"] = Predicts()
    obs = raw_batch()["obs"]["flat"][:, :2]
    torch.manual_seed(3)
    actions = algo.sample_actions({"flat": obs})
    torch.manual_seed(3)
    return actions, torch.randn(4, 8, 2).double().numpy(), obs.double().numpy()


class TestDenoising:
    @pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
    def test_ddim_step_by_step(self, prediction_type):
        """Song et al., 2020, eq. 12 without noise."""
        config = use_ddim(make_config(ema__enabled=False))
        config.algo.ddim.update(
            {"num_inference_timesteps": 5, "prediction_type": prediction_type, "clip_sample": False}
        )
        actions, x, obs = sampled(config)
        bar = alpha_bar(100)
        for step in (80, 60, 40, 20, 0):
            now, before = bar[step], bar[step - 20] if step else 1.0
            y = predicted_noise(x, step, obs)
            if prediction_type == "epsilon":
                noise, clean = y, (x - math.sqrt(1 - now) * y) / math.sqrt(now)
            elif prediction_type == "sample":
                noise, clean = (x - math.sqrt(now) * y) / math.sqrt(1 - now), y
            else:
                noise = math.sqrt(now) * y + math.sqrt(1 - now) * x
                clean = math.sqrt(now) * x - math.sqrt(1 - now) * y
            x = math.sqrt(before) * clean + math.sqrt(1 - before) * noise
        np.testing.assert_allclose(actions.numpy(), x[:, 1:4], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("taken", "respace", "steps", "stride"),
        [
            (5, False, (80, 60, 40, 20, 0), 1),  # robomimic's
            (5, True, (80, 60, 40, 20, 0), 20),
            (100, False, range(99, -1, -1), 1),
            (100, True, range(99, -1, -1), 1),
        ],
    )
    def test_ddpm_step_by_step(self, taken, respace, steps, stride):
        """Ho et al., 2020, eq. 6 and 7, with clean actions kept in [-1, 1]."""
        config = make_config(
            ema__enabled=False, ddpm__num_inference_timesteps=taken, ddpm__respace_steps=respace
        )
        actions, x, obs = sampled(config)
        bar = alpha_bar(100)
        for step in steps:
            now, before = bar[step], bar[step - stride] if step else 1.0
            beta = 1 - now / before
            y = predicted_noise(x, step, obs)
            clean = ((x - math.sqrt(1 - now) * y) / math.sqrt(now)).clip(-1, 1)
            mean = math.sqrt(before) * beta * clean + math.sqrt(1 - beta) * (1 - before) * x
            x = mean / (1 - now)
            if step:
                deviation = math.sqrt(beta * (1 - before) / (1 - now))
                x = x + deviation * torch.randn(4, 8, 2).double().numpy()
        np.testing.assert_allclose(actions.numpy(), x[:, 1:4], rtol=1e-3, atol=1e-4)

    def test_warns_where_robomimics_steps_leave_noise(self):
        config = make_config(ddpm__num_inference_timesteps=10)
        assert any("leaves noise" in warning for warning in warnings_for(config))
        config.algo.ddpm.respace_steps = True
        assert not any("leaves noise" in warning for warning in warnings_for(config))

    def test_no_schedule(self):
        with pytest.raises(ConfigError, match=r"algo.ddpm.enabled or algo.ddim.enabled"):
            make(make_config(ddpm__enabled=False))

    def test_without_diffusers(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "diffusers.schedulers.scheduling_ddim", None)
        with pytest.raises(ConfigError, match=re.escape(pip_install("diffusion"))):
            make()


class TestTraining:
    @pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
    def test_loss_against_the_formula(self, prediction_type):
        algo = make(make_config(ddpm__prediction_type=prediction_type))
        algo.nets["policy"]["noise_pred_net"] = Predicts()
        batch = algo.process_batch_for_training(raw_batch())
        torch.manual_seed(4)
        loss = algo.compute_loss(batch).item()
        torch.manual_seed(4)
        noise = torch.randn(4, 8, 2).double().numpy()
        steps = torch.randint(0, 100, (4,)).numpy()
        actions = raw_batch()["actions"][:, :8].double().numpy()
        obs = raw_batch()["obs"]["flat"][:, :2].double().numpy()
        now = alpha_bar(100)[steps][:, None, None]
        noisy = np.sqrt(now) * actions + np.sqrt(1 - now) * noise
        target = {
            "epsilon": noise,
            "sample": actions,
            "v_prediction": np.sqrt(now) * noise - np.sqrt(1 - now) * actions,
        }[prediction_type]
        error = predicted_noise(noisy, steps[:, None, None], obs) - target
        assert loss == pytest.approx((error**2).mean(), rel=1e-4)

    def test_takes_the_horizons_steps(self):
        batch = make().process_batch_for_training(raw_batch())
        raw = raw_batch()
        assert torch.equal(batch["obs"]["flat"], raw["obs"]["flat"][:, :2])
        assert torch.equal(batch["actions"], raw["actions"][:, :8])

    def test_actions_may_reach_the_end_of_a_sample(self):
        """2 - 1 + 15 steps, of which 15 actions lie ahead."""
        horizon = {"observation_horizon": 2, "action_horizon": 15, "prediction_horizon": 16}
        config = use_ddim(make_config())
        config.algo.horizon.update(horizon)
        config.algo.ddim.num_inference_timesteps = 2
        config.train.update(frame_stack=2, seq_length=15)
        assert problems(config_with_data(config)) == []
        algo = make(config)
        reads = type(algo).reads(config)
        assert (reads.span.start, reads.span.stop) == (-1, 15)
        raw = {"obs": {"flat": torch.randn(4, 16, 3)}, "actions": torch.rand(4, 16, 2)}
        batch = algo.process_batch_for_training(raw)
        assert torch.equal(batch["actions"], raw["actions"])
        algo.set_train()
        assert algo.train_on_batch(batch, epoch=1)["loss"].isfinite()
        algo.set_eval()
        assert algo.sample_actions({"flat": torch.randn(3, 2, 3)}).shape == (3, 15, 2)

    def test_complains_about_short_sequences(self):
        raw = raw_batch()
        raw["actions"] = raw["actions"][:, :7]
        with pytest.raises(ConfigError, match=r"prediction_horizon=8 .* has 7 actions"):
            make().process_batch_for_training(raw)

    def test_horizon_must_fit_the_levels(self):
        with pytest.raises(ConfigError, match=r"prediction_horizon=6 must be a multiple of 4"):
            make(make_config(horizon__prediction_horizon=6, unet__down_dims=[4, 4, 4]))

    @pytest.mark.parametrize("variant", [lambda c: c, use_transformer])
    def test_learns(self, variant):
        config = variant(make_config(transformer__attn_dropout=0.0, unet__down_dims=[16, 32]))
        config.algo.optim_params.policy.learning_rate.initial = 1e-2
        config.algo.optim_params.policy.learning_rate.scheduler_type = "multistep"
        losses = [log["Loss"].item() for log in train(make(config), 150)]
        assert np.mean(losses[-20:]) < 0.75 * np.mean(losses[:5])

    @pytest.mark.parametrize("variant", [lambda c: c, use_transformer])
    def test_a_step_reads_nothing_back_from_the_device(self, variant):
        class NoReads(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                assert func is not torch.ops.aten._local_scalar_dense.default
                return func(*args, **(kwargs or {}))

        algo = make(variant(make_config()))
        train(algo, 1)
        batch = algo.process_batch_for_training(raw_batch())
        with NoReads():
            algo.log_info(algo.train_on_batch(batch, epoch=1))

    @pytest.mark.parametrize("variant", [lambda c: c, use_transformer])
    def test_in_double_precision(self, variant):
        config = variant(make_config(ddpm__num_inference_timesteps=2))
        config.train.dtype = "float64"
        algo = make(config)
        (log,) = train(algo, 1)
        assert log["Loss"].dtype == torch.float64
        algo.set_eval()
        action = algo.get_action({"flat": torch.zeros(2, 2, 3, dtype=torch.float64)})
        assert action.dtype == torch.float64

    def test_gradients_are_clipped(self):
        config = make_config()
        config.train.max_grad_norm = 0.01
        (log,) = train(make(config), 1)
        assert log["Policy_Grad_Norms"].item() == pytest.approx(1e-4, rel=1e-3)

    def test_sees_the_goal(self):
        config = make_config()
        config.observation.modalities.goal.low_dim = ["flat"]
        algo = make(config)
        raw = raw_batch()
        losses = []
        for goal in (0.0, 1.0):
            raw["goal_obs"] = {"flat": torch.full((4, 3), goal)}
            torch.manual_seed(0)
            losses.append(algo.compute_loss(algo.process_batch_for_training(raw)).item())
        assert losses[0] != losses[1]
        obs = {"flat": torch.zeros(4, 2, 3)}
        assert algo.get_action(obs, {"flat": torch.zeros(4, 3)}).shape == (4, 2)


class TestAverage:
    def test_decay(self):
        """1 - (1 + s)^-power with s = max(0, step - 1), 0 where s is 0, at most 0.9999."""
        expected = [0.0, 0.0, 1 - 2**-0.75, 1 - 3**-0.75, 1 - 4**-0.75]
        average = EMAModel(torch.nn.Linear(1, 1), power=0.75)
        assert [average.get_decay(step) for step in range(5)] == pytest.approx(expected, rel=1e-12)
        assert average.get_decay(10**9) == 0.9999

    def test_average_of_the_weights(self):
        algo = make()
        expected = None
        for step in range(5):
            train(algo, 1, seed=step)
            new = {k: x.clone() for k, x in algo.nets.named_parameters()}
            decay = [0.0, 0.0, 1 - 2**-0.75, 1 - 3**-0.75, 1 - 4**-0.75][step]
            expected = (
                new
                if step < 2
                else {k: decay * expected[k] + (1 - decay) * x for k, x in new.items()}
            )
            average = dict(algo.ema.averaged_model.named_parameters())
            torch.testing.assert_close(average, expected)
        assert algo.ema.optimization_step == 5

    def test_acts_by_the_average(self):
        algo = make(use_ddim(make_config()))
        obs = {"flat": torch.ones(1, 2, 3)}
        torch.manual_seed(0)
        before = algo.sample_actions(obs)
        with torch.no_grad():
            for p in algo.nets.parameters():
                p.mul_(2.0)
        torch.manual_seed(0)
        assert torch.equal(algo.sample_actions(obs), before)
        with torch.no_grad():
            for p in algo.ema.averaged_model.parameters():
                p.mul_(2.0)
        torch.manual_seed(0)
        assert not torch.equal(algo.sample_actions(obs), before)

    def test_without_it(self):
        algo = make(make_config(ema__enabled=False))
        train(algo, 2)
        assert algo.ema is None
        assert algo.serialize()["ema"] is None


def counting(algo):
    """Lets the policy sample actions n + 0.1 t at the n-th time, from 1 on."""
    calls = []

    def sample(obs_dict, goal_dict=None):
        calls.append(len(next(iter(obs_dict.values()))))
        step = 0.1 * torch.arange(3.0)[None, :, None]
        return (len(calls) + step).expand(calls[-1], 3, 2).clone()

    algo.sample_actions = sample
    return calls


class TestQueue:
    def test_each_row_takes_its_own_actions_and_looks_again_when_it_has_none(self):
        algo = make()
        calls = counting(algo)
        obs = {"flat": torch.zeros(3, 2, 3)}

        def act():
            return [round(x, 4) for x in algo.get_action(obs)[:, 0].tolist()]

        algo.reset()
        assert [act(), act()] == [[1.0] * 3, [1.1] * 3]
        algo.reset(torch.tensor([False, True, False]))  # row 1 starts a new episode
        assert act() == [1.2, 2.0, 1.2]
        assert act() == [3.0, 2.1, 3.0]
        assert act() == [3.1, 2.2, 3.1]
        assert act() == [3.2, 4.0, 3.2]
        algo.reset()
        assert act() == [5.0] * 3
        assert len(calls) == 5

    def test_a_queue_is_of_the_episodes_it_was_made_for(self):
        algo = make()
        counting(algo)
        algo.get_action({"flat": torch.zeros(3, 2, 3)})
        with pytest.raises(RuntimeError, match="2 observations for 3 episodes: call reset"):
            algo.get_action({"flat": torch.zeros(2, 2, 3)})
        algo.reset()
        assert algo.get_action({"flat": torch.zeros(2, 2, 3)}).shape == (2, 2)

    def test_a_row_does_not_depend_on_what_happens_in_others(self):
        """Its noise included, with seeds; the order of episodes in the other row varies."""
        rng = np.random.default_rng(0)
        obs = rng.standard_normal((10, 2, 2, 3)).astype(np.float32)

        def play(restarts):
            config = make_config(ddpm__num_inference_timesteps=4)
            policy = RolloutPolicy(make(config))
            policy.start_episode(seeds=[7, 8])
            actions = []
            for step in range(10):
                if step in restarts:
                    policy.start_episode(np.array([False, True]), seeds=[0, 100 + step])
                actions.append(policy({"flat": obs[step]}, batched_ob=True))
            return np.stack(actions)

        alone, beside = play(()), play((1, 5, 6))
        np.testing.assert_array_equal(alone[:, 0], beside[:, 0])
        assert (alone[1:, 1] != beside[1:, 1]).any()

    def test_single_observations_without_a_stack(self):
        algo = make(make_config(horizon__observation_horizon=1))
        assert algo.get_action({"flat": torch.zeros(2, 3)}).shape == (2, 2)


class TestCheckpoints:
    @pytest.mark.parametrize("variant", [lambda c: c, use_transformer])
    def test_resumes_bit_by_bit(self, variant):
        whole = make(variant(make_config()))
        train(whole, 3)
        state = io.BytesIO()
        torch.save((whole.serialize(), whole.training_state()), state)
        state.seek(0)
        model, training_state = torch.load(state, weights_only=True)
        other = make(variant(make_config()), seed=5)
        other.deserialize(model, load_optimizers=True)
        other.load_training_state(training_state)
        logs, other_logs = train(whole, 3, seed=6), train(other, 3, seed=6)
        assert [log["Loss"].item() for log in logs] == [log["Loss"].item() for log in other_logs]
        a, b = whole.serialize(), other.serialize()
        for name in ("nets", "ema"):
            assert all(torch.equal(a[name][k], b[name][k]) for k in a[name])
        for algo in (whole, other):
            algo.set_eval()
        torch.manual_seed(0)
        action = whole.get_action({"flat": torch.ones(2, 2, 3)})
        torch.manual_seed(0)
        assert torch.equal(other.get_action({"flat": torch.ones(2, 2, 3)}), action)

    def test_average_has_the_networks_keys(self):
        model = make().serialize()
        assert list(model["ema"]) == list(model["nets"])
        assert all(k.startswith("policy.noise_pred_net.") for k in model["nets"])

    def test_robomimics_has_no_step_but_its_optimizer_counts(self):
        algo = make()
        train(algo, 4)
        model = algo.serialize()
        del model["ema_step"]
        other = make(seed=5)
        other.deserialize(model, load_optimizers=True)
        assert other.ema.optimization_step == 4

    def test_average_starts_from_weights_that_were_trained_without(self):
        trained = make(make_config(ema__enabled=False))
        train(trained, 2)
        algo = make(seed=5)
        algo.deserialize(trained.serialize())
        torch.testing.assert_close(algo.serialize()["ema"], trained.nets.state_dict())

    def test_robomimics_config_yields_to_its_weights(self):
        config = make_config(unet__n_groups=4, unet__down_dims=[8, 16])  # which robomimic ignores
        config.observation.modalities.goal.low_dim = ["flat"]  # likewise
        wrote = make(make_config(unet__n_groups=8, unet__down_dims=[16, 24], unet__kernel_size=5))
        ckpt = {
            "model": wrote.serialize(),
            "algo_name": "diffusion_policy",
            "config": json.dumps(config),
        }
        found, _ = config_from_checkpoint(ckpt_dict=ckpt)
        unet = found.algo.unet
        assert list(unet.down_dims) == [16, 24]
        assert (unet.kernel_size, unet.n_groups, unet.diffusion_step_embed_dim) == (5, 8, 8)
        assert not found.use_goals
        make(found).deserialize(ckpt["model"])
        ours, _ = config_from_checkpoint(ckpt_dict={**ckpt, "raymimic": {}})
        assert list(ours.algo.unet.down_dims) == [8, 16]


def test_transformer_is_chosen_by_the_config():
    assert isinstance(make(use_transformer(make_config())), DiffusionPolicyTransformer)
    with pytest.raises(ConfigError, match=r"algo.unet.enabled or algo.transformer.enabled"):
        make(make_config(unet__enabled=False))
