"""Spools that were damaged, or made by somebody who means harm."""

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import PROGRAMS

from raymimic.errors import OutputError
from raymimic.storage import MAX_JSON_BYTES, read_json, write_json
from raymimic.tracking.journal import (
    Cursor,
    JournalReader,
    JournalWriter,
    artifact_file,
    check_spool,
    pending,
    records_of_epoch,
    run_id_of,
    spool_dir_of,
)
from raymimic.tracking.mlflow_tracker import sync, undelivered_parts

EPOCH: dict[str, Any] = {"type": "epoch", "time": 1, "epoch": 1, "step": 5, "metrics": {"x": 0.5}}
START: dict[str, Any] = {
    **{"type": "start", "time": 1, "key": "k", "tracking_uri": "http://h", "experiment": "e"},
    **{"run_name": None, "params": {"a": "1"}, "tags": {}, "host": "h", "pid": 7},
}
FILE: dict[str, Any] = {"type": "artifact", "time": 1, "copy": "artifacts/a/b"}
FILE["artifact_path"] = "figures/all"

DAMAGED: list[str] = [
    *("", "nonsense", "[1, 2]", "3", "null", '"epoch"', "{", "[" * 100_000, '{"type": 1}'),
    *("\x00\x01", "1" * 5000, "x" * (MAX_JSON_BYTES + 9)),
    *(json.dumps(EPOCH | {key: None}) for key in ("type", "time", "epoch", "step", "metrics")),
    *(json.dumps({k: v for k, v in EPOCH.items() if k != key}) for key in EPOCH),
    *(json.dumps(EPOCH | {"epoch": value}) for value in (-1, 1.5, True, "1", 2**63, [1])),
    *(json.dumps(EPOCH | {"time": value}) for value in (float("nan"), float("inf"), 1e3, -5)),
    *(json.dumps(EPOCH | {"metrics": value}) for value in ([], {"x": "1"}, {"x": None}, 5)),
    json.dumps(EPOCH | {"metrics": {"x": 10**400}}),
    *(json.dumps(EPOCH | {"type": value}) for value in ("start", "artifact", "finish", "later")),
    *(json.dumps(START | {"pid": value}) for value in (0, -1, 2**40, "7", True)),
    *(json.dumps(START | {key: 5}) for key in START if key not in ("time", "pid")),
    *(json.dumps(START | {"params": value}) for value in ({"a": 1}, {"a": None}, {"a": "\0"})),
    *(json.dumps(FILE | {"copy": value}) for value in (None, 5, ["a"], "a\0b")),
    *(json.dumps(FILE | {"artifact_path": v}) for v in (5, "", "/etc", "../x", "a/../b", "a\0")),
    json.dumps({"type": "finish", "time": 1, "status": "DONE"}),
    json.dumps({"type": "tags", "time": 1, "tags": {"a": 5}}),
]


def test_a_damaged_line_costs_no_other(tmp_path: Path) -> None:
    good = [START, EPOCH, EPOCH | {"metrics": {"x": float("nan"), "y": 3}}, FILE]
    lines = [json.dumps(good[i % len(good)]) + "\n" + bad for i, bad in enumerate(DAMAGED)]
    (tmp_path / "journal.jsonl").write_text("\n".join(lines) + "\n")
    reader = JournalReader(tmp_path)
    records = reader.read()
    assert len(records) == len(DAMAGED)
    assert reader.damaged == len(DAMAGED) - 1  # one is empty
    assert records[-1].end <= (tmp_path / "journal.jsonl").stat().st_size
    assert reader.read() == []


def test_halves_of_characters_do_not_stop_a_delivery(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path)
    writer.append({"type": "tags", "time": 1, "tags": {"dataset": "caf\udce9 é 😀"}})
    writer.close()
    (record,) = JournalReader(tmp_path).read()
    assert record.data["tags"] == {"dataset": "caf? é 😀"}


@pytest.mark.parametrize(
    "stored",
    [
        *("", "[]", "null", "{torn", '{"run_id": 5, "offset": 0}', "[" * 100_000),
        *(json.dumps({"run_id": "r", "offset": value}) for value in (-1, 1.5, "9", None, 3, 10**9)),
    ],
)
def test_a_damaged_cursor_starts_again(tmp_path: Path, stored: str) -> None:
    JournalWriter(tmp_path).append(EPOCH)
    (tmp_path / "cursor.json").write_text(stored)
    assert Cursor.load(tmp_path) == Cursor()
    assert pending(tmp_path) == 1


def test_a_cursor_keeps_only_records_of_files(tmp_path: Path) -> None:
    JournalWriter(tmp_path).append(EPOCH)
    end = (tmp_path / "journal.jsonl").stat().st_size
    deferred = [FILE, {"copy": "x"}, 5, FILE | {"copy": 1}]
    stored = {"run_id": "r", "offset": end, "deferred": deferred}
    (tmp_path / "cursor.json").write_text(json.dumps(stored))
    assert Cursor.load(tmp_path) == Cursor("r", end, [FILE])
    assert pending(tmp_path) == 1


def test_a_long_journal_is_read_a_few_records_at_a_time(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path)
    for number in range(5):
        writer.append(EPOCH | {"epoch": number})
    size = (tmp_path / "journal.jsonl").stat().st_size
    reader = JournalReader(tmp_path)
    first = reader.read(at_most=2)
    assert [record.data["epoch"] for record in first] == [0, 1]
    assert reader.offset == first[-1].end
    assert [r.data["epoch"] for r in reader.read(until=size - 1)] == [2, 3]
    assert [r.data["epoch"] for r in reader.stream()] == [4]
    assert [r.data["epoch"] for r in JournalReader(tmp_path, first[0].end).read(1)] == [1]
    writer.append(EPOCH | {"epoch": 3, "metrics": {"later": 1.0}})
    writer.append(EPOCH | {"epoch": 3, "time": 99})
    found = records_of_epoch(tmp_path, 3, 2 * size)
    assert [record.data["metrics"] for record in found] == [EPOCH["metrics"], {"later": 1.0}]
    assert 99 not in [record.data["time"] for record in found]
    assert [r.data["epoch"] for r in records_of_epoch(tmp_path, 3, size)] == [3]


@pytest.mark.parametrize("value", ["../x", "/etc", "a b", "", 5, None, {"a": 1}, "x" * 300])
def test_a_run_id_is_a_plain_name(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "mlflow_run.json", {"run_id": value})
    assert run_id_of(tmp_path) is None
    write_json(tmp_path / "mlflow_run.json", {"run_id": "0f3a"})
    assert run_id_of(tmp_path) == "0f3a"


def test_a_file_outside_of_the_spool_is_none_of_its_files(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    (spool / "artifacts" / "a").mkdir(parents=True)
    (spool / "artifacts" / "a" / "b").write_text("b")
    (tmp_path / "private").write_text("private")
    (spool / "artifacts" / "a" / "link").symlink_to(tmp_path / "private")
    (spool / "artifacts" / "out").symlink_to(tmp_path)
    assert artifact_file(spool, "artifacts/a/b") == spool / "artifacts" / "a" / "b"
    outside = ["../private", str(tmp_path / "private"), "artifacts/a/link", "artifacts/out/private"]
    outside += ["artifacts/../../private", "artifacts/a/../../../private", "journal.jsonl"]
    outside += ["artifacts/a", "artifacts/b", "", ".", "artifacts/a/b/c", "artifacts/../x"]
    for copy in outside:
        assert artifact_file(spool, copy) is None, copy


def _link_logs(run: Path, outside: Path) -> None:
    (run / "logs").rename(outside / "logs")
    (run / "logs").symlink_to(outside / "logs")


def _link_spool(run: Path, outside: Path) -> None:
    spool_dir_of(run).rename(outside / "mlflow")
    spool_dir_of(run).symlink_to(outside / "mlflow")


def _link_artifact(run: Path, outside: Path) -> None:
    (spool_dir_of(run) / "artifacts").symlink_to(outside)


def _link_lock(run: Path, outside: Path) -> None:
    (spool_dir_of(run) / "lock").symlink_to(outside / "victim")


def _link_record(run: Path, outside: Path) -> None:
    (run / "mlflow_run.json").symlink_to(outside / "victim")


@pytest.mark.parametrize(
    "link", [_link_logs, _link_spool, _link_artifact, _link_lock, _link_record]
)
def test_links_that_lead_out_of_a_run_are_refused(
    tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("precious")
    JournalWriter(spool_dir_of(run)).append(START)
    check_spool(run)
    link(run, outside)
    with pytest.raises(OutputError, match="leads out of the run"):
        sync(run)
    assert (outside / "victim").read_text() == "precious"


def test_a_trial_that_leads_out_of_its_sweep_is_refused(tmp_path: Path) -> None:
    sweep, other = tmp_path / "sweep", tmp_path / "other"
    JournalWriter(spool_dir_of(other)).append(START)
    JournalWriter(spool_dir_of(sweep / "trials" / "a")).append(START)
    assert undelivered_parts(sweep) == [sweep / "trials" / "a"]
    (sweep / "trials" / "b").symlink_to(other)
    with pytest.raises(OutputError, match="leads out of the sweep"):
        undelivered_parts(sweep)


def test_pipes_and_links_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "journal.jsonl")
    with pytest.raises(OSError, match="not a plain file"):
        JournalReader(tmp_path).read()
    assert pending(tmp_path) == 0
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    assert read_json(tmp_path / "pipe.json") == read_json(tmp_path / "zero.json") == {}


def test_what_is_written_goes_through_no_link_and_is_its_owners_alone(tmp_path: Path) -> None:
    spool, victim = tmp_path / "spool", tmp_path / "victim"
    victim.write_text("precious")
    spool.mkdir(mode=0o755)
    (spool / f".cursor.json.{os.getpid()}.tmp").symlink_to(victim)
    writer = JournalWriter(spool)
    writer.append(EPOCH)
    Cursor("r", 5).save(spool)
    assert victim.read_text() == "precious"
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (spool, *spool.iterdir())}
    assert modes == {"spool": 0o700, "journal.jsonl": 0o600, "cursor.json": 0o600}


def test_a_record_that_found_no_room_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, PROGRAMS / "outgrow_limit.py", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(errno.EFBIG), str(tmp_path / "journal.jsonl")]
    reader = JournalReader(tmp_path)
    assert [record.data["epoch"] for record in reader.read()] == [1, 2]
    assert reader.damaged == 0
