"""Observations as the randomizers of a config change them in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from raymimic.algo.draws import SampleDraws, share_draws
from raymimic.config.base_config import BaseConfig, sections_named
from raymimic.errors import RaymimicError, reason
from raymimic.models.obs_coders import ObservationEncoder
from raymimic.models.vision.randomizers import Randomizer
from raymimic.observations.modality import RGB, Modality, modality_named
from raymimic.observations.shapes import ObsShapes, modalities_of


def _parts(config: BaseConfig) -> Iterator[tuple[str, dict[str, str], Mapping[str, Any]]]:
    """Name of each part of an algorithm (empty: it is all of it), its keys, and its encoders."""
    for path, groups in sections_named(config.observation, "modalities"):
        part = path.removesuffix("modalities").rstrip(".")
        keys: dict[str, str] = {}
        for group in groups.values():
            keys |= modalities_of(group)
        yield part, keys, config.observation.get_path(f"{part}.encoder".lstrip("."))


class Augmentations:
    """The randomizers of one observation key.

    Args:
        config: names them; `train.seed` seeds them.
        key: the observation.
        shape: of a row, as files have it.

    Attributes:
        titles: a few words on the result of each, those of one part of the algorithm one after
            the other, each applied to the result of the one before.
        fault: why there are none although the config names some; empty otherwise.
    """

    def __init__(self, config: BaseConfig, key: str, shape: Sequence[int]) -> None:
        self.titles: list[str] = []
        self.fault = ""
        self._seed = int(config.train.seed)
        self._chains: list[tuple[Modality, list[Randomizer]]] = []
        for part, modalities, encoders in _parts(config):
            if key not in modalities:
                continue
            try:
                modality = modality_named(modalities[key], config.cuts_depth)
                chain = _chain(key, modalities[key], shape, encoders)
            except RaymimicError as error:
                self.fault = self.fault or str(error)
                continue
            self._chains.append((modality, chain))
            of = f" ({part})" if part else ""
            self.titles += [f"after {type(randomizer).__name__}{of}" for randomizer in chain]

    def apply(self, values: NDArray[Any], number: int) -> list[Augmented | str]:
        """Applies them to one observation, as in training.

        Args:
            values: as the file has it, `[*shape]`.
            number: of the observation among several, each of which gets random numbers of its own.

        Returns:
            The result of each, or the reason why there is none.
        """
        results: list[Augmented | str] = []
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(self._seed + number)  # for randomizers that ask torch for numbers
            for modality, chain in self._chains:
                results += _applied(chain, modality, values, SampleDraws(self._seed), number)
        return results


class Augmented:
    """An observation after a randomizer.

    Attributes:
        values: `[H, W, C]` or `[L, C]`: bytes for colours, else floating-point numbers.
        variants: how many the randomizer made of it; this is the first.
    """

    def __init__(self, values: NDArray[Any], variants: int) -> None:
        self.values = values
        self.variants = variants


def _chain(
    key: str, modality: str, shape: Sequence[int], encoders: Mapping[str, Any]
) -> list[Randomizer]:
    """The randomizers that stand before the encoder of a key, made as a training makes them."""
    shapes = ObsShapes({key: modality_named(modality).processed_shape(shape)}, {key: modality})
    without_core = {"core_class": None, "share_net_from": None}
    net = ObservationEncoder(shapes, {modality: {**encoders.get(modality, {}), **without_core}})
    if key not in net.obs_randomizers:
        return []
    net.train()
    return [cast("Randomizer", module) for module in cast("Any", net.obs_randomizers[key])]


def _applied(
    chain: Sequence[Randomizer],
    modality: Modality,
    values: NDArray[Any],
    draws: SampleDraws,
    number: int,
) -> Iterator[Augmented | str]:
    draws.begin(1, 0, torch.tensor([number]))
    fault, x = "", torch.from_numpy(values)[None]
    for i, randomizer in enumerate(chain):
        share_draws(randomizer, draws)
        if not fault:
            try:
                x = x if i else modality.process(x).float()
                made = randomizer.forward_in(x)
                x = made[:1]
                yield Augmented(_channels_last(x[0], modality), len(made))
                continue
            except Exception as error:  # modalities and randomizers may be the user's own
                fault = f"{type(randomizer).__name__} fails: {reason(error)}"
        yield fault


def _channels_last(x: torch.Tensor, modality: Modality) -> NDArray[Any]:
    """Turns a processed observation `[C, ...]` into the form of files."""
    values: NDArray[Any] = x.movedim(0, -1).numpy()
    if values.ndim != 3:
        return values
    if values.shape[-1] < 3:
        return values[..., :1]
    colours = values[..., :3]  # without the places that a randomizer may add
    if not isinstance(modality, RGB):
        return colours
    shown: NDArray[Any] = np.round(255 * np.nan_to_num(colours).clip(0, 1)).astype(np.uint8)
    return shown
