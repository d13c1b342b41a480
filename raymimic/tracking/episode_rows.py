"""One episode of an evaluation, as the records of runs hold it: plain JSON."""

from typing import Any, TypedDict, TypeGuard


class EpisodeRow(TypedDict):
    """One episode of an evaluation; JSON, as it goes through files and between processes.

    Attributes:
        seed: source of all its randomness.
        episode_return: undiscounted sum of rewards; None where the episode failed.
        length: number of steps; None where the episode failed.
        success: whether the task was solved at any step; None where the environment does not say
            so, and where the episode failed.
        error: why the episode failed, in one line; None where it did not.
    """

    seed: int
    episode_return: float | None
    length: int | None
    success: bool | None
    error: str | None


def are_episodes(value: Any) -> TypeGuard[dict[str, list[EpisodeRow]]]:
    """Whether a value, which may come from anywhere, holds lists of episodes by environment."""
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(rows, list) and all(map(_is_episode, rows))
        for name, rows in value.items()
    )


def _is_episode(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and row.keys() == EpisodeRow.__annotations__.keys()
        and type(row["seed"]) is int
        and type(row["episode_return"]) in {float, type(None)}
        and type(row["length"]) in {int, type(None)}
        and type(row["success"]) in {bool, type(None)}
        and type(row["error"]) in {str, type(None)}
    )


def knows_success(rows: list[EpisodeRow]) -> bool:
    """Whether an environment says if a task is solved; an evaluation without rows may."""
    return not rows or any(row["success"] is not None for row in rows)
