"""Metrics, progress and storage."""

import io
from pathlib import Path

import pytest
import torch

from raymimic.errors import OutputError
from raymimic.training.metrics import MetricAccumulator
from raymimic.training.progress import ProgressReporter, duration
from raymimic.utils import storage


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
    progress.started(0)
    for epoch in (1, 2):
        progress.epoch(epoch, epoch * 10, 0.5, 100.0)
    progress.evaluated(2, "env return 7.0 [6.0, 8.0]")
    progress.epoch(3, 30, 0.25, 100.0)
    progress.close()
    shown = terminal.getvalue()
    assert shown.count("\n") == 1  # only the evaluation stays
    assert "\repoch 3/3 | step 30 | 100 steps/s | loss 0.25 | env return 7.0 [6.0, 8.0]" in shown
    lines = log.read_text().splitlines()
    assert len(lines) == 4
    assert "epoch 1/3" in lines[0]


def test_a_log_stream_gets_plain_lines_and_short_epochs_do_not_flood_it() -> None:
    stream = io.StringIO()
    progress = ProgressReporter(100, None, stream)
    for epoch in range(1, 101):
        progress.epoch(epoch, epoch, 1.0, 10.0)
    assert [line.split(" |")[0] for line in stream.getvalue().splitlines()] == [
        "epoch 1/100",
        "epoch 100/100",
    ]


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
