"""Networks take robomimic's arguments, and tell the shape of their outputs."""

import numpy as np
import pytest
import torch
from torch import nn

from raymimic.envs.env_gym import EnvGym
from raymimic.errors import ConfigError
from raymimic.models import base_nets, obs_nets, policy_nets, vae_nets
from raymimic.models.base_nets import MLP, RNN_Base, Sequential
from raymimic.models.obs_core import ENCODER_CORES, EncoderCore
from raymimic.models.obs_nets import RNN_MIMO_MLP, ObservationEncoder, ObservationGroupEncoder
from raymimic.models.transformers import PositionalEncoding
from raymimic.models.vae_nets import VAE

GROUPS = {"obs": {"a": [3], "b": [2]}}
RNN = {"rnn_hidden_dim": 6, "rnn_num_layers": 2}


def test_an_mlp_of_other_layers():
    made = []

    def layer(inputs: int, outputs: int, **kwargs) -> nn.Module:
        made.append(kwargs)
        return nn.Linear(inputs, outputs, **kwargs)

    net = MLP(3, 2, (5, 4), layer, {"bias": False}, nn.Tanh, [0.5, 0.0], True, nn.Sigmoid)
    kinds = [type(module).__name__ for module in net._model]
    hidden = ["Linear", "LayerNorm", "Tanh"]
    assert kinds == [*hidden, "Dropout", *hidden, "Linear", "Sigmoid"]
    assert made == [{"bias": False}, {"bias": False}, {}]
    assert net.output_shape() == [2]
    x = torch.randn(7, 3)
    torch.testing.assert_close(net.eval()(x), net._model(x))
    assert not torch.equal(net.train()(x), net(x))
    with pytest.raises(ConfigError, match="one for each of the 2 hidden layers"):
        MLP(3, 2, (5, 4), dropouts=[0.1])


def test_a_recurrent_network_with_and_without_another_on_top():
    x = torch.randn(4, 5, 3)
    bare = RNN_Base(3, 6, 2)
    hidden, state = bare(x, return_state=True)
    torch.testing.assert_close(bare(x), bare.nets(x)[0])
    assert hidden.shape == (4, 5, 6)
    top = RNN_Base(3, 6, 2, "GRU", {}, nn.Linear(6, 2))
    outputs = top(x)
    state = top.get_rnn_init_state(4, "cpu")
    for step in range(5):
        one, state = top.forward_step(x[:, step], state)
        torch.testing.assert_close(one, outputs[:, step])


def test_a_recurrent_network_of_observations():
    net = RNN_MIMO_MLP(GROUPS, {"out": (2,)}, (4,), **RNN, mlp_activation=nn.Tanh)
    obs = {"a": torch.randn(4, 5, 3), "b": torch.randn(4, 5, 2)}
    outputs = net(obs=obs)
    assert outputs["out"].shape == (4, 5, 2)
    assert net.output_shape() == {"out": [2]}
    assert any(isinstance(module, nn.Tanh) for module in net.modules())
    state = None
    for step in range(5):
        one, state = net.forward_step(rnn_state=state, obs={k: v[:, step] for k, v in obs.items()})
        torch.testing.assert_close(one["out"], outputs["out"][:, step])
    last = RNN_MIMO_MLP(GROUPS, {"out": (2,)}, (4,), **RNN, per_step=False)
    last.load_state_dict(net.state_dict())
    assert last(obs=obs)["out"].shape == (4, 2)


def test_groups_of_observations_by_robomimics_name():
    net = ObservationGroupEncoder(observation_group_shapes=GROUPS, feature_activation=nn.ReLU)
    assert net.output_shape() == [5]
    with pytest.raises(TypeError, match="no function"):
        ObservationGroupEncoder(GROUPS, {"rgb": {}})


def test_an_encoder_made_key_by_key():
    class Doubled(EncoderCore):
        def forward(self, x):
            return 2.0 * x

        def output_shape(self, input_shape=None):
            return input_shape

    assert ENCODER_CORES["Doubled"] is Doubled
    encoder = ObservationEncoder(feature_activation=None)
    encoder.register_obs_key("a", [3], net_class="Doubled", net_kwargs={"input_shape": [3]})
    encoder.register_obs_key("b", (3,), share_net_from="a")
    encoder.register_obs_key("c", [2, 2])
    encoder.make()
    assert encoder.output_shape() == [10]
    obs = {"a": torch.ones(2, 3), "b": torch.full((2, 3), 3.0), "c": torch.full((2, 2, 2), 5.0)}
    assert encoder(obs)[0].tolist() == [2.0] * 3 + [6.0] * 3 + [5.0] * 4
    assert encoder.obs_nets["a"] is encoder.obs_nets["b"]
    for again in (encoder.make, lambda: encoder.register_obs_key("d", [1])):
        with pytest.raises(ConfigError, match="made already"):
            again()
    fresh = ObservationEncoder()
    fresh.register_obs_key("a", [3])
    with pytest.raises(ConfigError, match="registered already"):
        fresh.register_obs_key("a", [3])
    with pytest.raises(ConfigError, match="has one encoder"):
        fresh.register_obs_key("b", [3], net_class="Doubled", net=nn.Identity())


def test_networks_in_a_row():
    net = Sequential(MLP(3, 4), MLP(4, 2))
    assert net.output_shape([3]) == [2]
    net.freeze()
    assert not net.train().training
    plain = Sequential(nn.Linear(3, 2), has_output_shape=False)
    assert plain.train().training
    with pytest.raises(NotImplementedError):
        plain.output_shape()
    with pytest.raises(NotImplementedError):
        base_nets.Module().output_shape()


def test_positions_need_no_table():
    table = PositionalEncoding(embed_dim=6, max_length=9)
    steps = torch.tensor([[0, 3], [8, 1]])
    torch.testing.assert_close(PositionalEncoding(6)(steps), table(steps))
    assert list(PositionalEncoding(6).state_dict()) == []


def test_a_vae_on_a_device():
    shapes = {"x": (3,)}
    net = VAE(shapes, shapes, (4,), (4,), 2, "meta", {"s": (2,)})
    assert {p.device.type for p in net.parameters()} == {"meta"}
    with pytest.raises(ConfigError, match="condition_shapes"):
        VAE(shapes, shapes, (4,), (4,), 2)


def test_networks_that_moved():
    assert policy_nets.VAEActor is vae_nets.VAEActor
    assert issubclass(base_nets.ResNet18Conv, base_nets.ConvBase)
    assert issubclass(obs_nets.RNN_MIMO_MLP, base_nets.Module)


def test_an_observation_in_an_environments_form():
    env = EnvGym("Hopper-v5", False, False, use_image_obs=False)
    env.reset(seed=0)
    assert env.get_observation(np.arange(3))["flat"].tolist() == [0, 1, 2]
    assert env.get_observation()["flat"].shape == (11,)
    env.close()
