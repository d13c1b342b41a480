"""The set of steps that were sent."""

import random

import pytest

from raymimic.tracking.sent_points import SentSteps


@pytest.mark.parametrize("seed", range(20))
def test_it_is_a_set_of_steps(seed: int) -> None:
    rng = random.Random(seed)
    steps = [rng.randrange(0, 60) for _ in range(40)]
    before, later = steps[:10], steps[10:]
    sent, expected = SentSteps(before), set(before)
    for step in later:
        assert (step in sent) == (step in expected)
        sent.add(step)
        expected.add(step)
        assert len(sent) == len(expected)
        assert {number for number in range(-5, 70) if number in sent} == expected


def test_steps_at_equal_distances_take_the_room_of_one() -> None:
    sent = SentSteps(range(0, 50_000, 500))
    for step in range(50_000, 5_000_000, 500):
        sent.add(step)
    assert (len(sent), sent.rows) == (10_000, 1)
    sent.add(5_000_123)  # an epoch that the user cut short
    assert (len(sent), sent.rows) == (10_001, 2)
