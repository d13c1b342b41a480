"""The messages between training loop and driver, without an actor."""

from pathlib import Path

from tiny import run_process

from raymimic.checkpoints.records import Evaluation
from raymimic.training.link import Event, Fatal, LocalLink, Mailbox, Placed, Progress

ONE, TWO = (Evaluation(epoch, {}, {}, {}) for epoch in (1, 2))


def test_a_mailbox_gives_each_event_once_and_in_order() -> None:
    mailbox = Mailbox()
    events: list[Event] = [Placed(), Progress(1, 5, 2.0), Progress(1, 10, 2.0)]
    for event in events[:2]:
        mailbox.send(event)
    assert mailbox.drain() == events[:2]
    mailbox.send(events[2])
    assert mailbox.drain() == events[2:]
    assert mailbox.drain() == []


def test_a_mailbox_gives_each_evaluation_once() -> None:
    mailbox = Mailbox()
    mailbox.post(ONE)
    mailbox.post(TWO)
    assert mailbox.evaluations() == [ONE, TWO]
    assert mailbox.evaluations() == []


def test_training_begins_when_the_driver_says_so_with_a_look_into_the_mailbox() -> None:
    mailbox = Mailbox()
    assert not mailbox.may_begin()
    mailbox.drain(may_begin=False)
    assert not mailbox.may_begin()
    mailbox.drain(may_begin=True)
    assert mailbox.may_begin()


def test_a_fatal_error_of_one_worker_stops_all() -> None:
    mailbox = Mailbox()
    assert mailbox.stopped() is None
    mailbox.send(Fatal("DatasetError", "the data have changed", "..."))
    assert mailbox.stopped() == "the data have changed"
    mailbox.stop("Ctrl-C")
    assert mailbox.stopped() == "Ctrl-C"


def test_one_worker_of_each_node_but_the_drivers_is_the_first() -> None:
    mailbox = Mailbox("head")
    asked = ["two", "head", "two", "three", "head"]
    assert [mailbox.is_first_of(node) for node in asked] == [True, False, False, True, False]


def test_a_local_link_hands_over_at_once() -> None:
    handled: list[Event] = []
    link = LocalLink(handled.append, lambda: bool(handled))
    assert not link.may_begin()
    link.send(Placed())
    assert handled == [Placed()]
    assert link.may_begin()
    link.post(ONE)
    assert link.evaluations() == [ONE]
    assert link.evaluations() == []
    assert link.stopped() is None


def test_the_mailboxs_process_loads_nothing_heavy(tmp_path: Path) -> None:
    heavy = {"torch", "numpy", "h5py", "gymnasium", "matplotlib", "fsspec"}
    code = f"import sys, raymimic.training.link; print(sorted({heavy} & set(sys.modules)))"
    assert run_process("-c", code, cwd=tmp_path).out == "[]\n"
