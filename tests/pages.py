"""The documentation: its pages, their code blocks, and the commands that they name."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "cluster/*.md")
    for path in ROOT.glob(pattern)
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ENDS = re.compile(r"[;&|]+")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, with the language that it names."""

    page: str
    line: int
    language: str
    text: str


def blocks(page: str, *languages: str) -> Iterator[Block]:
    """The blocks of a page, of some languages or of all."""
    text = (ROOT / page).read_text()
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        block = Block(page, line, match[1], match[2])
        if not languages or block.language in languages:
            yield block


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command of a shell block."""
    for line in block.text.replace("\\\n", " ").splitlines():
        reader = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        reader.whitespace_split = True
        command: list[str] = []
        for word in [*reader, ";"]:
            # The words after the two dashes of `ray job submit` are a command of their own.
            if _ENDS.fullmatch(word) or (word == "--" and command[:1] == ["ray"]):
                if command:
                    yield command
                command = []
            elif command or not re.match(r"\w+=", word):  # a variable of the environment
                command.append(word)


def commands_in_text(page: str) -> Iterator[list[str]]:
    """The words of each `raymimic …` between backticks."""
    text = " ".join(_FENCE.sub("", (ROOT / page).read_text()).split())
    for command in re.findall(r"`([^`]+)`", text):
        if re.match(r"(\S+=\S+ )*raymimic ", command):
            yield from commands(Block(page, 0, "sh", command))
