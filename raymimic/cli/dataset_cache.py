"""`raymimic dataset cache`: shows or empties the caches of datasets on this machine."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymimic.cli.shared import json_text
from raymimic.terminal import duration, readable_bytes

if TYPE_CHECKING:
    from raymimic.data.cache.room import CacheEntry


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `raymimic dataset cache`."""
    parser.description = (
        "Show the files that hold the columns of datasets on this machine (RAYMIMIC_CACHE names "
        "their folder, RAYMIMIC_CACHE_GB their limit), or delete them."
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--list", action="store_true", help="show them, by dataset")
    which.add_argument("--clear", action="store_true", help="delete all files that no process uses")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")


def run(args: argparse.Namespace) -> None:
    """Shows or deletes the files.

    Raises:
        ConfigError: the variable RAYMIMIC_CACHE_GB is not a number.
        OutputError: the folder cannot be read, or a file not be deleted.
    """
    from raymimic.data.cache.room import clear, columns_folder, entries, limit

    folder = columns_folder()
    if args.clear:
        deleted, kept = clear()
        result: dict[str, Any] = {"folder": str(folder), "deleted_bytes": deleted}
        result["in_use"] = [use.to_dict() for use in _by_dataset(kept)]
        if args.json:
            print(json_text(result))
            return
        print(f"deleted {readable_bytes(deleted)} from {folder}")
        for use in _by_dataset(kept):
            print(f"in use, not deleted: {use}")
        return
    most = limit(folder) if folder.is_dir() else None
    uses = _by_dataset(entries())
    total = sum(use.size for use in uses)
    if args.json:
        result = {"folder": str(folder), "bytes": total, "limit_bytes": most}
        print(json_text({**result, "datasets": [use.to_dict() for use in uses]}))
        return
    print(
        f"{folder}: {readable_bytes(total)}"
        + (f" of at most {readable_bytes(most)}" if most is not None else "")
    )
    for use in uses:
        print(use)


@dataclass(frozen=True)
class _Use:
    """The files of one dataset.

    Attributes:
        dataset: its path when they were built.
        digest: of its content.
        columns: names of those that are whole.
        size: bytes of all files.
        used: when one of them was last opened [s since 1970].
        in_use: whether a process reads or builds one.
        unfinished: how many columns are being built, or were left by a build that ended early.
    """

    dataset: str
    digest: str
    columns: list[str]
    size: int
    used: float
    in_use: bool
    unfinished: int

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {**vars(self), "used": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.used))}

    def __str__(self) -> str:
        ago = "in use" if self.in_use else f"used {duration(time.time() - self.used)} ago"
        left = f", {self.unfinished} unfinished" if self.unfinished else ""
        columns = f"{len(self.columns)} columns{left}: {', '.join(self.columns)}".rstrip(": ")
        return f"{self.dataset}: {readable_bytes(self.size)}, {ago}, {columns}"


def _by_dataset(found: Sequence[CacheEntry]) -> list[_Use]:
    """The files by dataset, the one that was used last first."""
    from raymimic.errors import printable

    groups: dict[tuple[str, str], list[CacheEntry]] = {}
    for entry in found:
        dataset = printable(str(entry.content.get("dataset", "a damaged file")))
        digest = str(entry.content.get("digest", ""))
        groups.setdefault((dataset, digest), []).append(entry)
    uses = [
        _Use(
            dataset=dataset,
            digest=digest,
            columns=sorted({str(e.content.get("column")) for e in members if e.is_whole}),
            size=sum(entry.size for entry in members),
            used=max(entry.used for entry in members),
            in_use=any(entry.in_use for entry in members),
            unfinished=sum(not entry.is_whole for entry in members),
        )
        for (dataset, digest), members in groups.items()
    ]
    return sorted(uses, key=lambda use: -use.used)
