"""Observations: what modality a key is, how it is prepared for networks, normalisation.

Which modality a key has is written on the :class:`ObsShapes` that an algorithm and its
networks carry, never in a global, so that policies with different keys live in one process.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymimic.errors import ConfigError, did_you_mean

Array = TypeVar("Array", Tensor, NDArray[Any])


class ObsShapes(dict[str, tuple[int, ...]]):
    """Shapes of observation keys, in the order in which networks concatenate them.

    Attributes:
        modalities: the modality of each key. A key without one is ``low_dim``: networks add
            such keys themselves, the action for instance.
    """

    def __init__(
        self,
        shapes: Mapping[str, Iterable[int]] | Iterable[tuple[str, Iterable[int]]] = (),
        modalities: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__({k: tuple(shape) for k, shape in dict(shapes).items()})
        inherited = shapes.modalities if isinstance(shapes, ObsShapes) else {}
        self.modalities: dict[str, str] = {**inherited, **(modalities or {})}

    def modality(self, key: str) -> str:
        """Returns the modality of a key."""
        return self.modalities.get(key, "low_dim")


def modalities_of(group: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Turns ``{modality: keys}``, as in ``config.observation.modalities.obs``, inside out.

    Raises:
        ConfigError: if a key is listed under two modalities.
    """
    modalities: dict[str, str] = {}
    for modality, keys in group.items():
        for key in keys:
            if modalities.setdefault(key, modality) != modality:
                raise ConfigError(
                    f"observation key '{key}' is listed as {modalities[key]} and as {modality}: "
                    "keep one of them in observation.modalities"
                )
    return modalities


def _image_to_unit_chw(x: Tensor) -> Tensor:
    """Turns pixels ``[..., H, W, C]`` of 0 to 255 into ``[..., C, H, W]`` of 0 to 1."""
    return x.movedim(-1, -3) / 255.0


def _depth_to_chw(x: Tensor) -> Tensor:
    """Turns ``[..., H, W, 1]`` into ``[..., 1, H, W]``."""
    return x.movedim(-1, -3)


_PROCESSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "low_dim": lambda x: x,
    "rgb": _image_to_unit_chw,
    "depth": _depth_to_chw,
}


def process_obs(obs: Tensor, obs_modality: str) -> Tensor:
    """Prepares a raw observation for networks.

    Args:
        obs: ``[..., D]`` for ``low_dim``, ``[..., H, W, C]`` for ``rgb`` and ``depth``.
        obs_modality: the modality.

    Returns:
        ``low_dim`` as it is; images with the channel first, ``rgb`` in 0 to 1.

    Raises:
        ConfigError: for an unknown modality.
    """
    if obs_modality not in _PROCESSORS:
        raise ConfigError(
            f"observation modality '{obs_modality}' is unknown"
            f"{did_you_mean(obs_modality, _PROCESSORS)}"
        )
    return _PROCESSORS[obs_modality](obs)


def process_obs_dict(obs_dict: Mapping[str, Tensor], shapes: ObsShapes) -> dict[str, Tensor]:
    """Prepares each raw observation according to its modality."""
    return {k: process_obs(x, shapes.modality(k)) for k, x in obs_dict.items()}


def stats_to_tensors(
    stats: Mapping[str, Mapping[str, Any]], device: torch.device, dtype: torch.dtype
) -> dict[str, dict[str, Tensor]]:
    """Puts normalisation statistics (arrays, lists or tensors) onto a device."""
    return {
        key: {
            name: torch.as_tensor(np.asarray(x), dtype=dtype, device=device)
            for name, x in entry.items()
        }
        for key, entry in stats.items()
    }


def normalize_dict(
    values: Mapping[str, Array], normalization_stats: Mapping[str, Mapping[str, Array]]
) -> dict[str, Array]:
    """Normalises: ``(x - offset) / scale``.

    Args:
        values: arrays or tensors ``[..., *shape]``.
        normalization_stats: for each key ``offset`` and ``scale``, ``[1, *shape]``.

    Returns:
        A new dict, with the shapes of ``values``.
    """
    return {
        k: (x - normalization_stats[k]["offset"][0]) / normalization_stats[k]["scale"][0]
        for k, x in values.items()
    }


def unnormalize_dict(
    values: Mapping[str, Array], normalization_stats: Mapping[str, Mapping[str, Array]]
) -> dict[str, Array]:
    """Undoes :func:`normalize_dict`: ``x * scale + offset``."""
    return {
        k: x * normalization_stats[k]["scale"][0] + normalization_stats[k]["offset"][0]
        for k, x in values.items()
    }
