"""Modalities: how observations of one kind are stored, and prepared for networks.

Which modality a key has is written on the `ObsShapes` that an algorithm and its networks carry,
never in a global, so that policies with different keys live in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from raymimic.errors import ConfigError, did_you_mean
from raymimic.observations.shapes import ObsShapes
from raymimic.user_modules import same_definition

if TYPE_CHECKING:  # checks of a config ask for names alone
    from torch import Tensor


class Modality:
    """One kind of observations; this one is taken as it is.

    A subclass is registered by `register_modality`, and its keys are then listed in
    `observation.modalities` under its name.

    Attributes:
        default_core: registered name of the encoder of keys whose config has no
            `observation.encoder.<modality>`; None: they are flattened.
        cut_off: least and greatest value that networks see; None: all.
    """

    default_core: ClassVar[str | None] = None
    cut_off: ClassVar[tuple[float, float] | None] = None

    def keeps_bytes(self, shape: Sequence[int], dtype: npt.DTypeLike) -> bool:
        """Whether a dataset's rows stay uint8 in memory, instead of floating-point numbers.

        Args:
            shape: of a row.
            dtype: of the file.
        """
        return len(shape) == 3 and dtype == np.uint8

    def takes(self, shape: Sequence[int]) -> bool:
        """Whether a file's observation may be meant for this modality, to propose it to the user.

        Args:
            shape: of a row.
        """
        return False

    def processed_shape(self, shape: Sequence[int]) -> list[int]:
        """Shape of an observation as networks see it.

        Args:
            shape: as environments and files have it.
        """
        return list(shape)

    def raw_shape(self, shape: Sequence[int]) -> list[int]:
        """Undoes `processed_shape`."""
        return list(shape)

    def type_fault(self, dtype: str) -> str | None:
        """Says why raw observations of an environment cannot be of a type.

        Args:
            dtype: its name, such as `uint8`.

        Returns:
            The fault and its remedy, to follow a name and "holds"; None where there is none.
        """
        return None

    def process(self, x: Tensor) -> Tensor:
        """Prepares raw observations `[..., *shape]`, on the device that they are on."""
        return x


_MODALITIES: dict[str, Modality] = {}

ModalityClass = TypeVar("ModalityClass", bound=type[Modality])


def register_modality(name: str) -> Callable[[ModalityClass], ModalityClass]:
    """Registers the decorated class as a modality.

    Args:
        name: as in `observation.modalities.<group>.<name>`.

    Raises:
        ConfigError: another class has that name already.
    """

    def decorator(cls: ModalityClass) -> ModalityClass:
        known = type(_MODALITIES[name]) if name in _MODALITIES else cls
        if not same_definition(known, cls):
            raise ConfigError(
                f"a modality '{name}' is registered already, by {known.__module__}: choose another"
                " name"
            )
        _MODALITIES[name] = cls()
        return cls

    return decorator


def registered_modalities() -> list[str]:
    """Returns the names of all modalities."""
    return sorted(_MODALITIES)


def modality_named(name: str, cut_depth: bool = True) -> Modality:
    """Returns a modality.

    Args:
        name: its name.
        cut_depth: whether `depth` is cut off at 0 and 1 (`config.cuts_depth`).

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in _MODALITIES:
        raise ConfigError(
            f"observation modality '{name}' is unknown{did_you_mean(name, _MODALITIES)}"
        )
    return _MODALITIES[name] if cut_depth or name != "depth" else _WHOLE_DEPTH


@register_modality("low_dim")
class LowDim(Modality):
    """Vectors of numbers."""

    def takes(self, shape: Sequence[int]) -> bool:
        """Takes vectors."""
        return len(shape) == 1


class _Image(Modality):
    """Images `[..., H, W, C]`, which networks see as `[..., C, H, W]`."""

    default_core = "VisualCore"
    channels: ClassVar[int]

    def takes(self, shape: Sequence[int]) -> bool:
        """Takes images of this many channels, which come last."""
        return len(shape) == 3 and shape[-1] == self.channels

    def processed_shape(self, shape: Sequence[int]) -> list[int]:
        """Puts the channels first."""
        return [shape[2], shape[0], shape[1]] if len(shape) == 3 else list(shape)

    def raw_shape(self, shape: Sequence[int]) -> list[int]:
        """Puts the channels last."""
        return [*shape[1:], shape[0]] if len(shape) == 3 else list(shape)

    def process(self, x: Tensor) -> Tensor:
        """Puts the channels first."""
        return x.movedim(-1, -3)


@register_modality("depth")
class Depth(_Image):
    """Distances. Those beyond 0 to 1, in the dataset's unit, are cut off, as in robomimic."""

    channels = 1
    cut_off: ClassVar[tuple[float, float] | None] = (0.0, 1.0)

    def type_fault(self, dtype: str) -> str | None:
        """Refuses whole numbers, which would be cut off at 1."""
        if "float" in dtype:
            return None
        return (
            f"{dtype}, and distances are floating-point numbers: convert it to float32, in the "
            "unit of the training's data"
        )

    def process(self, x: Tensor) -> Tensor:
        """Puts the channels first, and cuts the values off."""
        x = super().process(x)
        return x if self.cut_off is None else x.clamp(*self.cut_off)


class _WholeDepth(Depth):
    """Distances as they are, as robomimic takes those of robosuite, which are metres."""

    cut_off = None


_WHOLE_DEPTH = _WholeDepth()


@register_modality("rgb")
class RGB(_Image):
    """Colour images of 0 to 255, which networks see as 0 to 1."""

    channels = 3

    def type_fault(self, dtype: str) -> str | None:
        """Takes bytes, and the wide types of whole numbers that arithmetic makes of them."""
        if dtype in ("uint8", "int32", "int64"):
            return None
        return f"{dtype}, and colours are uint8, 0 to 255: convert it to that type and range"

    def process(self, x: Tensor) -> Tensor:
        """Puts the channels first, and the values into 0 to 1."""
        return super().process(x) / 255.0


@register_modality("scan")
class Scan(Modality):
    """Laser scans `[..., L, C]`, which networks see as `[..., C, L]`."""

    default_core = "ScanCore"

    def takes(self, shape: Sequence[int]) -> bool:
        """Takes sequences of vectors."""
        return len(shape) == 2

    def processed_shape(self, shape: Sequence[int]) -> list[int]:
        """Puts the channels first."""
        return [shape[1], shape[0]] if len(shape) == 2 else list(shape)

    def raw_shape(self, shape: Sequence[int]) -> list[int]:
        """Puts the channels last."""
        return self.processed_shape(shape)

    def process(self, x: Tensor) -> Tensor:
        """Puts the channels first."""
        return x.movedim(-1, -2)


@register_modality("lang")
class Lang(Modality):
    """Embeddings of an instruction, vectors that an encoder of texts has made.

    Encoders that depend on the language take them. Where there is no such encoder, they are
    features of their own.
    """


def takes(shape: Sequence[int], modality: str) -> bool:
    """Whether an observation may be meant for a modality, see `Modality.takes`.

    A modality that is not registered takes none.
    """
    return _MODALITIES.get(modality, Modality()).takes(shape)


def processed_shape(shape: Sequence[int], modality: str) -> list[int]:
    """Shape of an observation as networks see it, see `Modality.processed_shape`.

    A modality that is not registered leaves it as it is.
    """
    return _MODALITIES.get(modality, Modality()).processed_shape(shape)


def type_fault(dtype: str, modality: str) -> str | None:
    """Says why a raw observation cannot be of a type, see `Modality.type_fault`.

    A modality that is not registered takes all types.
    """
    return _MODALITIES.get(modality, Modality()).type_fault(dtype)


def process_obs(obs: Tensor, obs_modality: str, cut_depth: bool = True) -> Tensor:
    """Prepares a raw observation for networks.

    Args:
        obs: `[..., D]` for `low_dim` and `lang`, `[..., H, W, C]` for `rgb` and `depth`,
            `[..., L, C]` for `scan`.
        obs_modality: the modality.
        cut_depth: see `modality_named`.

    Returns:
        `low_dim` and `lang` as they are; the others with the channel first, colours in 0 to 1.

    Raises:
        ConfigError: for an unknown modality.
    """
    return modality_named(obs_modality, cut_depth).process(obs)


def process_obs_dict(
    obs_dict: Mapping[str, Tensor], shapes: ObsShapes, cut_depth: bool = True
) -> dict[str, Tensor]:
    """Prepares each raw observation according to its modality, see `process_obs`."""
    return {k: process_obs(x, shapes.modality(k), cut_depth) for k, x in obs_dict.items()}
