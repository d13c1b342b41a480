"""Networks: shapes, order of inputs, encoders, and the fast linear layer."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import raymimic.models.obs_nets as ObsNets
from raymimic.errors import ConfigError
from raymimic.models import base_nets
from raymimic.models.base_nets import MLP, Linear, onednn_pays_from, onednn_product
from raymimic.models.policy_nets import ActorNetwork
from raymimic.models.value_nets import ActionValueNetwork, ValueNetwork
from raymimic.observations.shapes import ObsShapes


@pytest.fixture
def onednn(monkeypatch):
    """Has oneDNN multiply large matrices, on any processor."""
    monkeypatch.setattr(base_nets, "_ONEDNN_FROM", 2**23)


def test_torchs_private_operator_for_onednn_is_as_it_was():
    """Says when torch changes it; `onednn_product` then needs the new arguments."""
    schema = torch.ops.mkldnn._linear_pointwise.default._schema
    assert str(schema) == (
        "mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, "
        "Scalar?[] scalars, str? algorithm) -> Tensor Y"
    )
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 4), torch.randn(4, 5).t(), torch.randn(5)
    expected = x @ weight.t() + bias
    torch.testing.assert_close(onednn_product(x, weight, bias), expected)
    torch.testing.assert_close(onednn_product(x, weight, bias, relu=True), expected.relu())
    torch.testing.assert_close(onednn_product(x, weight), expected - bias)


def test_onednn_multiplies_large_matrices_on_amds_processors_alone(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    for vendor, pays_from in (("AuthenticAMD", 2**23), ("GenuineIntel", math.inf)):
        cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: 25\n")
        assert onednn_pays_from(cpuinfo) == pays_from
    assert onednn_pays_from(tmp_path / "not on this system") == math.inf


@pytest.mark.parametrize("rows", [1, 2048])
@pytest.mark.usefixtures("onednn")
def test_linear_equals_torchs_in_value_and_gradients(rows):
    """Both sides of the size from which oneDNN multiplies."""
    torch.manual_seed(0)
    layer = Linear(256, 64)
    x = torch.randn(rows, 256, requires_grad=True)
    gradient = torch.randn(rows, 64)
    y = layer(x)
    expected = F.linear(x.double(), layer.weight.double(), layer.bias.double())
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    inputs = (x, layer.weight, layer.bias)
    grads = torch.autograd.grad(y, inputs, gradient)
    expected_grads = torch.autograd.grad(expected, inputs, gradient.double())
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [2, 2048])
@pytest.mark.usefixtures("onednn")
def test_mlp_is_the_chain_of_its_layers_with_the_same_gradients(rows):
    torch.manual_seed(0)
    net = MLP(256, 3, (64, 128), activation=nn.ReLU, output_activation=nn.ReLU)
    x = torch.randn(rows, 256, requires_grad=True)
    y, expected = net(x), x
    for layer in net._model:
        plain = isinstance(layer, nn.Linear)
        expected = F.linear(expected, layer.weight, layer.bias) if plain else layer(expected)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    inputs = (x, *net.parameters())
    grads = torch.autograd.grad(y.square().sum(), inputs)
    expected_grads = torch.autograd.grad(expected.square().sum(), inputs)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("onednn")
def test_linear_is_the_same_each_time():
    torch.manual_seed(0)
    layer, x = Linear(256, 256), torch.randn(512, 256)
    first = layer(x)
    assert all(torch.equal(layer(x.clone()), first) for _ in range(5))


def test_linear_takes_other_dtypes_and_more_dimensions():
    layer, x = Linear(256, 256), torch.randn(4, 128, 256)
    assert layer(x).shape == (4, 128, 256)
    assert layer.double()(x[:, 0].double()).dtype == torch.float64


def test_activations_follow_layers_that_a_user_put_in():
    mlp = MLP(2, 2, layer_dims=(2,))
    mlp._model[0], mlp._model[2] = nn.Identity(), nn.Identity()
    assert mlp(torch.tensor([[-1.0, 3.0]])).tolist() == [[0.0, 3.0]]


def test_mlp_layers():
    mlp = MLP(3, 2, layer_dims=(4, 5), output_activation=nn.Tanh)
    assert {k: tuple(x.shape) for k, x in mlp.state_dict().items()} == {
        "_model.0.weight": (4, 3),
        "_model.0.bias": (4,),
        "_model.2.weight": (5, 4),
        "_model.2.bias": (5,),
        "_model.4.weight": (2, 5),
        "_model.4.bias": (2,),
    }
    assert mlp(1e3 * torch.randn(7, 3)).abs().max() <= 1


def test_inputs_are_concatenated_in_the_order_of_shapes_then_action_then_goal():
    net = ActionValueNetwork(
        obs_shapes=ObsShapes({"b": [2], "a": [1]}),
        ac_dim=1,
        mlp_layer_dims=[8],
        goal_shapes=ObsShapes({"a": [1]}),
    )
    obs = {"a": torch.tensor([[3.0]]), "b": torch.tensor([[1.0, 2.0]])}
    encoder = net.nets["encoder"]
    features = encoder(
        obs={**obs, "action": torch.tensor([[4.0]])}, goal={"a": torch.tensor([[5.0]])}
    )
    assert features.tolist() == [[1.0, 2.0, 3.0, 4.0, 5.0]]
    value = net(obs, torch.tensor([[4.0]]), {"a": torch.tensor([[5.0]])})
    assert value.shape == (1, 1)


def test_actions_and_values_are_bounded():
    shapes = ObsShapes({"flat": [3]})
    actor = ActorNetwork(obs_shapes=shapes, ac_dim=2, mlp_layer_dims=[8])
    value = ValueNetwork(obs_shapes=shapes, mlp_layer_dims=[8], value_bounds=(-1.0, 5.0))
    obs = {"flat": 1e4 * torch.randn(64, 3)}
    assert actor(obs).shape == (64, 2)
    assert actor(obs).abs().max() <= 1
    values = value(obs)
    assert values.min() >= -1
    assert values.max() <= 5
    assert values.max() > 4.9 or values.min() < -0.9


def test_a_users_encoder_core_sees_the_keys_of_its_modality():
    @ObsNets.register_encoder_core
    class MeanColour(ObsNets.EncoderCore):
        def __init__(self, input_shape, scale=1.0):
            super().__init__(input_shape)
            self.scale = nn.Parameter(torch.tensor(scale))
            self.output_dim = input_shape[0]

        def forward(self, x):
            return self.scale * x.mean(dim=(-2, -1))

    kwargs = ObsNets.obs_encoder_args_from_config(
        {"rgb": {"core_class": "MeanColour", "core_kwargs": {"scale": 2.0}}}
    )
    shapes = ObsShapes({"camera": [3, 4, 4], "flat": [2]}, {"camera": "rgb", "flat": "low_dim"})
    actor = ActorNetwork(obs_shapes=shapes, ac_dim=2, mlp_layer_dims=[8], **kwargs)
    assert "nets.encoder.nets.obs.obs_nets.camera.scale" in actor.state_dict()
    assert next(actor.nets["mlp"].parameters()).shape[1] == 5
    image = torch.ones(6, 3, 4, 4)
    image[:, 1] = -1.0
    features = actor.nets["encoder"](obs={"camera": image, "flat": torch.full((6, 2), -3.0)})
    assert features[0].tolist() == [2.0, 0.0, 2.0, -3.0, -3.0]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"core_class": "VisualCor"},
            "key 'camera' is rgb, .* core_class 'VisualCor' is not avail",
        ),
        ({"core_class": None, "obs_randomizer_class": "CropRandomzer"}, "'CropRandomizer'"),
    ],
)
def test_encoders_that_are_not_available(kwargs, message):
    shapes = ObsShapes({"camera": [3, 4, 4]}, {"camera": "rgb"})
    with pytest.raises(ConfigError, match=message):
        ActorNetwork(shapes, ac_dim=2, mlp_layer_dims=[8], encoder_kwargs={"rgb": kwargs})


def test_a_network_needs_a_layer():
    with pytest.raises(ConfigError, match="at least one hidden layer"):
        ActorNetwork(ObsShapes({"flat": [2]}), ac_dim=2, mlp_layer_dims=[])


@pytest.mark.parametrize("rows", [64, 128])
@pytest.mark.usefixtures("onednn")
def test_gradients_of_gradients_are_those_of_torch(rows):
    """As in a gradient penalty, whichever product the size of the layer leads to."""
    torch.manual_seed(0)
    layer = Linear(256, 256).requires_grad_(True)
    plain = nn.Linear(256, 256)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(rows, 256)
    results = []
    for net, relu in ((lambda y: layer(y, relu=True), True), (lambda y: plain(y).relu(), False)):
        y = x.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(net(y).square().sum(), y, create_graph=True)
        weight = layer.weight if relu else plain.weight
        results.append(torch.autograd.grad(slope.square().sum(), [y, weight]))
    for own, other in zip(*results, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-2)


def test_hooks_see_what_they_see_in_torch():
    torch.manual_seed(0)
    mlp, x = MLP(5, 2, (4,)), torch.randn(3, 5)
    seen = []
    for index in (0, 1):
        handle = mlp._model[index].register_forward_hook(
            lambda module, inputs, output: seen.append(output) or output * 2.0
        )
        y = mlp(x)
        torch.testing.assert_close(y, mlp._model(x))
        handle.remove()
    assert seen[0].min() < 0.0  # before the ReLU


def test_a_linear_layer_of_a_users_own_is_called_as_it_is():
    class Doubled(Linear):
        def forward(self, x):
            return 2.0 * nn.functional.linear(x, self.weight, self.bias)

    mlp = MLP(5, 2, (4,))
    mlp._model[0] = Doubled(5, 4)
    x = torch.randn(3, 5)
    torch.testing.assert_close(mlp(x), mlp._model(x))


def hooked(layers):
    layers.register_forward_hook(lambda module, inputs, output: output * 2.0)
    return layers


def patched(layers):
    """As a library does that adds an adapter to a layer."""
    for layer in layers:
        layer.forward = lambda x, forward=layer.forward: 2.0 * forward(x) - 0.1
    return layers


class Residual(nn.Module):
    """No sequence of layers."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        return x[..., :2] + self.layers(x)


class Own(nn.Sequential):
    def forward(self, x):
        return 3.0 * super().forward(x)


@pytest.mark.parametrize("change", [hooked, patched, Residual, lambda layers: Own(*layers)])
def test_changed_layers_are_called_as_torch_calls_them(change):
    torch.manual_seed(0)
    mlp, x = MLP(5, 2, (4, 4)), torch.randn(3, 5)
    before = mlp(x)
    mlp._model = change(mlp._model)
    assert torch.equal(mlp(x), mlp._model(x))
    assert not torch.allclose(mlp(x), before)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_inputs():
    layer = Linear(0, 2)
    assert torch.equal(layer(torch.zeros(3, 0)), layer.bias.expand(3, 2))
