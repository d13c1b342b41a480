"""A first pass through a network that a config describes, so that it fails before a training."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from raymimic.models.vision import weights


def first_pass(net: nn.Module, inputs: Callable[[], tuple[Tensor, ...]]) -> Tensor | None:
    """Passes zeros through a network in evaluation mode, at first without computing anything.

    The pass runs on the `meta` device, which has shapes but no values. A network that needs values,
    as one of the user's own may, runs on its own device instead. Neither pass draws from torch's
    generator on the CPU, nor changes a parameter, a buffer, or a mode.

    Networks of a checkpoint were tried before their training. They are not tried again: the first
    pass on `meta` in a process takes a second, and memory.

    Args:
        net: any network.
        inputs: makes the inputs on torch's default device.

    Returns:
        the output; None if the network is not tried: it is a checkpoint's, or compiled, or its
        parameters have no shapes or no values yet.

    Raises:
        Exception: the one of the network, of any type.
    """
    if not weights.are_needed():
        return None
    modules = list(net.modules())
    state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    compiled = any(isinstance(module, torch.jit.ScriptModule) for module in modules)
    if compiled or any(is_lazy(x) for x in state.values()):
        return None
    device = next((x.device for x in state.values()), torch.device("cpu"))
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            try:
                return _pass(net, state, inputs, torch.device("meta"))
            except Exception:
                if device.type == "meta":
                    return None
                return _pass(net, state, inputs, device)
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def _pass(
    net: nn.Module,
    state: dict[str, Tensor],
    inputs: Callable[[], tuple[Tensor, ...]],
    device: torch.device,
) -> Tensor:
    """Computes on copies of parameters and buffers, whose numbers are of torch's default type."""
    dtype = torch.get_default_dtype()
    copies = {
        name: x.detach().to(device, dtype if x.is_floating_point() else x.dtype, copy=True)
        for name, x in state.items()
    }
    with device:
        # A module may be registered twice. With tie_weights torch would swap its tensors twice,
        # and leave the copies in it.
        y: Tensor = torch.func.functional_call(net, copies, inputs(), tie_weights=False)
    return y
