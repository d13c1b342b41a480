"""The layers of a network in a row, computed without the modules around them."""

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from raymimic.models.base_nets import MLP, Step, is_altered, step_of, steps_of, through
from raymimic.models.obs_coders import (
    ObservationDecoder,
    ObservationEncoder,
    ObservationGroupEncoder,
    joined,
)

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class _Structure:
    """All that tells, at little cost, whether the modules of a network have changed.

    It sees modules that were replaced, added, removed or reordered, classes that were given another
    `forward`, hooks that were registered, parameters that became something else, and attributes
    that a module was given, such as a `forward`.

    Args:
        net: the network.
        nets: its parts.
    """

    def __init__(self, net: nn.Module, nets: nn.Module) -> None:
        self._whole = net._modules
        children: list[Mapping[str, Any]] = [net._modules]
        attributes: list[Mapping[str, Any]] = []
        self._modules = list(nets.modules())
        for module in self._modules:
            if module._modules or isinstance(module, _CONTAINERS):
                children.append(module._modules)
            if not isinstance(module, nn.ModuleDict):
                attributes.append(vars(module))
            if module._parameters:
                attributes.append(module._parameters)
        self._forwards_then = [type(module).forward for module in self._modules]
        self._children, self._children_then = children, [[*own.items()] for own in children]
        self._encoders = [own for own in self._modules if isinstance(own, ObservationEncoder)]
        self._keys_then = [[*own.obs_shapes] for own in self._encoders]
        self._attributes, self._sizes_then = attributes, [len(own) for own in attributes]
        self._hooks_then = RemovableHandle.next_id  # the number of all hooks so far

    def is_that_of(self, net: nn.Module) -> bool:
        """Tells whether a network has this structure at present."""
        return (
            net._modules is self._whole
            and RemovableHandle.next_id == self._hooks_then
            and [[*own.items()] for own in self._children] == self._children_then
            and [[*own.obs_shapes] for own in self._encoders] == self._keys_then
            and [type(module).forward for module in self._modules] == self._forwards_then
            and [*map(len, self._attributes)] == self._sizes_then
        )


class LayerChain:
    """Maps observations through an encoder, an MLP and a decoder, layer by layer.

    Torch's calls of modules, and lookups of their parts, take time that small networks feel. A
    chain finds the layers once. It computes encoders that flatten, linear layers and ReLUs itself.
    It calls all other modules: those with hooks, with parameters of another kind, or of a user's
    own class. Weights are read at each call.

    Attributes:
        inputs: group and key of each observation; empty: the encoder is called.
        steps: the layers of the MLP, then the decoder if it is called.
        outputs: the layer of each output; empty: the decoder is called.
        decoder: gives outputs their shapes.

    Args:
        net: its `nets` are an `encoder`, an `mlp` and a `decoder`.
    """

    def __init__(self, net: nn.Module) -> None:
        nets = cast("nn.ModuleDict", net.nets)
        self._encoder, mlp, decoder = (nets[name] for name in ("encoder", "mlp", "decoder"))
        self.inputs = _inputs(self._encoder)
        self.outputs = _outputs(decoder)
        plain = type(mlp) is MLP and not is_altered(mlp)
        self.steps = steps_of(cast("MLP", mlp)._model) if plain else [Step(mlp)]
        self.steps += [] if self.outputs else [Step(decoder)]
        self.decoder = cast("ObservationDecoder", decoder)
        self._structure = _Structure(net, nets)

    def __reduce__(self) -> tuple[Any, ...]:
        """Leaves the chain out of a network's copies, which find their own layers."""
        return type(None), ()

    def holds(self, net: nn.Module) -> bool:
        """Tells whether a network still consists of these layers, each called as before."""
        return self._structure.is_that_of(net)

    def __call__(self, groups: Mapping[str, Any]) -> dict[str, Tensor]:
        """Maps `{group: {key: [B, *shape]}}` to `{output: [B, *shape]}`."""
        x = through(self.steps, self.features(groups))
        if self.outputs:
            x = {key: self.decoder.shaped(key, through([s], x)) for key, s in self.outputs.items()}
        outputs: dict[str, Tensor] = x
        return outputs

    def features(self, groups: Mapping[str, Any]) -> Tensor:
        """Encodes `{group: {key: [B, *shape]}}` to `[B, D]`."""
        if self.inputs:
            return joined([groups[group][key] for group, key in self.inputs])
        x: Tensor = self._encoder(**groups)
        return x


def _inputs(encoder: nn.Module) -> list[tuple[str, str]]:
    """Returns group and key of the observations that an encoder flattens; none if it does more."""
    if type(encoder) is not ObservationGroupEncoder or is_altered(encoder):
        return []
    inputs: list[tuple[str, str]] = []
    for group, own in encoder.nets.items():
        if type(own) is not ObservationEncoder or is_altered(own):
            return []
        if len(own.obs_nets) or len(own.obs_randomizers):
            return []
        inputs += [(group, key) for key in own.obs_shapes]
    return inputs


def _outputs(decoder: nn.Module) -> dict[str, Step]:
    """Returns the layers of a decoder, by output; none if it has to be called."""
    if type(decoder) is not ObservationDecoder or is_altered(decoder):
        return {}
    return {key: step_of(layer) for key, layer in decoder.nets.items()}
