"""The small policies that ship with the package and play the recorded demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raymimic.errors import DatasetError

FloatArray = npt.NDArray[np.floating]

OBS_CLIP = 10.0
"""Normalised observations are clipped to so many standard deviations."""


@dataclass(frozen=True)
class SourcePolicy:
    """A tanh network on normalised observations; with a single layer, a linear policy.

    Attributes:
        obs_mean: `[D]`.
        obs_std: `[D]`, positive.
        weights: one `[fan_in, fan_out]` matrix per layer.
        biases: one `[fan_out]` vector per layer.
    """

    obs_mean: FloatArray
    obs_std: FloatArray
    weights: tuple[FloatArray, ...]
    biases: tuple[FloatArray, ...]

    def __call__(self, obs: FloatArray) -> FloatArray:
        """Returns the deterministic actions.

        Args:
            obs: `[D]` or `[B, D]`.

        Returns:
            `[A]` or `[B, A]`, not yet clipped to the action bounds.
        """
        x = np.clip((obs - self.obs_mean) / self.obs_std, -OBS_CLIP, OBS_CLIP)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = np.tanh(x @ weight + bias)
        action: FloatArray = x @ self.weights[-1] + self.biases[-1]
        return action

    def save(self, path: Path) -> None:
        """Writes the policy as a compressed float32 `.npz`."""
        arrays = {"obs_mean": self.obs_mean, "obs_std": self.obs_std}
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            arrays[f"weight_{i}"] = weight
            arrays[f"bias_{i}"] = bias
        np.savez_compressed(path, **{k: np.asarray(v, np.float32) for k, v in arrays.items()})  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> SourcePolicy:
        """Reads a policy that `save` wrote."""
        with np.load(path) as file:
            arrays = dict(file)
        layers = range(sum(key.startswith("weight_") for key in arrays))
        return cls(
            obs_mean=arrays["obs_mean"],
            obs_std=arrays["obs_std"],
            weights=tuple(arrays[f"weight_{i}"] for i in layers),
            biases=tuple(arrays[f"bias_{i}"] for i in layers),
        )

    @classmethod
    def shipped(cls, task: str, level: str) -> SourcePolicy:
        """Loads a policy of the package.

        Args:
            task: `walker2d`, `halfcheetah` or `hopper`.
            level: `expert` or `medium`.

        Raises:
            DatasetError: the package has no such policy.
        """
        file = resources.files("raymimic") / "recording" / "policies" / f"{task}-{level}.npz"
        with resources.as_file(file) as path:
            if not path.is_file():
                raise DatasetError(f"no {level} policy for '{task}' ships with raymimic ({path})")
            return cls.load(path)
