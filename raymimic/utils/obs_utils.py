"""robomimic's `obs_utils`: modalities, shapes, normalisation and crops of observations.

raymimic's own algorithms carry the modality of each key (`ObsShapes`). Functions here that get a
key and no modality look it up in one table, `OBS_KEYS_TO_MODALITIES`, which robomimic's
`initialize_…` functions fill, and to which `algo_factory` adds the keys of each algorithm that it
makes: one written for robomimic may read it. Nothing else does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from raymimic.algo.algo import register_config_listener
from raymimic.config import BaseConfig
from raymimic.config.base_config import sections_named
from raymimic.config.config import Config
from raymimic.errors import ConfigError
from raymimic.models.obs_core import ENCODER_CORES, register_encoder_core
from raymimic.models.vision.convolutions import BACKBONES, register_backbone, with_positions
from raymimic.models.vision.randomizers import RANDOMIZERS, crop, register_randomizer
from raymimic.observations import modality, normalization
from raymimic.observations.modality import modality_named, register_modality
from raymimic.observations.normalization import stats_to_tensors
from raymimic.observations.shapes import ObsShapes, modalities_of
from raymimic.utils import tensor_utils

__all__ = [
    "DEFAULT_ENCODER_KWARGS",
    "OBS_ENCODER_BACKBONES",
    "OBS_ENCODER_CORES",
    "OBS_KEYS_TO_MODALITIES",
    "OBS_MODALITIES_TO_KEYS",
    "OBS_MODALITY_CLASSES",
    "OBS_RANDOMIZERS",
    "DepthModality",
    "ImageModality",
    "LowDimModality",
    "Modality",
    "ObsShapes",
    "ScanModality",
    "batch_image_chw_to_hwc",
    "batch_image_hwc_to_chw",
    "center_crop",
    "crop_image_from_indices",
    "get_processed_shape",
    "has_modality",
    "initialize_default_obs_encoder",
    "initialize_obs_modality_mapping_from_dict",
    "initialize_obs_utils_with_config",
    "initialize_obs_utils_with_obs_specs",
    "key_is_obs_modality",
    "modalities_of",
    "normalize_dict",
    "obs_encoder_kwargs_from_config",
    "process_frame",
    "process_obs",
    "process_obs_dict",
    "register_encoder_backbone",
    "register_encoder_core",
    "register_randomizer",
    "repeat_and_stack_observation",
    "sample_random_image_crops",
    "stats_to_tensors",
    "unnormalize_dict",
    "unprocess_frame",
    "unprocess_obs",
    "unprocess_obs_dict",
]

logger = logging.getLogger(__name__)

OBS_ENCODER_CORES = ENCODER_CORES
OBS_RANDOMIZERS = RANDOMIZERS
OBS_ENCODER_BACKBONES = BACKBONES
register_encoder_backbone = register_backbone

Values = Any
"""A tensor or an array."""


# --------------------------------------------------------------------------------- the table


class _KeysToModalities(dict[str, str]):
    """Modality by key. A key that was never named is `low_dim`, as in robomimic."""

    def __missing__(self, key: str) -> str:
        if not self:
            raise ConfigError(
                f"the modality of observation '{key}' is not known: call "
                "initialize_obs_utils_with_config(config) first, or name the modality"
            )
        logger.warning("observation '%s' has no modality yet: it is taken as low_dim", key)
        self[key] = "low_dim"
        return "low_dim"


OBS_KEYS_TO_MODALITIES: dict[str, str] = _KeysToModalities()
OBS_MODALITIES_TO_KEYS: dict[str, list[str]] = {}
DEFAULT_ENCODER_KWARGS: dict[str, Any] = {}


def _add_keys_of(config: BaseConfig) -> None:
    """Adds the keys of a config to the table."""
    for key, name in config.all_modalities.items():
        OBS_KEYS_TO_MODALITIES[key] = name
        keys = OBS_MODALITIES_TO_KEYS.setdefault(name, [])
        if key not in keys:
            keys.append(key)


register_config_listener(_add_keys_of)


def initialize_obs_modality_mapping_from_dict(
    modality_mapping: Mapping[str, Iterable[str]],
) -> None:
    """Fills the table.

    Args:
        modality_mapping: the keys of each modality.

    Raises:
        ConfigError: a key is listed under two modalities.
    """
    keys = {name: list(dict.fromkeys(listed)) for name, listed in modality_mapping.items()}
    of_key = modalities_of(keys)
    OBS_MODALITIES_TO_KEYS.clear()
    OBS_MODALITIES_TO_KEYS.update(keys)
    OBS_KEYS_TO_MODALITIES.clear()
    OBS_KEYS_TO_MODALITIES.update(of_key)


def initialize_obs_utils_with_obs_specs(
    obs_modality_specs: Mapping[str, Mapping[str, Iterable[str]]]
    | Sequence[Mapping[str, Mapping[str, Iterable[str]]]],
) -> None:
    """Fills the table.

    Args:
        obs_modality_specs: `{group: {modality: keys}}`, as `config.observation.modalities`, or a
            list of these.

    Raises:
        ConfigError: a key is listed under two modalities.
    """
    specs = [obs_modality_specs] if isinstance(obs_modality_specs, Mapping) else obs_modality_specs
    joined: dict[str, list[str]] = {}
    for spec in specs:
        for group in spec.values():
            for name, keys in group.items():
                joined.setdefault(name, []).extend(keys)
    initialize_obs_modality_mapping_from_dict(joined)


def obs_encoder_kwargs_from_config(obs_encoder_config: Config) -> dict[str, Any]:
    """Returns `config.observation.encoder` by modality, as a copy without None for arguments."""
    encoders = {}
    for name, section in obs_encoder_config.items():
        own = deepcopy(section)
        if isinstance(own, Config):
            own.unlock()
        for key in ("core_kwargs", "obs_randomizer_kwargs"):
            if own.get(key) is None:
                own[key] = {}
        encoders[name] = own
    return encoders


def initialize_default_obs_encoder(obs_encoder_config: Config) -> None:
    """Keeps `config.observation.encoder` as `DEFAULT_ENCODER_KWARGS`.

    raymimic's networks are given their encoders, and do not read it.
    """
    encoders = obs_encoder_kwargs_from_config(obs_encoder_config)
    DEFAULT_ENCODER_KWARGS.clear()
    DEFAULT_ENCODER_KWARGS.update(encoders)


def initialize_obs_utils_with_config(config: BaseConfig) -> None:
    """Fills the table from all sections `modalities` of a config.

    Raises:
        ConfigError: a key is listed under two modalities.
    """
    observation = config.observation
    initialize_obs_utils_with_obs_specs(
        [section for _, section in sections_named(observation, "modalities")]
    )
    acting = observation.actor if "actor" in observation else observation
    initialize_default_obs_encoder(acting.encoder)


def key_is_obs_modality(key: str, obs_modality: str) -> bool:
    """Whether a key is of a modality, by the table."""
    return OBS_KEYS_TO_MODALITIES[key] == obs_modality


def has_modality(modality: str, obs_keys: Iterable[str]) -> bool:
    """Whether any of the keys is of a modality, by the table."""
    return any(key_is_obs_modality(key, modality) for key in obs_keys)


# -------------------------------------------------------------------------------- modalities

OBS_MODALITY_CLASSES: dict[str, type[Modality]] = {}
"""Classes of modalities by name, a registry."""


class Modality(modality.Modality):
    """Base of modalities in robomimic's form: a subclass is known by its `name` at once.

    It defines `_default_obs_processor`, and `_default_obs_unprocessor`, which undoes it. They take
    and return tensors and arrays. Its keys train as those of other modalities.
    """

    name: ClassVar[str | None] = None
    _custom_obs_processor: ClassVar[Callable[[Values], Values] | None] = None
    _custom_obs_unprocessor: ClassVar[Callable[[Values], Values] | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Registers the class.

        Raises:
            ConfigError: it has no name, or another class has that name.
        """
        super().__init_subclass__(**kwargs)
        if cls.name is None:
            raise ConfigError(f"the modality {cls.__name__} has no name: set its attribute 'name'")
        if cls.__module__ != __name__:
            register_modality(cls.name)(cls)
        OBS_MODALITY_CLASSES[cls.name] = cls

    @classmethod
    def set_obs_processor(cls, processor: Callable[[Values], Values] | None = None) -> None:
        """Has this module's functions prepare observations in another way; None: as before.

        Of a modality that comes with raymimic, trainings go on as before, and a warning says so:
        their other processes would know nothing of it. Those of a modality of your own follow.
        """
        cls._custom_obs_processor = None if processor is None else staticmethod(processor)
        cls._tell_of("processor", processor)

    @classmethod
    def set_obs_unprocessor(cls, unprocessor: Callable[[Values], Values] | None = None) -> None:
        """Likewise for the way back."""
        cls._custom_obs_unprocessor = None if unprocessor is None else staticmethod(unprocessor)
        cls._tell_of("unprocessor", unprocessor)

    @classmethod
    def _tell_of(cls, kind: str, function: Callable[[Values], Values] | None) -> None:
        if function is not None and cls.__module__ == __name__:
            logger.warning(
                "the %s of '%s' changes obs_utils only, not trainings: write a modality of your "
                "own for these (docs/own_modality.md)",
                *(kind, cls.name),
            )

    @classmethod
    def _default_obs_processor(cls, obs: Values) -> Values:
        raise NotImplementedError(f"{cls.__name__} has no _default_obs_processor")

    @classmethod
    def _default_obs_unprocessor(cls, obs: Values) -> Values:
        raise NotImplementedError(f"{cls.__name__} has no _default_obs_unprocessor")

    @classmethod
    def process_obs(cls, obs: Values) -> Values:
        """Prepares an observation for networks."""
        return (cls._custom_obs_processor or cls._default_obs_processor)(obs)

    @classmethod
    def unprocess_obs(cls, obs: Values) -> Values:
        """Undoes `process_obs`."""
        return (cls._custom_obs_unprocessor or cls._default_obs_unprocessor)(obs)

    # The modality as trainings ask for it.

    def process(self, x: Tensor) -> Tensor:
        """See `raymimic.observations.modality.Modality`."""
        return cast("Tensor", self.process_obs(x))

    def processed_shape(self, shape: Sequence[int]) -> list[int]:
        """See `raymimic.observations.modality.Modality`."""
        return list(self.process_obs(np.zeros(shape)).shape)

    def raw_shape(self, shape: Sequence[int]) -> list[int]:
        """See `raymimic.observations.modality.Modality`."""
        return list(self.unprocess_obs(np.zeros(shape)).shape)


class ImageModality(Modality):
    """Colour images: bytes `[..., H, W, 3]`, which networks see as `[..., 3, H, W]` in 0 to 1."""

    name = "rgb"

    @classmethod
    def _default_obs_processor(cls, obs: Values) -> Values:
        return process_frame(obs, 3, 255.0)

    @classmethod
    def _default_obs_unprocessor(cls, obs: Values) -> Values:
        return tensor_utils.to_uint8(unprocess_frame(obs, 3, 255.0))


class DepthModality(Modality):
    """Distances `[..., H, W, 1]` of 0 to 1, which networks see as `[..., 1, H, W]`."""

    name = "depth"

    @classmethod
    def _default_obs_processor(cls, obs: Values) -> Values:
        return process_frame(obs, 1, 1.0)

    @classmethod
    def _default_obs_unprocessor(cls, obs: Values) -> Values:
        return unprocess_frame(obs, 1, 1.0)

    @classmethod
    def is_cut(cls) -> bool:
        """Whether distances are prepared in the ordinary way."""
        return cls._custom_obs_processor is None


def take_depth_as_it_is() -> None:
    """Has this module's functions leave distances as they are, in metres for example."""
    DepthModality._custom_obs_processor = staticmethod(lambda obs: process_frame(obs, 1, None))
    DepthModality._custom_obs_unprocessor = staticmethod(lambda obs: unprocess_frame(obs, 1, None))


class ScanModality(Modality):
    """Laser scans `[..., L, C]`, which networks see as `[..., C, L]`."""

    name = "scan"

    @classmethod
    def _default_obs_processor(cls, obs: Values) -> Values:
        return obs.swapaxes(-1, -2)

    @classmethod
    def _default_obs_unprocessor(cls, obs: Values) -> Values:
        return obs.swapaxes(-1, -2)


class LowDimModality(Modality):
    """Vectors of numbers, as they are."""

    name = "low_dim"

    @classmethod
    def _default_obs_processor(cls, obs: Values) -> Values:
        return obs

    @classmethod
    def _default_obs_unprocessor(cls, obs: Values) -> Values:
        return obs


def _name(obs_modality: str | None, obs_key: str | None) -> str:
    if obs_key is not None:
        return OBS_KEYS_TO_MODALITIES[obs_key]
    if obs_modality is None:
        raise ConfigError("an observation's modality is needed, or its key: give obs_modality")
    return obs_modality


def modality_in_use(name: str) -> modality.Modality:
    """Returns a modality that prepares observations as this module's functions do.

    Raises:
        ConfigError: there is none of that name.
    """
    known = OBS_MODALITY_CLASSES.get(name)
    return known() if known else modality_named(name)


def process_obs(obs: Values, obs_modality: str | None = None, obs_key: str | None = None) -> Values:
    """Prepares a raw observation for networks.

    Args:
        obs: tensor or array, `[..., D]` for `low_dim`, `[..., H, W, C]` for `rgb` and `depth`,
            `[..., L, C]` for `scan`.
        obs_modality: its modality.
        obs_key: its key instead, whose modality is in the table.

    Returns:
        Channels first; images as float32 in 0 to 1, the rest as it is. Depth stays in metres once
        a dataset of robosuite was opened (`env_utils.set_env_specific_obs_processing`).

    Raises:
        ConfigError: neither is known.
    """
    name = _name(obs_modality, obs_key)
    if name in OBS_MODALITY_CLASSES:
        return OBS_MODALITY_CLASSES[name].process_obs(obs)
    processed = modality_named(name).process(torch.as_tensor(obs))
    return processed if isinstance(obs, Tensor) else processed.numpy()


def process_obs_dict(
    obs_dict: Mapping[str, Values], shapes: ObsShapes | None = None
) -> dict[str, Values]:
    """Prepares each raw observation according to its modality.

    Args:
        obs_dict: observations by key.
        shapes: knows the modalities; None: the table does.
    """
    if shapes is not None:
        return {k: process_obs(x, shapes.modality(k)) for k, x in obs_dict.items()}
    return {k: process_obs(x, obs_key=k) for k, x in obs_dict.items()}


def unprocess_obs(
    obs: Values, obs_modality: str | None = None, obs_key: str | None = None
) -> Values:
    """Undoes `process_obs`; colours become bytes.

    Raises:
        ConfigError: the modality is not known, or it has no way back.
    """
    name = _name(obs_modality, obs_key)
    if name not in OBS_MODALITY_CLASSES:
        modality_named(name)
        raise ConfigError(f"modality '{name}' has no way back from the form that networks see")
    return OBS_MODALITY_CLASSES[name].unprocess_obs(obs)


def unprocess_obs_dict(obs_dict: Mapping[str, Values]) -> dict[str, Values]:
    """Undoes `process_obs_dict`, by the table."""
    return {k: unprocess_obs(x, obs_key=k) for k, x in obs_dict.items()}


def get_processed_shape(obs_modality: str, input_shape: Sequence[int]) -> list[int]:
    """Returns the shape in which networks see an observation."""
    return modality_in_use(obs_modality).processed_shape(input_shape)


# ------------------------------------------------------------------------------------ images


def batch_image_hwc_to_chw(im: Values) -> Values:
    """Puts the channels of images first: `[..., H, W, C]` becomes `[..., C, H, W]`."""
    return im.movedim(-1, -3) if isinstance(im, Tensor) else np.moveaxis(im, -1, -3)


def batch_image_chw_to_hwc(im: Values) -> Values:
    """Puts the channels of images last: `[..., C, H, W]` becomes `[..., H, W, C]`."""
    return im.movedim(-3, -1) if isinstance(im, Tensor) else np.moveaxis(im, -3, -1)


def _check_channels(found: int, wanted: int) -> None:
    if found != wanted:
        raise ConfigError(f"the frame has {found} channels, and {wanted} are expected")


def process_frame(frame: Values, channel_dim: int, scale: float | None) -> Values:
    """Prepares a frame for networks.

    Args:
        frame: tensor or array `[..., H, W, C]`.
        channel_dim: the C that is expected.
        scale: greatest value, by which values are divided and cut to 0 to 1; None: they stay.

    Returns:
        float32 `[..., C, H, W]`.

    Raises:
        ConfigError: it has another number of channels.
    """
    _check_channels(frame.shape[-1], channel_dim)
    frame = tensor_utils.to_float(frame)
    if scale is not None:
        frame = (frame / scale).clip(0.0, 1.0)
    return batch_image_hwc_to_chw(frame)


def unprocess_frame(frame: Values, channel_dim: int, scale: float | None) -> Values:
    """Undoes `process_frame`, but for its type: `[..., H, W, C]`, times `scale`.

    Raises:
        ConfigError: it has another number of channels.
    """
    _check_channels(frame.shape[-3], channel_dim)
    frame = batch_image_chw_to_hwc(frame)
    return frame if scale is None else scale * frame


def center_crop(im: Values, t_h: int, t_w: int) -> Values:
    """Cuts `t_h` rows and `t_w` columns out of the middle of images `[..., H, W, C]`.

    Raises:
        ConfigError: the images are smaller.
    """
    height, width = im.shape[-3:-1]
    if height < t_h or width < t_w:
        raise ConfigError(f"a crop of {t_h}x{t_w} does not fit into images of {height}x{width}")
    top, left = (height - t_h) // 2, (width - t_w) // 2
    return im[..., top : top + t_h, left : left + t_w, :]


def crop_image_from_indices(
    images: Tensor, crop_indices: Tensor, crop_height: int, crop_width: int
) -> Tensor:
    """Cuts windows out of images.

    Args:
        images: `[..., C, H, W]`.
        crop_indices: `[..., N, 2]`, row and column of the first pixel of each of N windows, or
            `[..., 2]` for one.
        crop_height: of the windows.
        crop_width: of the windows.

    Returns:
        `[..., N, C, h, w]`, or `[..., C, h, w]` for one.

    Raises:
        ConfigError: a window leaves its image, or there is not a list of windows for each image.
    """
    leading, (_, height, width) = images.shape[:-3], images.shape[-3:]
    if crop_indices.shape[: len(leading)] != leading or crop_indices.shape[-1] != 2:
        raise ConfigError(
            f"crop_indices {list(crop_indices.shape)} do not fit images {list(images.shape)}: give "
            "[..., N, 2]"
        )
    room = torch.tensor([height - crop_height, width - crop_width], device=crop_indices.device)
    if ((crop_indices < 0) | (crop_indices > room)).any():
        raise ConfigError(
            f"a crop of {crop_height}x{crop_width} leaves its image of {height}x{width}"
        )
    places = crop_indices.reshape(leading.numel(), -1, 2)
    number = places.shape[1]
    repeated = images.reshape(-1, *images.shape[-3:]).repeat_interleave(number, dim=0)
    flat = places.reshape(-1, 2).to(images.device)
    crops = crop(repeated, flat[:, 0], flat[:, 1], crop_height, crop_width)
    return crops.reshape(*crop_indices.shape[:-1], *crops.shape[1:])


def sample_random_image_crops(
    images: Tensor, crop_height: int, crop_width: int, num_crops: int, pos_enc: bool = False
) -> tuple[Tensor, Tensor]:
    """Cuts windows out of images at places that torch draws.

    The places are uniform over all but the lowest and the rightmost one, as in robomimic.

    Args:
        images: `[..., C, H, W]`.
        crop_height: of the windows.
        crop_width: of the windows.
        num_crops: windows of each image, N.
        pos_enc: add two channels, y / H and x / W of each pixel in the whole image.

    Returns:
        the windows `[..., N, C, h, w]` and their places `[..., N, 2]`.
    """
    height, width = images.shape[-2:]
    room = torch.tensor([height - crop_height, width - crop_width], device=images.device)
    drawn = torch.rand(*images.shape[:-3], num_crops, 2, device=images.device)
    places = (drawn * room).long()
    source = with_positions(images) if pos_enc else images
    return crop_image_from_indices(source, places, crop_height, crop_width), places


# ----------------------------------------------------------------------------- normalisation


def normalize_dict(
    dict: dict[str, Values],  # noqa: A002 # robomimic's name
    normalization_stats: Mapping[str, Mapping[str, Values]],
) -> dict[str, Values]:
    """Normalises the values of a dict in place: `(x - offset) / scale`.

    Args:
        dict: tensors or arrays `[..., *shape]`.
        normalization_stats: `offset` and `scale` `[1, *shape]` of each key.

    Returns:
        The dict.
    """
    dict.update(normalization.normalize_dict(dict, normalization_stats))
    return dict


def unnormalize_dict(
    dict: dict[str, Values],  # noqa: A002 # robomimic's name
    normalization_stats: Mapping[str, Mapping[str, Values]],
) -> dict[str, Values]:
    """Undoes `normalize_dict`, in place too: `x * scale + offset`."""
    dict.update(normalization.unnormalize_dict(dict, normalization_stats))
    return dict


def repeat_and_stack_observation(obs_dict: Mapping[str, Values], n: int) -> dict[str, Values]:
    """Repeats each row of observations n times, side by side."""
    repeated: dict[str, Values] = tensor_utils.repeat_by_expand_at(obs_dict, n, 0)
    return repeated
