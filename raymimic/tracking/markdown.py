"""Markdown for the descriptions of runs."""

import shlex
from collections.abc import Iterable, Sequence

from raymimic.credentials import masked


def code(text: str) -> str:
    """A text as it is, also in a table: no character of it is markup."""
    return f"`{text.replace('`', chr(39)).replace('|', '/')}`"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table.

    Args:
        heads: of the columns.
        rows: cells, without `|`.
    """
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def commands(purposes: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Shell commands with comments, without passwords.

    Args:
        purposes: the purpose and the words of each command.
    """
    lines = [f"{shlex.join(words)}  # {purpose}" for purpose, words in purposes]
    return masked("\n".join(["```sh", *lines, "```"]))
