"""Names, order and tables of metrics in MLflow, without MLflow."""

import json
from typing import Any

import pytest

from raymimic.tracking.episode_rows import EpisodeRow, are_episodes
from raymimic.tracking.metric_names import mlflow_name, points, rank
from raymimic.tracking.tables import TableSchedule, tables_of, with_tables

EPISODE = EpisodeRow(seed=7, episode_return=1.5, length=3, success=None, error=None)


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("Rollout/Return/Walker2d-v5", "Rollout/Walker2d-v5/Return"),
        ("Rollout/Return_CI_Low/gym_pusht/PushT-v0", "Rollout/gym_pusht:PushT-v0/Return_CI_Low"),
        ("Rollout/Horizon/module:a/B-v0", "Rollout/module:a:B-v0/Horizon"),
        ("Rollout/Return_Median/Walker2d-v5", None),
        ("Rollout/Return", "Rollout/Return"),
        ("Train/Critic/Q_Targets", "Train/Critic/Q_Targets"),
        ("Timing/rollout_s", "Timing/rollout_s"),
    ],
)
def test_a_metric_of_an_evaluation_stands_below_its_environment(
    name: str, there: str | None
) -> None:
    assert mlflow_name(name) == there


def test_scores_come_first_and_the_epoch_last() -> None:
    names = ["epoch", "Train/Optimizer/actor0_lr", "Rollout/a:b/Horizon", "Train/Loss"]
    names += ["Valid/Loss", "Rollout/a:b/Return", "Rollout/a:b/Lifted_Success_Rate"]
    assert sorted(names, key=rank) == [
        *("Rollout/a:b/Return", "Rollout/a:b/Horizon", "Valid/Loss", "Train/Loss"),
        *("Train/Optimizer/actor0_lr", "Rollout/a:b/Lifted_Success_Rate", "epoch"),
    ]


def test_a_success_rate_of_episodes_that_nobody_kept_is_logged() -> None:
    """An earlier version played them."""
    record = {"type": "evaluation", "epoch": 2, "step": 10, "episodes": {}}
    record["metrics"] = {"Rollout/Success_Rate/E": 0.0, "Rollout/Failed_Episodes/E": 0.0}
    shown = {"Rollout/E/Success_Rate": 0.0, "epoch": 2}
    assert points(record, "2", lambda name: False) == (10, shown)
    numbers = {"type": "numbers", "epoch": 3, "metrics": {"best/mean": 1.0}}
    assert points(numbers, "2", lambda name: False) == (3, {"best/mean": 1.0})


def test_all_tables_sent_together_are_a_few_times_the_last() -> None:
    schedule, sent = TableSchedule(), []
    for number in range(1, 1001):
        schedule.add()
        if schedule.is_due():
            sent.append(number)
            schedule.sent(number)
    assert sent[:5] == [1, 2, 3, 4, 6]
    assert 900 > sent[-1] > 750
    assert schedule.is_due(at_end=True)
    assert sum(sent) + 1000 < 6 * 1000
    schedule.sent(1000)
    assert not schedule.is_due(at_end=True)


def test_tables_are_json_that_pages_can_read() -> None:
    """Without NaN, and with large seeds as text."""
    large: EpisodeRow = {**EPISODE, "seed": 2**60}
    metrics = {"Rollout/Return/E": float("nan"), "Rollout/Return/Gone": 1.0}
    record: dict[str, Any] = {"type": "evaluation", "epoch": 1, "step": 5, "metrics": metrics}
    tables = tables_of([record | {"episodes": {"E": [EPISODE, large]}}])
    assert tables.evaluations == 1
    episodes = json.loads(tables.files["episodes.json"])
    seed = episodes["columns"].index("seed")
    assert [row[seed] for row in episodes["data"]] == [7, str(2**60)]
    evaluations = json.loads(tables.files["evaluations.json"])
    mean = evaluations["columns"].index("return")
    assert [row[mean] for row in evaluations["data"]] == [None, 1.0]
    assert tables_of([{"type": "epoch"}]).files == {}


def test_the_tag_of_tables_keeps_those_of_others() -> None:
    theirs, ours = {"path": "a.json", "type": "table"}, {"path": "b.json", "type": "table"}
    for before, after in (
        (None, [ours]),
        ("{torn", [ours]),
        (json.dumps([theirs]), [theirs, ours]),
    ):
        tag = with_tables(before, ["b.json"])
        assert json.loads(tag) == after
        assert with_tables(tag, ["b.json"]) == tag


@pytest.mark.parametrize(
    "change",
    [
        *({"seed": True}, {"seed": "7"}, {"episode_return": 10**400}, {"length": 1.5}),
        *({"success": 1}, {"error": ["x"]}, {"more": 1}),
    ],
)
def test_a_strangers_episodes_are_checked(change: dict[str, Any]) -> None:
    assert are_episodes({"E": [EPISODE]})
    assert not are_episodes({"E": [{**EPISODE, **change}]})
    assert not are_episodes({"E": [None]})
    assert not are_episodes([EPISODE])
