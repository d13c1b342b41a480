"""Causal transformers: masks, positions, attention in numbers, policies."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raymimic.errors import ConfigError
from raymimic.models.diffusion_nets import ConditionalUnet1D, DiffusionTransformer
from raymimic.models.obs_nets import ObservationGroupEncoder
from raymimic.models.transformers import (
    GEGLU,
    CausalSelfAttention,
    GPT_Backbone,
    PositionalEncoding,
    TransformerActorNetwork,
    TransformerGMMActorNetwork,
)
from raymimic.observations.shapes import ObsShapes

torch.set_num_threads(1)

SIZES = {
    "transformer_embed_dim": 16,
    "transformer_num_layers": 2,
    "transformer_num_heads": 4,
    "transformer_context_length": 6,
    "transformer_emb_dropout": 0.0,
    "transformer_attn_dropout": 0.0,
    "transformer_block_output_dropout": 0.0,
}
POSITIONS = {
    "parameter": {"transformer_nn_parameter_for_timesteps": True},
    "table": {"transformer_nn_parameter_for_timesteps": False},
    "sinusoidal": {"transformer_sinusoidal_embedding": True},
}


def actor(cls=TransformerActorNetwork, **kwargs):
    torch.manual_seed(0)
    net = cls(obs_shapes=ObsShapes({"flat": [3]}), ac_dim=2, **SIZES, **kwargs)
    for p in net.parameters():  # zero biases and positions would hide their effect
        nn.init.normal_(p, std=0.5)
    return net


def first_changes(change, forward, x):
    """Which steps of the output change when a step of the input does."""
    changed = x.clone()
    changed[:, change] += 1.0
    return (forward(x) - forward(changed)).abs().amax(dim=(0, 2)) > 1e-6


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("activation", ["gelu", "geglu"])
def test_future_observations_do_not_change_past_actions(positions, activation):
    net = actor(transformer_activation=activation, **POSITIONS[positions])
    x = torch.randn(2, 6, 3)
    for step in range(6):
        changes = first_changes(step, lambda obs: net({"flat": obs}), x)
        assert changes.tolist() == [False] * step + [True] * (6 - step)


@pytest.mark.parametrize("positions", POSITIONS)
def test_positions_tell_steps_apart(positions):
    net = actor(**POSITIONS[positions])
    actions = net({"flat": torch.ones(1, 6, 3)})  # causal attention alone would average the same
    assert (actions[:, 1:] - actions[:, :-1]).abs().amax(dim=-1).min() > 1e-4


def test_a_shorter_sequence_gives_the_same_actions():
    net = actor(transformer_nn_parameter_for_timesteps=True)
    x = torch.randn(2, 6, 3)
    torch.testing.assert_close(net({"flat": x[:, :4]}), net({"flat": x})[:, :4])


def test_a_longer_sequence_is_refused():
    with pytest.raises(ConfigError, match=r"context is 6 steps long, the observations are 7"):
        actor()({"flat": torch.zeros(1, 7, 3)})


def test_sinusoidal_positions():
    table = PositionalEncoding(6, 4)(torch.arange(4))
    frequencies = [1.0, 10000 ** (-2 / 6), 10000 ** (-4 / 6)]
    expected = [math.sin(3.0), math.cos(3.0)]
    expected += [f(3.0 * w) for w in frequencies[1:] for f in (math.sin, math.cos)]
    assert table[0].tolist() == [0, 1, 0, 1, 0, 1]
    assert table[3].tolist() == pytest.approx(expected, rel=1e-6)


def test_positions_have_the_state_that_robomimics_have():
    def keys(**kwargs):
        return {k: tuple(x.shape) for k, x in actor(**kwargs).state_dict().items()}

    assert keys(**POSITIONS["parameter"])["params.embed_timestep"] == (1, 6, 16)
    assert keys(**POSITIONS["table"])["nets.embed_timestep.weight"] == (6, 16)
    assert not [k for k in keys(**POSITIONS["sinusoidal"]) if "embed_timestep" in k]


def test_parameters_are_numbered_as_robomimics():
    """An optimizer's state in its checkpoints goes by number."""

    def order(net, depth):
        return list(
            dict.fromkeys(".".join(k.split(".")[:depth]) for k, _ in net.named_parameters())
        )

    nets = ["embed_encoder", "embed_timestep", "embed_ln", "transformer", "decoder"]
    assert order(actor(**POSITIONS["table"]), 2) == [f"nets.{name}" for name in nets]
    assert order(actor(**POSITIONS["parameter"]), 1) == ["nets", "params"]
    unet = ConditionalUnet1D(2, 6, 8, (8, 16))
    parts = ["mid_modules", "diffusion_step_encoder", "up_modules", "down_modules", "final_conv"]
    assert order(unet, 1) == parts


def test_attention_against_the_formula():
    torch.manual_seed(0)
    net = CausalSelfAttention(8, 2, 5, attn_dropout=0.5, output_dropout=0.5).eval()
    x = torch.randn(3, 4, 8)
    q, k, v = (x @ net.nets["qkv"].weight.T).chunk(3, dim=-1)
    heads = []
    for cut in (slice(0, 4), slice(4, 8)):
        scores = q[..., cut] @ k[..., cut].transpose(1, 2) / math.sqrt(4)
        scores = scores.masked_fill(torch.ones(4, 4).triu(1).bool(), -math.inf)
        heads.append(scores.softmax(-1) @ v[..., cut])
    torch.testing.assert_close(net(x), net.nets["output"](torch.cat(heads, dim=-1)))


def test_heads_must_divide_features():
    with pytest.raises(ConfigError, match=r"3 attention heads do not divide embed_dim=8"):
        CausalSelfAttention(8, 3, 5)


def test_unknown_activation():
    with pytest.raises(ConfigError, match=r"'relu': choose 'gelu' or 'geglu'"):
        GPT_Backbone(8, 4, num_heads=2, activation="relu")


def test_geglu_gates_by_its_second_half():
    x = torch.tensor([[2.0, 3.0, 0.5, -1.0]])
    expected = [2 * 0.5 * 0.6914625, 3 * -1 * 0.1586553]  # x times the normal distribution's Φ(x)
    assert GEGLU()(x)[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_weights_start_as_gpts():
    torch.manual_seed(0)
    net = GPT_Backbone(64, 4, num_layers=2)
    block = net.nets["transformer"][0]
    assert block.nets["mlp"][0].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.nets["mlp"][0].bias.abs().max() == 0
    assert block.nets["ln1"].weight.unique().tolist() == [1]


@pytest.mark.parametrize("where", ["emb", "attn", "block_output"])
def test_each_dropout_is_applied_in_training_only(where):
    sizes = {**SIZES, f"transformer_{where}_dropout": 0.5}
    torch.manual_seed(0)
    net = TransformerActorNetwork(obs_shapes=ObsShapes({"flat": [3]}), ac_dim=2, **sizes)
    obs = {"flat": torch.randn(4, 6, 3)}
    assert not torch.equal(net.train()(obs), net(obs))
    assert torch.equal(net.eval()(obs), net(obs))


def test_a_goal_holds_at_every_step():
    net = actor(goal_shapes=ObsShapes({"flat": [3]}))
    obs, goal = {"flat": torch.randn(2, 6, 3)}, {"flat": torch.randn(2, 3)}
    repeated = {"flat": goal["flat"][:, None].expand(2, 6, 3)}
    torch.testing.assert_close(net(obs, goal), net(obs, repeated))
    assert (net(obs, goal) - net(obs, {"flat": goal["flat"] + 1})).abs().amin() > 0


def test_encoding_sequences_is_encoding_each_step():
    encoder = ObservationGroupEncoder(
        {"obs": ObsShapes({"b": [2], "a": [2, 2]}), "goal": ObsShapes({"b": [2]})}
    )
    obs = {"a": torch.randn(3, 5, 2, 2), "b": torch.randn(3, 5, 2)}
    goal = {"b": torch.randn(3, 2)}
    features = encoder.encode_sequence(obs=obs, goal=goal)
    assert features.shape == (3, 5, 8)
    for t in range(5):
        step = encoder(obs={k: x[:, t] for k, x in obs.items()}, goal=goal)
        assert torch.equal(features[:, t], step)
    encoder.register_forward_hook(lambda module, inputs, output: 2.0 * output)
    assert torch.equal(encoder.encode_sequence(obs=obs, goal=goal), 2.0 * features)


class TestMixture:
    def test_likelihood_of_the_last_step(self):
        net = actor(TransformerGMMActorNetwork, num_modes=3)
        obs, actions = {"flat": torch.randn(4, 6, 3)}, torch.rand(4, 6, 2)
        whole = net.forward_train(obs)
        last = net.forward_train(obs, last_only=True)
        assert whole.batch_shape == (4, 6)
        assert last.batch_shape == (4,)
        torch.testing.assert_close(last.log_prob(actions[:, -1]), whole.log_prob(actions)[:, -1])

    def test_acts_by_a_mode_in_evaluation(self):
        net = actor(TransformerGMMActorNetwork, num_modes=3).eval()
        obs = {"flat": torch.randn(4, 6, 3)}
        means = net.forward_train(obs).component_distribution.mean  # [4, 6, 3, 2]
        distance = (net(obs)[:, :, None] - means).abs().amax(dim=-1).amin(dim=-1)
        assert distance.max() < 1e-3
        net.low_noise_eval = False
        distance = (net(obs)[:, :, None] - means).abs().amax(dim=-1).amin(dim=-1)
        assert distance.max() > 1e-2

    def test_likelihood_is_the_learned_one_in_evaluation_too(self):
        net = actor(TransformerGMMActorNetwork, num_modes=3)
        obs, actions = {"flat": torch.randn(4, 6, 3)}, torch.rand(4, 6, 2)
        trained = net.train().forward_train(obs).log_prob(actions)
        torch.testing.assert_close(net.eval().forward_train(obs).log_prob(actions), trained)


class TestDiffusionTransformer:
    def make(self):
        torch.manual_seed(0)
        net = DiffusionTransformer(
            input_dim=2, cond_dim=3, horizon=5, cond_steps=2, embed_dim=16, num_layers=2
        ).eval()
        for p in net.parameters():
            nn.init.normal_(p, std=0.3)
        return net

    def test_later_actions_do_not_change_earlier_ones(self):
        net, cond = self.make(), torch.randn(3, 2, 3)
        x = torch.randn(3, 5, 2)
        for step in range(5):
            changes = first_changes(step, lambda a: net(a, 4, cond), x)
            assert changes.tolist() == [False] * step + [True] * (5 - step)

    def test_actions_see_observations_up_to_their_own_step(self):
        net, x = self.make(), torch.randn(3, 5, 2)
        cond = torch.randn(3, 2, 3)
        assert first_changes(0, lambda c: net(x, 4, c), cond).all()
        assert first_changes(1, lambda c: net(x, 4, c), cond).tolist() == [False] + [True] * 4

    def test_the_diffusion_step_counts_for_each_row(self):
        net, x, cond = self.make(), torch.randn(3, 5, 2), torch.randn(3, 2, 3)
        mixed = net(x, torch.tensor([4, 7, 4]), cond)
        torch.testing.assert_close(mixed[[0, 2]], net(x, 4, cond)[[0, 2]])
        torch.testing.assert_close(mixed[1], net(x, 7, cond)[1])
        assert (mixed[1] - net(x, 4, cond)[1]).abs().min() > 0


class TestUnet:
    def make(self, **kwargs):
        sizes = {
            "diffusion_step_embed_dim": 8,
            "down_dims": (4, 8),
            "kernel_size": 3,
            "n_groups": 2,
        }
        torch.manual_seed(0)
        return ConditionalUnet1D(input_dim=2, global_cond_dim=6, **{**sizes, **kwargs})

    def test_sizes_are_the_config_s(self):
        shapes = {k: tuple(x.shape) for k, x in self.make().state_dict().items()}
        assert shapes["down_modules.0.0.blocks.0.block.0.weight"] == (4, 2, 3)
        assert shapes["mid_modules.0.blocks.0.block.0.weight"] == (8, 8, 3)
        assert shapes["up_modules.0.0.blocks.0.block.0.weight"] == (4, 16, 3)
        assert shapes["mid_modules.0.cond_encoder.1.weight"] == (16, 8 + 6)
        assert shapes["diffusion_step_encoder.1.weight"] == (32, 8)
        assert {m.num_groups for m in self.make().modules() if isinstance(m, nn.GroupNorm)} == {2}

    def test_film_scales_then_shifts(self):
        block = self.make().mid_modules[0]
        x, cond = torch.randn(3, 8, 4), torch.randn(3, 14)
        weights = block.cond_encoder[1]
        film = F.mish(cond) @ weights.weight.T + weights.bias
        hidden = film[:, :8, None] * block.blocks[0](x) + film[:, 8:, None]
        torch.testing.assert_close(block(x, cond), block.blocks[1](hidden) + x)

    def test_the_diffusion_step_counts_for_each_row(self):
        net, x, cond = self.make(), torch.randn(3, 8, 2), torch.randn(3, 2, 3)
        mixed = net(x, torch.tensor([4, 7, 4]), cond)
        torch.testing.assert_close(mixed[[0, 2]], net(x, 4, cond)[[0, 2]])
        torch.testing.assert_close(mixed[1], net(x, 7, cond)[1])
        assert (mixed[1] - net(x, 4, cond)[1]).abs().max() > 1e-4

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"kernel_size": 4}, "kernel_size=4 must be odd"),
            ({"n_groups": 3}, "n_groups=3 does not divide 4"),
            ({"down_dims": (4,)}, "needs two levels"),
            ({"diffusion_step_embed_dim": 7}, "must be even"),
        ],
    )
    def test_sizes_that_do_not_go_together(self, settings, message):
        with pytest.raises(ConfigError, match=message):
            self.make(**settings)
