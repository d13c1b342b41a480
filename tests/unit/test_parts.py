"""Outcomes that are kept until a file is complete: what a kill, damage and strangers leave."""

import json
import multiprocessing
import resource
import signal
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import pytest

from raymimic.errors import OutputError
from raymimic.recording import parts as parts_module
from raymimic.recording.parts import Facts, keeping_parts
from raymimic.storage import lock, remove_tree

JOBS = range(5)


class Doubling:
    """Plays numbers; their outcome is text."""

    def __init__(self) -> None:
        self.played: list[int] = []

    def play(self, jobs: Sequence[int]) -> Iterator[str]:
        for job in jobs:
            self.played.append(job)
            yield str(2 * job)


def play(out: Path, stop: int = len(JOBS), **plan: Any) -> tuple[list[int], list[bytes]]:
    """Plays all jobs, or is interrupted after some; returns those that it played, and all data."""
    players, data = Doubling(), []
    with keeping_parts(out, plan) as parts:
        taken = lambda outcome: (Facts(), outcome.encode())  # noqa: E731
        with closing(parts.play(players, JOBS, Facts, taken)) as played:
            for index, _ in played:
                data.append(parts.read(index))
                if index + 1 == stop < len(JOBS):
                    raise KeyboardInterrupt
    return players.played, data


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A file of whose five outcomes three are kept."""
    with pytest.raises(KeyboardInterrupt):
        play(tmp_path / "out", stop=3)
    return tmp_path / "out"


WHOLE = [b"0", b"2", b"4", b"6", b"8"]


def test_kept_outcomes_are_not_played_again(out: Path) -> None:
    assert play(out) == ([3, 4], WHOLE)
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_outcomes_from_a_damaged_one_on_are_played_again(out: Path, damage: str) -> None:
    part = Path(f"{out}.parts", "000001.part.bin")
    part.unlink()
    if damage != "gone":
        part.write_bytes(b"3" if damage == "changed" else b"")
    assert play(out) == ([1, 2, 3, 4], WHOLE)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "5",
        "{}",
        "[1]",
        '{"facts": 3, "part": 4, "digest": 5}',
        '{"facts": {"crash": null, "more": 1}, "part": "000001.part.bin", "digest": "0"}',
        "\udcff",
    ],
)
def test_a_damaged_line_ends_the_kept_outcomes(out: Path, line: str) -> None:
    ledger = Path(f"{out}.parts", "outcomes.jsonl")
    lines = ledger.read_text().splitlines()
    lines[1] = line
    ledger.write_text("\n".join(lines) + "\n", errors="surrogateescape")
    assert play(out) == ([1, 2, 3, 4], WHOLE)


def test_a_kill_before_the_plan_has_its_name_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    folder = tmp_path / "out.parts"
    folder.mkdir()
    (folder / "lock").touch()
    (folder / ".plan.json.123.tmp").write_text('{"ver')
    assert play(tmp_path / "out") == ([0, 1, 2, 3, 4], WHOLE)
    folder.mkdir()
    (folder / "mine").touch()
    with pytest.raises(OutputError, match="holds other files, which this command would delete"):
        play(tmp_path / "out")
    assert (folder / "mine").exists()


def test_a_damaged_plan_is_another_one(out: Path) -> None:
    plan = Path(f"{out}.parts", "plan.json")
    whole = json.loads(plan.read_text())
    plan.write_text("{")
    with pytest.raises(OutputError, match="with another version of raymimic: give the same"):
        play(out)
    plan.write_text(json.dumps(whole))
    with pytest.raises(OutputError, match="with another seed: give the same"):
        play(out, seed=1)
    assert play(out) == ([3, 4], WHOLE)


def begin_without_room(out: Path) -> None:
    """Begins in a process that can make files and write nothing into them."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with pytest.raises(OutputError, match="make room there"):
        play(out)


def test_a_disk_without_room_for_the_plan_is_left_as_it_was(tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(
        target=begin_without_room, args=(tmp_path / "out",)
    )
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_not_replaced_unasked(out: Path) -> None:
    with keeping_parts(out, {}) as parts:
        assert parts.num_kept == 3
        with pytest.raises(OutputError, match=f"another process is writing '{out}'"):
            play(out)
    out.write_text("mine")
    with pytest.raises(OutputError, match="exists already"), keeping_parts(out, {}, replace=False):
        pass
    assert out.read_text() == "mine"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_folder_that_its_process_has_just_deleted_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process finishes between the opening of the lock and the locking."""

    def finish_first(held: IO[str]) -> None:
        remove_tree(str(tmp_path / "out.parts"))
        lock(held)

    monkeypatch.setattr(parts_module, "lock", finish_first)
    with pytest.raises(OutputError, match="another process is writing"):
        play(tmp_path / "out")
    assert not list(tmp_path.iterdir())
