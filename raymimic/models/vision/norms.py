"""Normalisation layers of networks for images."""

from torch import nn


def replace_bn_with_gn(root_module: nn.Module, features_per_group: int = 16) -> nn.Module:
    """Replaces every BatchNorm layer by a GroupNorm layer, in place.

    For networks with a moving average of their weights (Diffusion Policy): a running statistic of
    the batches has no place in it. A layer that is registered under two names stays one layer.

    Args:
        root_module: the network.
        features_per_group: channels of each group.

    Returns:
        The network, or a GroupNorm if it is a BatchNorm itself.
    """
    if isinstance(root_module, nn.BatchNorm2d):
        return _group_norm(root_module, features_per_group)
    for parent in list(root_module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, _group_norm(child, features_per_group))
    return root_module


def _group_norm(norm: nn.BatchNorm2d, features_per_group: int) -> nn.GroupNorm:
    channels = norm.num_features
    made = nn.GroupNorm(max(1, channels // features_per_group), channels)
    return made.to(norm.weight.device, norm.weight.dtype)
