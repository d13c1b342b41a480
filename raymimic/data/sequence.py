"""Windows of demonstrations, cut out of flat columns by index arithmetic."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from raymimic.data.reads import NEXT_ACTIONS, NEXT_OBS, OBS, Reads, Window
from raymimic.data.store import DemoStore
from raymimic.errors import DatasetError

Batch = dict[str, Any]
"""Tensors `[B, T, ...]` by name; `obs`, `next_obs` and `goal_obs` are dicts of them."""


class SequenceDataset(Dataset[Batch]):
    """Samples of a fixed number of time steps, as robomimic's class of the same name serves them.

    Sample `i` of a demo begins at its step `i` and is `T = frame_stack - 1 + seq_length` steps
    long: `frame_stack - 1` steps of history and `seq_length` steps from `i` on. Where it reaches
    over an end of the demo the first or last step is repeated (padding on), or there is no such
    sample (padding off). Overlapping windows share the columns; none is stored.

    When a file has no `next_obs` and an algorithm needs it, the next row of `obs` stands in for it.
    The last step of a demo has no next row and repeats its own observation: exact enough where it
    is terminal, since a step after a terminal one carries no weight, and off by one time step
    where the demo was cut (a time limit). The same holds of `next_actions`.

    With `goal_mode="last"` a sample carries the last `next_obs` that any window of its demo begins
    at: the demo's last, or without sequence padding that of step `length - seq_length`.

    Args:
        store: the demos.
        seq_length: steps from the sample's own on, at least 1.
        frame_stack: observations that a policy sees, the present one included, at least 1.
        pad_seq_length: whether windows may reach over the demo's end.
        pad_frame_stack: whether windows may reach over the demo's beginning.
        goal_mode: `"last"` or None.
        get_pad_mask: whether batches carry `pad_mask [B, T, 1]`, true on steps that are not
            padding.
        load_next_obs: whether batches carry `next_obs`, where the store can serve it.
        reads: the windows to gather instead of these T steps of every column; `pad_mask` is then of
            the actions' window. Which samples there are stays as it is.

    Raises:
        DatasetError: a demo is too short for a single window without padding.

    Source: robomimic/utils/dataset.py. Deviation: observations come in the store's float type, the
    file's own type is not kept but for images, which stay bytes; `pad_mask` is at the batch's top
    level only.
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
        reads: Reads | None = None,
    ) -> None:
        if goal_mode not in (None, "last"):
            raise ValueError(f"goal_mode must be None or 'last', not {goal_mode!r}")
        self.store = store
        self.seq_length = seq_length
        self.frame_stack = frame_stack
        self.goal_mode = goal_mode
        self._first_step = 0 if pad_frame_stack else frame_stack - 1
        self._last_unused = 0 if pad_seq_length else seq_length - 1
        self._number_samples()

        whole = Window(1 - frame_stack, seq_length)
        windows = _windows_of_all(store, whole, load_next_obs) if reads is None else reads.windows
        has_next_obs = store.layout.derive_next_obs or any(
            key.startswith(f"{NEXT_OBS}/") for key in store.columns
        )
        if goal_mode is not None and not has_next_obs:
            raise ValueError("goal_mode='last' takes next_obs, which the store was not asked for")
        self._obs = [key for key in store.columns if key.startswith("obs/")]
        self._windows = {
            name: window
            for name, window in windows.items()
            if name in (OBS, NEXT_ACTIONS)
            or (name == NEXT_OBS and has_next_obs)
            or name in store.columns
        }
        self._span = whole if reads is None else reads.span
        self._pad_window: Window | None = None
        if reads.pad_mask if reads is not None else get_pad_mask:
            self._pad_window = windows.get("actions", self._span)
        self._steps = torch.arange(self._span.start, self._span.stop, device=store.device)
        # With the present step alone, samples are rows and no demo boundary is ever crossed.
        self._samples_are_rows = self._span == Window(0, 1) and len(whole) == 1
        self._next_row = self._rows_that_follow()

    def _number_samples(self) -> None:
        """Counts the samples of each demo, and prepares the way from a sample to its row."""
        store = self.store
        counts = store.layout.lengths - self._first_step - self._last_unused
        if counts.min() < 1:
            demo = store.layout.demos[int(counts.argmin())]
            raise DatasetError(
                f"dataset '{demo.path}': demo '{demo.name}' has {demo.length} samples, too few for"
                f" one window of seq_length {self.seq_length} and frame_stack {self.frame_stack}"
                " without padding; set train.pad_seq_length and train.pad_frame_stack, or leave it"
                " out"
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

    def _rows_that_follow(self) -> Tensor | None:
        """The next row of each within its demo, itself for the last; None where none is asked."""
        store = self.store
        if not store.layout.derive_next_obs and NEXT_ACTIONS not in self._windows:
            return None
        rows = torch.arange(store.num_transitions, device=store.device)
        last = (store.starts + store.lengths - 1).repeat_interleave(store.lengths)
        return torch.minimum(rows + 1, last)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Batch:
        """One sample, `[T, ...]`; `goal_obs` has no time axis."""
        if not -self._size <= index < self._size:
            raise IndexError(f"sample {index} of {self._size}")
        batch = self.gather(torch.tensor([index % self._size], device=self.store.device))
        return {
            key: {k: v[0] for k, v in value.items()} if isinstance(value, dict) else value[0]
            for key, value in batch.items()
        }

    @property
    def sample_bytes(self) -> int:
        """Memory of one sample of a batch, at least 1."""
        columns, rows = self.store.columns, max(self.store.num_transitions, 1)

        def row_bytes(group: str) -> int:
            if group in (OBS, NEXT_OBS):
                return sum(columns[key].nbytes for key in self._obs) // rows
            return columns["actions" if group == NEXT_ACTIONS else group].nbytes // rows

        total = sum(len(window) * row_bytes(name) for name, window in self._windows.items())
        return max(total, 1)

    def gather(self, indices: Tensor) -> Batch:
        """A whole batch, by one gather per key.

        Args:
            indices: samples, int64 `[B]`, on the store's device, each in `[0, len)`.

        Returns:
            `obs/<key> [B, T, ...]`, `next_obs` alike, `goal_obs/<key> [B, ...]`,
            `actions [B, T, A]`, `next_actions` alike, `rewards [B, T]`, `dones [B, T]`, further
            dataset keys, `index [B]` and `pad_mask [B, T, 1]`: each where it is asked for and
            there. T is the length of the group's window.
        """
        demos = None if self._samples_are_rows else self._demo_of(indices)
        rows, valid = self._rows_of(indices, demos)

        def cut(x: Tensor, window: Window) -> Tensor:
            return x if window == self._span else x[:, window.within(self._span)]

        batch: Batch = {}
        for name, window in self._windows.items():
            wanted = cut(rows, window)
            if name == OBS:
                batch[name] = {key[4:]: self._take(key, wanted) for key in self._obs}
            elif name == NEXT_OBS:
                batch[name] = {key[4:]: self._take(*self._next(key, wanted)) for key in self._obs}
            elif name == NEXT_ACTIONS:
                assert self._next_row is not None
                batch[name] = self._take("actions", self._next_row[wanted])
            else:
                batch[name] = self._take(name, wanted)
        if self.goal_mode is not None:
            demos = self._demo_of(indices) if demos is None else demos
            last = self.store.starts[demos] + self.store.lengths[demos] - 1 - self._last_unused
            batch["goal_obs"] = {key[4:]: self._column(*self._next(key, last)) for key in self._obs}
        if self._pad_window is not None:
            valid = torch.ones_like(rows, dtype=torch.bool) if valid is None else valid
            batch["pad_mask"] = cut(valid, self._pad_window)[:, :, None]
        batch["index"] = indices
        return batch

    def _rows_of(self, indices: Tensor, demos: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Rows `[B, S]` of all steps that any window has, and which of them are no padding.

        Args:
            indices: samples `[B]`.
            demos: their demos `[B]`; None where samples are rows.
        """
        if demos is None:
            return indices[:, None], None
        first, length = self.store.starts[demos, None], self.store.lengths[demos, None]
        steps = (indices + self._row_shift[demos])[:, None] + self._steps
        rows = torch.minimum(torch.maximum(steps, first), first + length - 1)
        return rows, steps == rows

    def _demo_of(self, indices: Tensor) -> Tensor:
        return torch.searchsorted(self._ends, indices, right=True)

    def _next(self, key: str, rows: Tensor) -> tuple[str, Tensor]:
        """Column and rows of the observations that follow those of `obs` column `key`."""
        if self.store.layout.derive_next_obs:
            assert self._next_row is not None
            return key, self._next_row[rows]
        return f"{NEXT_OBS}/{key[4:]}", rows

    def _column(self, key: str, rows: Tensor) -> Tensor:
        return self.store.rows(key, rows)

    def _take(self, key: str, rows: Tensor) -> Tensor:
        """Rows `[B, T]` of a column as windows `[B, T, ...]`."""
        values = self._column(key, rows.reshape(-1))
        return values.view(*rows.shape, *values.shape[1:])


def _windows_of_all(store: DemoStore, whole: Window, load_next_obs: bool) -> dict[str, Window]:
    """The same window of every column, as robomimic serves them."""
    others = [k for k in store.columns if not k.startswith(("obs/", f"{NEXT_OBS}/"))]
    groups = [*others, OBS, *([NEXT_OBS] if load_next_obs else [])]
    return dict.fromkeys(groups, whole)
