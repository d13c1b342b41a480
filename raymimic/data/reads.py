"""The steps of a demonstration that an algorithm reads, group by group.

A loader gathers these windows and nothing else. An algorithm that does not declare its own reads
robomimic's one window: the same steps of every key.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property

from raymimic.config.config import Config

OBS, NEXT_OBS, NEXT_ACTIONS = "obs", "next_obs", "next_actions"
BOUNDED_ACTIONS, PAD_MASK = "bounded_actions", "pad_mask"
_GROUPS = (OBS, NEXT_OBS, "actions", "rewards", "dones", NEXT_ACTIONS)
_OPTIONAL = frozenset({NEXT_OBS, "rewards", "dones"})


@dataclass(frozen=True)
class Window:
    """Consecutive steps, counted from a sample's own step, which is 0.

    Attributes:
        start: the first step.
        stop: the step after the last.
    """

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __or__(self, other: Window) -> Window:
        """The shortest window that holds both."""
        return Window(min(self.start, other.start), max(self.stop, other.stop))

    def within(self, other: Window) -> slice:
        """Where this window lies in a longer one."""
        return slice(self.start - other.start, self.stop - other.start)


@dataclass(frozen=True)
class Reads:
    """The windows that an algorithm reads of each sample. None: nothing of this group.

    A step beyond an end of the demo repeats its first or last step, as in robomimic.

    Attributes:
        obs: steps of the observations, `obs/<key> [B, T, ...]`.
        next_obs: steps of which the observation that follows is read; a file that lacks them has
            them taken from the next row of `obs`.
        actions: steps of the actions `[B, T, A]`.
        rewards: steps of the rewards `[B, T]`.
        dones: steps of the ends of tasks `[B, T]`.
        next_actions: steps of which the action that follows is read, `[B, T, A]`. The last step of
            a demo repeats its own action.
        others: steps of further datasets, by name.
        pad_mask: whether batches carry `pad_mask [B, T, 1]`, true on those steps of the window of
            actions that are not padding.
        bounded_actions: whether actions have to be in [-1, 1] after normalisation.
        optional: the groups (`next_obs`, `rewards`, `dones`) that are left out of the batches where
            the data lack them. All others must be there.
    """

    obs: Window | None = None
    next_obs: Window | None = None
    actions: Window | None = None
    rewards: Window | None = None
    dones: Window | None = None
    next_actions: Window | None = None
    others: Mapping[str, Window] = field(default_factory=dict)
    pad_mask: bool = False
    bounded_actions: bool = False
    optional: frozenset[str] = frozenset()

    @cached_property
    def windows(self) -> dict[str, Window]:
        """The window of each group that is read."""
        named = {name: getattr(self, name) for name in _GROUPS}
        return {name: window for name, window in {**named, **self.others}.items() if window}

    @cached_property
    def span(self) -> Window:
        """The shortest window that holds all others."""
        span = Window(0, 1)
        for window in self.windows.values():
            span |= window
        return span

    @property
    def required(self) -> frozenset[str]:
        """The groups that must be there, under the names of `Algo.needs`."""
        flags = {PAD_MASK: self.pad_mask, BOUNDED_ACTIONS: self.bounded_actions}
        named = {name for name in self.windows if name not in (OBS, "actions")}
        return frozenset(named | {name for name, is_set in flags.items() if is_set}) - self.optional

    def __or__(self, other: Reads) -> Reads:
        """The windows that hold those of both."""

        def joined(a: Mapping[str, Window], b: Mapping[str, Window]) -> dict[str, Window]:
            return {k: a.get(k, b[k]) | b[k] if k in b else a[k] for k in {**a, **b}}

        windows = joined(self.windows, other.windows)
        return Reads(
            **{name: windows.pop(name, None) for name in _GROUPS},
            others=windows,
            pad_mask=self.pad_mask or other.pad_mask,
            bounded_actions=self.bounded_actions or other.bounded_actions,
            optional=(self.optional | other.optional) - self.required - other.required,
        )


def one_window(train: Config, needs: Collection[str] = ()) -> Reads:
    """The one window that robomimic reads of every key: `seq_length` and `frame_stack` steps.

    Args:
        train: `config.train`; `dataset_keys` and `hdf5_load_next_obs` name the groups.
        needs: the groups that must be there, see `Algo.needs`.
    """
    window = Window(1 - train.frame_stack, train.seq_length)
    read = {OBS, "actions", *train.dataset_keys, *needs} - {BOUNDED_ACTIONS, PAD_MASK}
    if train.hdf5_load_next_obs:
        read.add(NEXT_OBS)
    return Reads(
        **{name: window if name in read else None for name in _GROUPS},
        others=dict.fromkeys(sorted(read.difference(_GROUPS)), window),
        pad_mask=PAD_MASK in needs,
        bounded_actions=BOUNDED_ACTIONS in needs,
        optional=(_OPTIONAL & read) - frozenset(needs),
    )


@cache
def one_step(n_step: int = 1) -> Reads:
    """One transition, or n in a row that count as one.

    Args:
        n_step: steps whose rewards are summed; the observation and the action that follow are those
            after the last of them.
    """
    now, last, all_steps = Window(0, 1), Window(n_step - 1, n_step), Window(0, n_step)
    return Reads(
        obs=now,
        next_obs=last,
        actions=now,
        rewards=all_steps,
        dones=all_steps,
        next_actions=last,
    )
