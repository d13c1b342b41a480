"""The output of a sweep that runs, on a terminal and in a log."""

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import termios
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sweeps import small_spec

from raymimic.sweep.outcome.result import TrialResult
from raymimic.sweep.spec.sweep_spec import SweepSpec
from raymimic.sweep.trials import live
from raymimic.sweep.trials.live import LiveTable

ROWS, COLUMNS = 14, 40


class Screen:
    """As much of a terminal as is needed here: it wraps, scrolls, moves up and erases."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self.lines, self.y, self.x = [""] * rows, 0, 0

    def feed(self, text: str) -> None:
        for part in re.findall(r"\x1b\[\d*[A-Z]|.|\n", text):
            if part == "\n":
                self._down()
            elif part == "\r":
                self.x = 0
            elif part in ("\x1b[K", "\x1b[J"):
                self.lines[self.y] = self.lines[self.y][: self.x]
                if part == "\x1b[J":
                    self.lines[self.y + 1 :] = [""] * (self.rows - self.y - 1)
            elif part.startswith("\x1b"):
                assert part.endswith("A")
                self.y = max(0, self.y - int(part[2:-1]))
            else:
                if self.x == self.columns:
                    self.x = 0
                    self._down()
                line = self.lines[self.y].ljust(self.x)
                self.lines[self.y] = line[: self.x] + part + line[self.x + 1 :]
                self.x += 1

    def _down(self) -> None:
        if self.y == self.rows - 1:
            self.lines = [*self.lines[1:], ""]
        else:
            self.y += 1

    @property
    def shown(self) -> list[str]:
        return [line.rstrip() for line in self.lines if line.strip()]


class Terminal:
    """A pseudo-terminal, and its screen as a person sees it."""

    def __init__(self, rows: int, columns: int) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        os.set_blocking(self._ours, False)
        self.stream = os.fdopen(theirs, "w")
        self.screen = Screen(rows, columns)

    def print(self, text: str) -> None:
        """Prints as another logger or process does."""
        self.stream.write(text)
        self.stream.flush()

    @property
    def shown(self) -> list[str]:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.screen.feed(os.read(self._ours, 1 << 16).decode())
        return self.screen.shown

    def close(self) -> None:
        self.stream.close()
        os.close(self._ours)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal(ROWS, COLUMNS)
    yield terminal
    terminal.close()


@pytest.fixture
def spec(tmp_path: Path) -> SweepSpec:
    space = {
        "algo.alpha": {"grid": [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]},
        "algo.target_tau": {"grid": [0.005, 0.02]},
    }
    settings = {"observation.modalities.obs.low_dim": ["flat"], "train.num_epochs": 10}
    return small_spec(tmp_path, seeds=[1], space=space, set=settings)


@pytest.fixture(autouse=True)
def _every_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_INTERVAL_S", 0.0)
    monkeypatch.setattr(live, "_PLAIN_INTERVAL_S", 0.0)


def begin(spec: SweepSpec, number: int) -> TrialResult:
    return TrialResult.begun(spec.trials()[number], "")


def test_a_narrow_low_terminal_holds_one_table_and_every_line(
    spec: SweepSpec, terminal: Terminal
) -> None:
    live_table = LiveTable(spec, quiet=False, stream=terminal.stream)
    live_table.line("results go to a folder whose path is longer than a line of the terminal")
    results = [begin(spec, number) for number in range(3)]
    for epoch in range(1, 4):
        live_table.reached(results[0].trial_id, epoch, new=True)
        live_table.show(results)
        terminal.print(f"WARNING: someone else, {epoch}\n")
    over = replace(results[0], status="finished", curve=[(100, 9.0)], best=9.0, last=7.0)
    live_table.ended(over)
    live_table.show([over, *results[1:]])
    live_table.show([over, *results[1:]])
    shown = terminal.shown
    text = "\n".join(shown)
    assert [line for line in shown if "WARNING" in line] == [
        f"WARNING: someone else, {epoch}" for epoch in (1, 2, 3)
    ]
    assert "finished: alpha_0.5_target_tau_0.005, se\ned 1, best 9, last 7" in text
    assert text.count("of 12 trials") == 1
    assert text.count("#  alpha") == 1
    assert "1 finished, 2 running of 12 trials" in text
    assert all(len(line) <= COLUMNS for line in shown)

    live_table.clear()
    terminal.print("the end\n")
    assert terminal.shown[-1] == "the end"
    assert "#  alpha" not in "\n".join(terminal.shown)


def test_many_settings_do_not_outgrow_the_terminal(spec: SweepSpec, terminal: Terminal) -> None:
    live_table = LiveTable(spec, quiet=False, stream=terminal.stream)
    results = [begin(spec, number) for number in range(12)]
    for _ in range(3):
        live_table.show(results)
    shown = terminal.shown
    assert len(shown) < ROWS
    assert shown[0].startswith("12 running of 12 trials | 0 s")
    assert shown[1].startswith("alpha_0.5_target_tau_0.005, seed 1: ")
    assert shown[-1].startswith("and ")
    assert shown[-1].endswith(" settings more")


def test_the_time_that_is_left_follows_from_the_epochs_trained_here(
    spec: SweepSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, now = io.StringIO(), [1000.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    live_table = LiveTable(spec, quiet=False, stream=stream)
    first, second = begin(spec, 0), begin(spec, 1)
    live_table.reached(first.trial_id, 6, new=False)  # in an earlier session
    live_table.began(first)
    live_table.began(replace(second, curve=[(100, 1.0)]))
    now[0] += 60.0
    live_table.show([first, second])
    live_table.reached(first.trial_id, 8, new=True)
    live_table.reached(second.trial_id, 1, new=True)
    live_table.show([first, second])
    # 3 epochs took a minute; 2 + 9 of these trials and 10 of each other are left.
    assert stream.getvalue().splitlines() == [
        "started: alpha_0.5_target_tau_0.005, seed 1",
        "going on: alpha_0.5_target_tau_0.02, seed 1",
        "2 running of 12 trials | 1 min 00 s"
        " | alpha_0.5_target_tau_0.005, seed 1: epoch 6/10"
        " | alpha_0.5_target_tau_0.02, seed 1: epoch 0/10",
        "2 running of 12 trials | 1 min 00 s | 37 min 00 s left"
        " | alpha_0.5_target_tau_0.005, seed 1: epoch 8/10"
        " | alpha_0.5_target_tau_0.02, seed 1: epoch 1/10",
    ]
