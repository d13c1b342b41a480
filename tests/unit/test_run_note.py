"""The description of a run, as MLflow's pages show it."""

import shlex
from typing import Any

from tiny import small_config

from raymimic.checkpoints.records import Evaluation
from raymimic.training.note import ChosenCheckpoint, run_note

ENV = "gym_pusht/PushT-v0"


def evaluation(epoch: int, mean: float, success: float | None = None) -> Evaluation:
    """Four episodes of an environment, which says whether they are solved if `success` is given."""
    metrics = {f"Return_CI_{end}": mean + by for end, by in (("Low", -1.0), ("High", 2.0))}
    metrics |= {"Success_Rate_CI_Low": 0.3, "Success_Rate_CI_High": 0.951}
    row: Any = {"seed": 1, "episode_return": mean, "length": 3, "error": None}
    row["success"] = None if success is None else True
    return Evaluation(
        epoch,
        {f"Rollout/{name}/{ENV}": value for name, value in metrics.items()},
        {ENV: mean},
        {ENV: success or 0.0},
        step=10 * epoch,
        played={ENV: [row] * 4},
    )


def commands_of(note: str) -> list[list[str]]:
    block = note.partition("```sh\n")[2].partition("\n```")[0]
    return [shlex.split(line, comments=True) for line in block.splitlines()]


def test_a_note_tells_the_best_result_the_last_evaluations_and_how_to_go_on() -> None:
    config = small_config("bc", **{"train.data": "demos/a|b.hdf5", "train.imports": ["my_envs"]})
    played = {epoch: evaluation(epoch, 10.0 * epoch, success=0.75) for epoch in range(1, 8)}
    best = ChosenCheckpoint("/runs/my run/models/model_epoch_6.pth", 6, is_best=True)
    note = run_note(config, "/runs/my run", played, best)
    title, headline, table, _ = note.split("\n\n")
    assert title == "**bc** on `a/b.hdf5`"
    assert headline == (
        "Best checkpoint: return 60.0, 95 % interval [59.0, 62.0], success 75% [30%, 95%], "
        f"in 4 episodes of `{ENV}`, at epoch 6"
    )
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert [line[0] for line in lines] == ["epoch", "---", "7", "6", "5", "4", "3"]
    assert lines[2] == ["7", f"`{ENV}`", "70.0", "[69.0, 72.0]", "75% [30%, 95%]", "4"]
    assert commands_of(note) == [
        ["raymimic", "evaluate", best.path, "--import", "my_envs"],
        ["raymimic", "train", "--resume", "/runs/my run", "--import", "my_envs"],
        ["raymimic", "train", "--config", "/runs/my run/config.json"],
    ]


def test_a_note_without_evaluations_tells_the_loss() -> None:
    config = small_config("bc", **{"train.data": "a.hdf5", "ray.address": "ray://head:10001"})
    begun = run_note(config, "s3://bucket/run", {})
    assert begun.splitlines()[0] == "**bc** on `a.hdf5`"
    assert "|" not in begun
    (resume, repeat) = commands_of(begun)
    assert resume[2:] == ["--resume", "s3://bucket/run", "--set", "ray.address=ray://head:10001"]
    assert repeat[-1] == "s3://bucket/run/config.json"
    last = ChosenCheckpoint("x.pth", 4, is_best=False)
    assert "Last checkpoint: at epoch 4" in run_note(config, "run", {}, last)
    validated = ChosenCheckpoint("x.pth", 4, is_best=True, validation_loss=0.01234)
    note = run_note(config, "run", {}, validated)
    assert "Best checkpoint: validation loss 0.0123 at epoch 4" in note


def test_a_success_that_nobody_knows_is_not_told() -> None:
    config = small_config("bc", **{"train.data": "a.hdf5"})
    note = run_note(config, "run", {1: evaluation(1, 0.5)}, ChosenCheckpoint("x.pth", 1, True))
    assert "success 0%" not in note
    assert f"| 1 | `{ENV}` | 0.5 | [-0.5, 2.5] | - | 4 |" in note
