"""Metrics, progress and storage."""

import contextlib
import io
import logging
import os
import pty
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
import torch

from raymimic import storage
from raymimic.errors import OutputError
from raymimic.sweep.spec.sweep_file import sweep_from_dict
from raymimic.sweep.trials.live import LiveTable
from raymimic.terminal import Once, doing, duration, shown
from raymimic.training.metrics import MetricAccumulator
from raymimic.training.progress import ProgressReporter


def test_means_weigh_by_samples_sums_add_and_maxima_are_kept() -> None:
    metrics = MetricAccumulator({"count": "sum", "peak": "max"})
    metrics.add({"loss": torch.tensor(1.0), "count": 2.0, "peak": torch.tensor(-3.0)}, weight=8)
    metrics.add({"loss": torch.tensor(4.0), "count": 3.0, "peak": torch.tensor(-5.0)}, weight=4)
    assert metrics.compute() == {"loss": pytest.approx(2.0), "count": 5.0, "peak": -3.0}


def test_a_metric_of_some_steps_is_a_mean_over_those() -> None:
    metrics = MetricAccumulator()
    for step in range(1, 5):
        metrics.add({"every": float(step)} | ({"second": float(step)} if step % 2 == 0 else {}), 1)
    assert metrics.compute() == {"every": 2.5, "second": 3.0}


def test_a_step_without_samples_does_not_count() -> None:
    metrics = MetricAccumulator({"peak": "max", "total": "sum"})
    metrics.add({"loss": 9.0, "peak": 9.0, "total": 9.0}, weight=0)
    metrics.add({"loss": 1.0, "peak": 1.0, "total": 1.0}, weight=2)
    assert metrics.compute() == {"loss": 1.0, "peak": 1.0, "total": 1.0}


def test_many_steps_are_folded_without_changing_the_result() -> None:
    metrics = MetricAccumulator({"peak": "max", "total": "sum"})
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).double()
    for value in values:
        metrics.add({"loss": value, "peak": value, "total": value}, weight=3)
    result = metrics.compute()
    assert result["loss"] == pytest.approx(values.mean().item(), rel=1e-12)
    assert result["peak"] == values.max().item()
    assert result["total"] == pytest.approx(values.sum().item(), rel=1e-10)


def test_metrics_do_not_keep_the_graph_alive() -> None:
    x = torch.ones(2, requires_grad=True)
    metrics = MetricAccumulator()
    metrics.add({"loss": x.sum()}, weight=1)
    assert metrics.compute() == {"loss": 2.0}


@pytest.mark.parametrize(
    ("seconds", "text"), [(11.6, "12 s"), (187, "3 min 07 s"), (7500, "2 h 05 min"), (-1, "0 s")]
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_one_live_line_and_a_log_has_them_all(tmp_path: Path) -> None:
    terminal, log = Terminal(), tmp_path / "logs" / "log.txt"
    progress = ProgressReporter(3, log, terminal)
    progress.started(0, steps_per_epoch=10)
    for epoch in (1, 2):
        progress.epoch(epoch, epoch * 10, {"loss": 0.5}, 100.0)
    progress.evaluated(2, "env return 7.0 [6.0, 8.0]")
    progress.epoch(3, 30, {"loss": 0.25, "validation": 0.375}, 100.0)
    progress.close()
    terminal_text = terminal.getvalue()
    assert terminal_text.count("\n") == 1  # only the evaluation stays
    last = "epoch 3/3 | step 30 | 100 steps/s | 0 s left | loss 0.25 | validation 0.375 | env re"
    assert f"\r{last[:78]}…" in terminal_text
    lines = log.read_text().splitlines()
    assert len(lines) == 4
    assert "epoch 1/3" in lines[0]


def test_a_log_stream_gets_plain_lines_and_short_epochs_do_not_flood_it() -> None:
    stream = io.StringIO()
    progress = ProgressReporter(100, None, stream)
    for epoch in range(1, 101):
        progress.epoch(epoch, epoch, {"loss": 1.0}, 10.0)
    assert [line.split(" |")[0] for line in stream.getvalue().splitlines()] == [
        "epoch 1/100",
        "epoch 100/100",
    ]


@contextlib.contextmanager
def terminal_of(columns: int) -> Iterator[tuple[IO[str], Callable[[], str]]]:
    """A real terminal of so many columns, and all that was written to it so far."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    os.set_blocking(ours, False)
    text = ""

    def written() -> str:
        nonlocal text
        with contextlib.suppress(BlockingIOError):
            while data := os.read(ours, 1 << 16):
                text += data.decode()
        return text

    with os.fdopen(theirs, "w") as stream:
        yield stream, written
    os.close(ours)


def test_the_live_line_keeps_to_its_row_of_the_terminal() -> None:
    with terminal_of(columns=40) as (stream, written):
        progress = ProgressReporter(3, None, stream)
        progress.phase("loading data and networks; waiting for the first reset of Walker2d-v5")
        progress.started(0, steps_per_epoch=10)
        progress.evaluated(0, "Walker2d-v5 return 1086.2 [1033.9, 1146.1]")
        progress.within(1, 5, 100.0)
        progress.epoch(1, 10, {"loss": 0.5}, 100.0)
        termios.tcsetwinsize(stream, (24, 20))
        progress.within(2, 15, 100.0)
        progress.close()
        head, tail = written().split("\r\n")  # the evaluation stays
        *updates, evaluation = head.split("\r")
        assert evaluation == "evaluated epoch 0: Walker2d-v5 return 1086.2 [1033.9, 1146.1]"
        updates += tail.split("\r")
    assert max(map(len, updates)) == 39
    assert "epoch 2/3 | step 1…".ljust(39) in updates


def test_the_remaining_time_counts_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    stream = Terminal()
    progress = ProgressReporter(10, None, stream)
    progress.started(4, steps_per_epoch=100)  # 600 steps are left
    now += 30.0
    progress.within(5, 410, 1.0)  # 3 s a step
    assert "29 min 30 s left" in stream.getvalue()
    now += 30.0
    progress.epoch(5, 420, {}, 1.0)
    assert "29 min 00 s left" in stream.getvalue()
    now += 1680.0
    progress.within(10, 980, 1.0)
    assert "1 min 00 s left" in stream.getvalue()


def test_off_a_terminal_a_long_epoch_gives_a_sign_of_life_each_minute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    stream, log = io.StringIO(), tmp_path / "log.txt"
    progress = ProgressReporter(2, log, stream)
    for _ in range(130):
        progress.phase("placing 2 workers")
        now += 1.0
    progress.started(0, steps_per_epoch=1000)
    for step in range(1, 131):
        progress.within(1, step, 1.0)
        now += 1.0
    progress.close()
    expected = [
        "placing 2 workers …",
        "placing 2 workers … 1 min 00 s",
        "placing 2 workers … 2 min 00 s",
        "epoch 1/2 | step 61 | 1 steps/s | 31 min 47 s left",
        "epoch 1/2 | step 121 | 1 steps/s | 31 min 03 s left",
    ]
    assert stream.getvalue().splitlines() == expected
    assert [line[20:] for line in log.read_text().splitlines()] == expected


def test_a_warning_appears_once(caplog: pytest.LogCaptureFixture) -> None:
    stream = io.StringIO()
    progress = ProgressReporter(2, None, stream)
    for text in ("one", "two", "one"):
        progress.warn(text)
    assert stream.getvalue().splitlines() == ["warning: one", "warning: two"]

    handler = logging.StreamHandler(said := io.StringIO())
    handler.addFilter(Once())
    log = logging.Logger("of a test")
    log.addHandler(handler)
    for number in (1, 2, 1):
        log.warning("number %d", number)
    assert said.getvalue().splitlines() == ["number 1", "number 2"]


def test_a_task_is_named_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, text in ((Terminal(), "\rstarting …\r          \r"), (io.StringIO(), "")):
        monkeypatch.setattr("sys.stderr", stream)
        with doing("starting"):
            pass
        assert stream.getvalue() == text


def test_paths_are_relative_where_they_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "runs" / "a") == "runs/a"
    assert shown(str(tmp_path.parent)) == str(tmp_path.parent)
    assert shown("s3://bucket/runs") == "s3://bucket/runs"


def test_a_terminal_that_is_closed_does_not_disturb_who_ignores_the_hangup(tmp_path: Path) -> None:
    ours, terminal = pty.openpty()
    sweep = {"algo": "td3_bc", "dataset": "d.hdf5", "space": {"algo.alpha": {"grid": [1.0, 2.0]}}}
    with os.fdopen(terminal, "w") as stream:
        progress = ProgressReporter(3, tmp_path / "log.txt", stream)
        progress.epoch(1, 10, {"loss": 0.5}, 100.0)
        table = LiveTable(sweep_from_dict(sweep), quiet=False, stream=stream)
        table.line("a sweep")
        os.close(ours)
        progress.epoch(2, 20, {"loss": 0.5}, 100.0)
        progress.line("a line")
        progress.close()
        table._time = float("-inf")
        table.show([])
        table.line("another line")
    assert "a line" in (tmp_path / "log.txt").read_text()


def test_a_log_on_a_full_disk_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    progress = ProgressReporter(3, tmp_path / "log.txt", io.StringIO())
    with pytest.raises(OutputError, match=r"log\.txt': No space left on device; make room there"):
        progress.line("a line")
    progress.close()


def test_a_written_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = str(tmp_path / "a" / "b.bin")
    storage.write_bytes(target, b"one")
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match="cannot write"):
        storage.write_bytes(str(tmp_path / "file" / "b.bin"), b"two")
    assert storage.read_bytes(target) == b"one"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.bin"]


def test_the_same_calls_serve_a_uri() -> None:
    uri = "memory://bucket/run/models/x.pth"
    storage.write_bytes(uri, b"weights")
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == b"weights"
    assert storage.subfolders("memory://bucket/run") == ["models"]
    storage.remove(uri)
    storage.remove(uri)
    assert not storage.exists(uri)
    with pytest.raises(OutputError, match="nosuchscheme"):
        storage.write_bytes("nosuchscheme://x/y", b"")


def test_a_uri_is_tried_before_long_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.check_writable("memory://bucket/tried/a.json")
    assert storage.files("memory://bucket/tried") == []
    storage.write_bytes("memory://bucket/tried/a.json", b"old")
    storage.check_writable("memory://bucket/tried/a.json")
    assert storage.read_bytes("memory://bucket/tried/a.json") == b"old"
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(storage, "_RETRY_AFTER_S", ())
    for uri, reads, message in (
        ("nosuchscheme://x/y", [], "nosuchscheme"),
        ("memory://bucket/tried", [], "it is a folder"),
        ("memory://bucket/a.pth", ["memory://bucket/a.pth"], "the command reads this file"),
        (f"file://{tmp_path}/file/a.json", [], "file/a.json"),
    ):
        with pytest.raises(OutputError, match=message):
            storage.check_writable(uri, reads)
