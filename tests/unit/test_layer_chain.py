"""Networks computed layer by layer: the same as torch's calls of their modules, at any time."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from layer_changes import CHANGES
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
    register_module_full_backward_hook,
    register_module_full_backward_pre_hook,
)

from raymimic.algo import algo_factory
from raymimic.config import config_factory
from raymimic.models import layer_chain
from raymimic.models.base_nets import MLP, Linear, is_altered
from raymimic.models.obs_coders import (
    ObservationDecoder,
    ObservationEncoder,
    ObservationGroupEncoder,
)
from raymimic.models.obs_nets import MIMO_MLP
from raymimic.observations.shapes import ObsShapes

torch.set_num_threads(1)

GROUPS = {"obs": {"b": (3,), "a": (2, 2)}, "goal": {"c": (2,)}}
OUTPUTS = {"y": (4,), "z": (2, 3)}
Groups = dict[str, dict[str, Tensor]]


def make_net(seed: int = 0) -> MIMO_MLP:
    torch.manual_seed(seed)
    groups = {group: ObsShapes(shapes) for group, shapes in GROUPS.items()}
    return MIMO_MLP(groups, OUTPUTS, (8, 6)).double()


def make_inputs(rows: int = 5) -> Groups:
    g = torch.Generator().manual_seed(0)
    return {
        group: {
            key: torch.randn(rows, *shape, generator=g, dtype=torch.float64)
            for key, shape in shapes.items()
        }
        for group, shapes in GROUPS.items()
    }


def by_hand(net: MIMO_MLP, groups: Groups) -> dict[str, Tensor]:
    """Each module called as torch calls modules."""
    encoder, mlp, decoder = (net.nets[name] for name in ("encoder", "mlp", "decoder"))
    x = encoder(**groups)
    x = mlp._model(x) if type(mlp) is MLP and not is_altered(mlp) else mlp(x)
    return decoder(x)


def assert_same(net: MIMO_MLP, other: MIMO_MLP | None = None) -> dict[str, Tensor]:
    """Values and gradients of a call are those of the modules' calls, of this or an equal net."""
    other = net if other is None else other
    groups = make_inputs()
    outputs, expected = net(**groups), by_hand(other, groups)
    assert outputs.keys() == expected.keys()
    for key, y in expected.items():
        torch.testing.assert_close(outputs[key], y, rtol=0, atol=1e-12)
    results = []
    for own, values in ((net, outputs), (other, expected)):
        total = sum((y * torch.arange(y.numel()).view_as(y)).sum() for y in values.values())
        params = [p for p in own.parameters() if p.requires_grad]
        results.append(torch.autograd.grad(total, params, allow_unused=True))
    for own_grad, other_grad in zip(*results, strict=True):
        if other_grad is None:
            assert own_grad is None
        else:
            torch.testing.assert_close(own_grad, other_grad, rtol=0, atol=1e-12)
    return outputs


def test_a_chain_is_its_modules():
    net = make_net()
    outputs = assert_same(net)
    assert outputs["y"].shape == (5, 4)
    assert outputs["z"].shape == (5, 2, 3)


def test_a_row_of_fewer_goals_holds_for_its_neighbours():
    net, groups = make_net(), make_inputs(6)
    groups["goal"] = {"c": groups["goal"]["c"][:2]}
    repeated = groups | {"goal": {"c": groups["goal"]["c"].repeat_interleave(3, dim=0)}}
    for key, y in by_hand(net, repeated).items():
        torch.testing.assert_close(net(**groups)[key], y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_layers_that_change_after_the_first_pass_count(change):
    net = make_net()
    before = assert_same(net)
    torch.manual_seed(1)
    change(net.nets["mlp"]._model.double())
    net.double()
    after = assert_same(net)
    same = torch.equal(before["y"], after["y"])
    assert same == (change.__name__ == "frozen_first_layer")


class Doubled(Linear):
    """A layer of a user's own class."""

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        return super().forward(x, relu) * 2.0


class Twice(nn.Module):
    """A part of a user's own."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        y = self.part(*args, **kwargs)
        return {k: 2.0 * x for k, x in y.items()} if isinstance(y, dict) else 2.0 * y


def replace(name: str) -> Callable[[MIMO_MLP], None]:
    def change(net: MIMO_MLP) -> None:
        net.nets[name] = Twice(net.nets[name])

    return change


def hook(name: str) -> Callable[[MIMO_MLP], None]:
    def change(net: MIMO_MLP) -> None:
        double = Twice(nn.Identity())
        net.nets[name].register_forward_hook(lambda module, inputs, y: double(y))

    return change


def all_networks(net: MIMO_MLP) -> None:
    net.nets = make_net(3).nets


def all_layers(net: MIMO_MLP) -> None:
    net.nets["mlp"]._model = nn.Sequential(Linear(9, 6), nn.Tanh())


def groups_encoders(net: MIMO_MLP) -> None:
    net.nets["encoder"].nets = nn.ModuleDict(
        {group: Twice(own) for group, own in net.nets["encoder"].nets.items()}
    )


def one_groups_encoder(net: MIMO_MLP) -> None:
    net.nets["encoder"].nets["goal"] = Twice(net.nets["encoder"].nets["goal"])


def one_keys_encoder(net: MIMO_MLP) -> None:
    net.nets["encoder"].nets["obs"].obs_nets["b"] = nn.Linear(3, 3)


def an_outputs_layer(net: MIMO_MLP) -> None:
    net.nets["decoder"].nets["z"] = nn.Sequential(nn.Linear(6, 6), nn.Tanh())


def hooked_encoder_of_a_group(net: MIMO_MLP) -> None:
    net.nets["encoder"].nets["obs"].register_forward_pre_hook(
        lambda module, inputs: ({key: 2.0 * x for key, x in inputs[0].items()},)
    )


def hooked_output(net: MIMO_MLP) -> None:
    net.nets["decoder"].nets["y"].register_forward_hook(lambda module, inputs, y: y + 1.0)


def forward_of_its_own(net: MIMO_MLP) -> None:
    forward = net.nets["encoder"].forward
    net.nets["encoder"].forward = lambda **groups: 2.0 * forward(**groups)


def order_of_keys(net: MIMO_MLP) -> None:
    shapes = net.nets["encoder"].nets["obs"].obs_shapes
    shapes["b"] = shapes.pop("b")


def other_keys(net: MIMO_MLP) -> None:
    net.nets["encoder"].nets["obs"].obs_shapes = ObsShapes({"a": (2, 2), "b": (3,)})


def order_of_groups(net: MIMO_MLP) -> None:
    groups = net.nets["encoder"].nets
    obs = groups["obs"]
    del groups["obs"]
    groups["obs"] = obs


def another_class(net: MIMO_MLP) -> None:
    net.nets["mlp"]._model[0].__class__ = Doubled


def fewer_keys(net: MIMO_MLP) -> None:
    del net.nets["encoder"].nets["obs"].obs_shapes["a"]
    net.nets["mlp"]._model[0] = Linear(5, 8)


PARTS = ("encoder", "mlp", "decoder")
NET_CHANGES = {
    **{f"own_{name}": replace(name) for name in PARTS},
    **{f"hooked_{name}": hook(name) for name in PARTS},
    **{
        change.__name__: change
        for change in (
            *(all_networks, all_layers, groups_encoders, one_groups_encoder, one_keys_encoder),
            *(an_outputs_layer, hooked_encoder_of_a_group, hooked_output, forward_of_its_own),
            *(order_of_keys, other_keys, fewer_keys, order_of_groups, another_class),
        )
    },
}


@pytest.mark.parametrize("change", NET_CHANGES.values(), ids=NET_CHANGES)
def test_parts_that_change_after_the_first_pass_count(change):
    net = make_net()
    before = assert_same(net)
    change(net)
    net.double()
    after = assert_same(net)
    assert not torch.allclose(before["y"], after["y"]) or change is an_outputs_layer


@pytest.mark.parametrize(
    "cls",
    [
        *(Linear, MLP, ObservationEncoder, ObservationGroupEncoder, ObservationDecoder),
        *(nn.Sequential, nn.ReLU),
    ],
)
@pytest.mark.parametrize("used", [False, True])
def test_a_class_with_another_forward_is_called(monkeypatch, cls, used):
    forward, calls = cls.forward, []

    def patched(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls.append(module)
        return forward(module, *args, **kwargs)

    net = make_net()
    if used:
        net(**make_inputs())
    monkeypatch.setattr(cls, "forward", patched)
    net(**make_inputs())
    assert set(calls) == {module for module in net.modules() if type(module) is cls}
    monkeypatch.undo()
    calls.clear()
    assert_same(net)
    assert not calls


def test_a_layer_in_a_row_that_was_empty_counts():
    net = make_net()
    net.nets["mlp"]._model = nn.Sequential()
    net.nets["mlp"]._model.append(nn.Identity())
    net.nets["decoder"].nets["y"] = Linear(9, 4).double()
    net.nets["decoder"].nets["z"] = Linear(9, 6).double()
    del net.nets["mlp"]._model[0]
    before = assert_same(net)
    net.nets["mlp"]._model.append(nn.Tanh())
    assert not torch.equal(assert_same(net)["y"], before["y"])


def test_a_compiled_network_is_not_compiled_anew_for_a_hook_elsewhere():
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    net = make_net()
    expected = net(**make_inputs())
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    for _ in range(3):
        torch.zeros(1, requires_grad=True).register_hook(lambda grad: grad)
        for key, y in compiled(**make_inputs()).items():
            torch.testing.assert_close(y, expected[key], rtol=0, atol=1e-12)
    assert len(graphs) == 1


def test_a_hook_that_is_gone_no_longer_counts():
    net = make_net()
    before = assert_same(net)
    seen: list[Tensor] = []
    handle = (
        net.nets["mlp"]._model[1].register_forward_hook(lambda module, inputs, y: seen.append(y))
    )
    assert_same(net)
    assert len(seen) == 2  # of the chain, and by hand
    handle.remove()
    for key, y in assert_same(net).items():
        assert torch.equal(y, before[key])
    assert len(seen) == 2


LAYERS = [
    *(f"nets.mlp._model.{i}" for i in range(4)),
    *("nets.decoder.nets.y", "nets.decoder.nets.z"),
]


@pytest.mark.parametrize(
    ("register", "seen"),
    [
        (register_module_forward_hook, [*LAYERS, "nets.encoder", "nets.mlp", "nets.decoder"]),
        (register_module_forward_pre_hook, [*LAYERS, "nets.encoder", "nets.mlp", "nets.decoder"]),
        (register_module_full_backward_hook, LAYERS),
        (register_module_full_backward_pre_hook, LAYERS),
    ],
)
@pytest.mark.filterwarnings("ignore:For backward hooks", "ignore:Full backward hook")
def test_a_hook_of_all_modules_sees_each_module(register, seen):
    net = make_net()
    assert_same(net)
    modules: list[nn.Module] = []
    handle = register(lambda module, *_: modules.append(module))
    try:
        sum(y.sum() for y in net(**make_inputs()).values()).backward()
    finally:
        handle.remove()
    assert set(seen) <= {name for name, module in net.named_modules() if module in modules}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_has_layers_of_its_own(copied):
    net = make_net()
    before = assert_same(net)
    twin = copied(net)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(2.0)
    assert not torch.allclose(assert_same(twin)["y"], before["y"])
    for key, y in assert_same(net).items():
        assert torch.equal(y, before[key])
    assert b"LayerChain" not in pickle.dumps(net)


def test_a_shallow_copy_with_other_parts_uses_them():
    """As torch's `DataParallel` makes its replicas."""
    net, other = make_net(), make_net(1)
    assert_same(net)
    replica = copy.copy(net)
    vars(replica)["_modules"] = dict(other._modules)
    assert_same(replica, other)
    assert_same(net)


def test_parameters_of_a_functional_call_count():
    net, other = make_net(), make_net(1)
    assert_same(net)
    groups = make_inputs()
    params = {name: p.detach() for name, p in other.named_parameters()}
    outputs = torch.func.functional_call(net, params, (), groups)
    for key, y in by_hand(other, groups).items():
        torch.testing.assert_close(outputs[key], y, rtol=0, atol=1e-12)
    assert_same(net)


def test_loaded_weights_and_another_dtype_count():
    net = make_net()
    assert_same(net)
    net.load_state_dict(make_net(1).state_dict())
    assert_same(net, make_net(1))
    net.float()
    groups = {g: {k: x.float() for k, x in own.items()} for g, own in make_inputs().items()}
    assert net(**groups)["y"].dtype == torch.float32


def test_a_missing_observation_is_named():
    net, groups = make_net(), make_inputs()
    del groups["obs"]["a"]
    with pytest.raises(KeyError, match="'a'"):
        net(**groups)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_a_module_with_a_hook_is_altered(kind):
    layer = nn.Linear(2, 2)
    assert not is_altered(layer)
    handle = getattr(layer, f"register_{kind}_hook")(lambda *_: None)
    assert is_altered(layer)
    handle.remove()
    assert not is_altered(layer)


def test_a_module_with_a_forward_of_its_own_or_compiled_is_altered():
    layer, compiled = nn.Linear(2, 2), nn.Linear(2, 2)
    layer.forward = lambda x: x
    compiled.compile()
    assert is_altered(layer)
    assert is_altered(compiled)


def test_training_finds_the_layers_once(monkeypatch):
    config = config_factory("td3_bc")
    with config.values_unlocked():
        config.observation.modalities.obs.low_dim = ["a"]
    algo = algo_factory("td3_bc", config, {"a": (3,)}, 2, "cpu")
    algo.set_train()
    torch.manual_seed(0)
    batch = {
        "obs": {"a": torch.randn(4, 3)},
        "next_obs": {"a": torch.randn(4, 3)},
        "actions": torch.rand(4, 2) * 2 - 1,
        "rewards": torch.randn(4, 1),
        "dones": torch.zeros(4, 1),
        "goal_obs": None,
    }
    for _ in range(2):
        algo.train_on_batch(batch, epoch=1)
    made: list[Any] = []
    init = layer_chain.LayerChain.__init__
    monkeypatch.setattr(
        layer_chain.LayerChain,
        "__init__",
        lambda self, *args: made.append(args) or init(self, *args),
    )
    for _ in range(4):
        algo.train_on_batch(batch, epoch=1)
    assert made == []
