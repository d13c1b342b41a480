"""A lease: one holder at a time, over deaths of processes and wrong clocks."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import PROGRAMS
from waiting import DEADLINE_S, wait_for

from raymimic import lease, storage
from raymimic.errors import ConfigError, LeaseLostError
from raymimic.lease import LEASE, Lease


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return f"local://{tmp_path}/run"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a second instead of minutes, for leases that nobody renews."""
    times = {"STALE_S": 1.0, "WATCH_S": 0.5, "RENEW_S": 0.1, "SETTLE_S": 0.1}
    for name, value in times.items():
        monkeypatch.setattr(lease, name, value)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Renewals far more often than a lease is watched, also on a machine that is busy."""
    times = {"STALE_S": 60.0, "WATCH_S": 30.0, "RENEW_S": 0.1, "SETTLE_S": 0.1}
    for name, value in times.items():
        monkeypatch.setattr(lease, name, value)


def take(folder: str, patience_s: float = 0.0, new: bool = False) -> Lease:
    return Lease.take(folder, "run trained", patience_s, new)


def holder(folder: str, *args: str) -> "subprocess.Popen[str]":
    """Another process that holds the lease."""
    command = [sys.executable, PROGRAMS / "hold_lease.py", folder, *args]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def write(folder: str, **content: Any) -> None:
    storage.write_bytes(storage.join(folder, LEASE), json.dumps(content).encode())


@pytest.mark.usefixtures("patient")
def test_a_live_holder_keeps_it(folder: str) -> None:
    first = take(folder, new=True)
    with pytest.raises(ConfigError, match=r"the run 'local://.* is being trained by another proc"):
        take(folder)
    begin = time.monotonic()
    with pytest.raises(ConfigError):
        take(folder, patience_s=1.5)
    assert time.monotonic() - begin >= 1.5
    first.renew()
    first.release()
    second = take(folder)
    second.renew()
    with pytest.raises(LeaseLostError):
        first.check()
    first.release()  # which leaves the other's alone
    second.renew()
    second.release()
    assert not storage.exists(storage.join(folder, LEASE))


def test_one_whose_holder_died_on_this_machine_is_free_at_once(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "STALE_S", 1e6)
    monkeypatch.setattr(lease, "WATCH_S", 1e6)
    process = holder(folder)
    process.kill()  # and not waited for: a dead process whose parent has not noticed is dead too
    # It is dead, and nobody has waited for it: `WNOWAIT` leaves that undone.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    take(folder).release()
    process.wait()


@pytest.mark.usefixtures("quick")
def test_one_whose_holder_died_elsewhere_is_free_after_a_while(
    folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    process = holder(folder, "elsewhere")
    process.kill()
    process.wait()
    begin = time.monotonic()
    take(folder).release()
    assert time.monotonic() - begin >= 0.5
    (said,) = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert re.search(r"waiting up to [01] s", said)  # a busy machine has used one up


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("ahead", [-100.0, 100.0])
def test_a_clock_that_is_wrong_takes_nothing_from_a_live_holder(folder: str, ahead: float) -> None:
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.1):
            write(folder, owner="other", renewed=time.time() + ahead)

    write(folder, owner="other", renewed=time.time() + ahead)
    keeper = threading.Thread(target=renew)
    keeper.start()
    try:
        with pytest.raises(ConfigError):
            take(folder)
    finally:
        ended.set()
        keeper.join()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("ahead", [-100.0, 100.0])
def test_a_clock_that_is_wrong_keeps_no_dead_holder(folder: str, ahead: float) -> None:
    write(folder, owner="other", renewed=time.time() + ahead)
    take(folder).release()


@pytest.mark.parametrize(
    "content", [{}, {"owner": "x"}, {"renewed": "yesterday"}, {"process": 7}, {"process": "a b"}]
)
@pytest.mark.usefixtures("quick")
def test_one_that_says_nothing_is_waited_for(folder: str, content: dict[str, Any]) -> None:
    write(folder, **content)
    take(folder).release()


def test_one_of_yesterday_is_free_at_once(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "STALE_S", 1e6)
    write(folder, owner="x", renewed=time.time() - 86_400)
    take(folder).release()


@pytest.mark.usefixtures("quick")
def test_one_that_was_taken_or_deleted_is_lost_for_good(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(lease, "RENEW_S", 1e6)  # none between the lines of this test
        ours = take(folder, new=True)
    write(folder, owner="other", host="elsewhere", renewed=time.time())
    with pytest.raises(LeaseLostError, match=r"on elsewhere, .* writes nothing more there"):
        ours.renew()
    assert json.loads(storage.read_bytes(storage.join(folder, LEASE)))["owner"] == "other"
    storage.remove(storage.join(folder, LEASE))
    with pytest.raises(LeaseLostError):
        ours.raise_if_lost()
    ours.release()

    ours = take(folder, new=True)

    def lost() -> bool:
        path = storage.join(folder, LEASE)
        if storage.exists(path):  # a renewal under way may write it once more
            storage.remove(path)
        try:
            ours.raise_if_lost()
        except LeaseLostError:
            return True
        return False

    wait_for(lost, "the holder to notice")
    ours.release()


def test_of_those_that_take_it_at_once_one_gets_it(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 1e6)
    # All find it free before one has written, and look again once all have written.
    all_are_here = threading.Barrier(4, timeout=DEADLINE_S)
    monkeypatch.setattr(Lease, "_wait", lambda *args: all_are_here.wait())
    settle = SimpleNamespace(time=time.time, sleep=lambda seconds: all_are_here.wait())
    monkeypatch.setattr(lease, "time", settle)
    # Of two that write into one local file at once, neither may be left whole.
    one_writes, write = threading.Lock(), Lease._write

    def write_whole(one: Lease, content: dict[str, Any]) -> None:
        with one_writes:
            write(one, content)

    monkeypatch.setattr(Lease, "_write", write_whole)
    got: list[Lease | ConfigError] = []

    def run() -> None:
        try:
            got.append(take(folder))
        except ConfigError as error:
            got.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [one for one in got if isinstance(one, Lease)]
    winner.renew()
    winner.release()


def test_one_that_is_just_being_written_is_not_lost(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 1e6)  # none between the lines of this test
    ours = take(folder, new=True)
    path = storage.join(folder, LEASE)
    whole = storage.read_bytes(path)

    def write_slowly() -> None:
        for _ in range(5):
            storage.write_bytes(path, whole[:10])
            time.sleep(0.05)
            storage.write_bytes(path, whole)
            time.sleep(0.05)

    writer = threading.Thread(target=write_slowly)
    writer.start()
    while writer.is_alive():
        ours.check()
    ours.release()
