"""Windows of demonstrations, cut out of flat columns by index arithmetic."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from raymimic.data.schema import NEXT_OBS
from raymimic.data.store import DemoStore
from raymimic.errors import DatasetError

Batch = dict[str, Any]
"""Tensors ``[B, T, ...]`` by name; ``obs``, ``next_obs`` and ``goal_obs`` are dicts of them."""


class SequenceDataset(Dataset[Batch]):
    """Samples of a fixed number of time steps, as robomimic's class of the same name serves them.

    Sample ``i`` of a demo begins at its step ``i`` and is ``T = frame_stack - 1 + seq_length``
    steps long: ``frame_stack - 1`` steps of history and ``seq_length`` steps from ``i`` on. Where
    it reaches over an end of the demo the first or last step is repeated (padding on), or there
    is no such sample (padding off). Overlapping windows share the columns; none is stored.

    When a file has no ``next_obs`` and an algorithm needs it, the next row of ``obs`` stands in for
    it. The last step of a demo has no next row and repeats its own observation: exact enough
    where it is terminal, since what follows a terminal step carries no weight, and off by one time
    step where the demo was cut (a time limit).

    With ``goal_mode="last"`` a sample carries the last ``next_obs`` that any window of its demo
    begins at: the demo's last, or without sequence padding that of step ``length - seq_length``.

    Args:
        store: the demos.
        seq_length: steps from the sample's own on, at least 1.
        frame_stack: observations that a policy sees, the present one included, at least 1.
        pad_seq_length: whether windows may reach over the demo's end.
        pad_frame_stack: whether windows may reach over the demo's beginning.
        goal_mode: ``"last"`` or None.
        get_pad_mask: whether batches carry ``pad_mask [B, T, 1]``, true on steps that are not
            padding.
        load_next_obs: whether batches carry ``next_obs``, where the store can serve it.

    Raises:
        DatasetError: a demo is too short for a single window without padding.

    Source: robomimic/utils/dataset.py. Deviation: observations come in the store's float type, the
    file's own type is not kept; ``pad_mask`` is at the batch's top level only.
    """

    def __init__(
        self,
        store: DemoStore,
        *,
        seq_length: int = 1,
        frame_stack: int = 1,
        pad_seq_length: bool = True,
        pad_frame_stack: bool = True,
        goal_mode: str | None = None,
        get_pad_mask: bool = False,
        load_next_obs: bool = True,
    ) -> None:
        if goal_mode not in (None, "last"):
            raise ValueError(f"goal_mode must be None or 'last', not {goal_mode!r}")
        self.store = store
        self.seq_length = seq_length
        self.frame_stack = frame_stack
        self.goal_mode = goal_mode
        self.get_pad_mask = get_pad_mask
        self._first_step = 0 if pad_frame_stack else frame_stack - 1
        self._last_unused = 0 if pad_seq_length else seq_length - 1

        counts = store.layout.lengths - self._first_step - self._last_unused
        if counts.min() < 1:
            demo = store.layout.demos[int(counts.argmin())]
            raise DatasetError(
                f"dataset '{demo.path}': demo '{demo.name}' has {demo.length} samples, too few for"
                f" one window of seq_length {seq_length} and frame_stack {frame_stack} without"
                " padding; set train.pad_seq_length and train.pad_frame_stack, or leave it out"
            )
        self.layout_sizes: np.ndarray = counts
        """Samples of each demo of the layout, those of other workers included."""

        sizes = counts[store.owned]
        starts = np.cumsum(store.layout.lengths[store.owned]) - store.layout.lengths[store.owned]
        self._size = int(sizes.sum())
        self._ends = torch.from_numpy(np.cumsum(sizes)).to(store.device)
        # From a sample's index to its row: demos before it have fewer samples than rows.
        shift = starts + self._first_step - (np.cumsum(sizes) - sizes)
        self._row_shift = torch.from_numpy(shift).to(store.device)
        self._window = torch.arange(1 - frame_stack, seq_length, device=store.device)
        # With one step a sample, samples are rows and no demo boundary is ever crossed.
        self._samples_are_rows = len(self._window) == 1

        derived = store.layout.derive_next_obs
        self._obs = [key for key in store.columns if key.startswith("obs/")]
        self._other = [k for k in store.columns if not k.startswith(("obs/", f"{NEXT_OBS}/"))]
        self._has_next_obs = derived or any(k.startswith(f"{NEXT_OBS}/") for k in store.columns)
        self._serves_next_obs = load_next_obs and self._has_next_obs
        self._next_row: Tensor | None = None
        if derived:
            rows = torch.arange(store.num_transitions, device=store.device)
            last = (store.starts + store.lengths - 1).repeat_interleave(store.lengths)
            self._next_row = torch.minimum(rows + 1, last)
        if goal_mode is not None and not self._has_next_obs:
            raise ValueError("goal_mode='last' takes next_obs, which the store was not asked for")

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Batch:
        """One sample, ``[T, ...]``; ``goal_obs`` has no time axis."""
        if not -self._size <= index < self._size:
            raise IndexError(f"sample {index} of {self._size}")
        batch = self.gather(torch.tensor([index % self._size], device=self.store.device))
        return {
            key: {k: v[0] for k, v in value.items()} if isinstance(value, dict) else value[0]
            for key, value in batch.items()
        }

    @property
    def sample_bytes(self) -> int:
        """Memory of one sample of a batch."""
        rows = self.store.num_bytes // max(self.store.num_transitions, 1)
        return max(rows, 1) * len(self._window)

    def gather(self, indices: Tensor) -> Batch:
        """A whole batch, by one gather per key.

        Args:
            indices: samples, int64 ``[B]``, on the store's device, each in ``[0, len)``.

        Returns:
            ``obs/<key> [B, T, ...]``, ``next_obs`` alike, ``goal_obs/<key> [B, ...]``,
            ``actions [B, T, A]``, ``rewards [B, T]``, ``dones [B, T]``, further dataset keys,
            ``index [B]`` and ``pad_mask [B, T, 1]``: each where it is asked for and there.
        """
        demos: Tensor | None = None
        valid: Tensor | None = None
        if self._samples_are_rows:
            rows = indices
        else:
            demos = self._demo_of(indices)
            first, length = self.store.starts[demos, None], self.store.lengths[demos, None]
            steps = (indices + self._row_shift[demos])[:, None] + self._window
            clamped = torch.minimum(torch.maximum(steps, first), first + length - 1)
            valid = steps == clamped
            rows = clamped.reshape(-1)

        batch: Batch = {key: self._take(key, rows) for key in self._other}
        batch["obs"] = {key.removeprefix("obs/"): self._take(key, rows) for key in self._obs}
        if self._serves_next_obs:
            batch[NEXT_OBS] = {
                key.removeprefix("obs/"): self._take(*self._next(key, rows)) for key in self._obs
            }
        if self.goal_mode is not None:
            demos = self._demo_of(indices) if demos is None else demos
            last = self.store.starts[demos] + self.store.lengths[demos] - 1 - self._last_unused
            batch["goal_obs"] = {
                key.removeprefix("obs/"): self._column(*self._next(key, last)) for key in self._obs
            }
        if self.get_pad_mask:
            if valid is None:
                valid = torch.ones(len(indices), 1, dtype=torch.bool, device=indices.device)
            batch["pad_mask"] = valid[:, :, None]
        batch["index"] = indices
        return batch

    def _demo_of(self, indices: Tensor) -> Tensor:
        return torch.searchsorted(self._ends, indices, right=True)

    def _next(self, key: str, rows: Tensor) -> tuple[str, Tensor]:
        """Column and rows that hold what follows ``obs`` column ``key`` at ``rows``."""
        if self._next_row is not None:
            return key, self._next_row[rows]
        return f"{NEXT_OBS}/{key.removeprefix('obs/')}", rows

    def _column(self, key: str, rows: Tensor) -> Tensor:
        return self.store.columns[key].index_select(0, rows)

    def _take(self, key: str, rows: Tensor) -> Tensor:
        """Rows of a column as windows: ``[B * T]`` to ``[B, T, ...]``."""
        values = self._column(key, rows)
        return values.view(-1, len(self._window), *values.shape[1:])
