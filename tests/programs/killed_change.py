"""Kills a change of filter keys at each of its writes: `killed_change.py DATASET COPY`.

It prints a line of JSON for each: the filter keys that a reader then finds (or its complaint), and
those after the next command.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from raymimic.data import in_place
from raymimic.data.curation.masks import write_masks
from raymimic.data.metadata import read_metadata
from raymimic.errors import DatasetError

CHANGE = {"new": ["demo_0", "demo_2"], "old": ["demo_1"]}


def kill_at(count: int) -> None:
    """Ends the process in the midst of its write number `count`."""
    left = [count]

    def deadly(name):
        call = getattr(os, name)

        def write(*args, **options):
            left[0] -= 1
            if left[0] < 0:
                if name == "pwrite":
                    call(args[0], args[1][: len(args[1]) // 2], *args[2:])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        setattr(os, name, write)

    for name in ("pwrite", "ftruncate", "fsync", "posix_fallocate"):
        deadly(name)


def masks(path: Path) -> dict[str, list[str]] | str:
    try:
        return read_metadata(path).filter_keys
    except DatasetError as error:
        return str(error)


def main(source: Path, path: Path) -> None:
    for count in range(100):
        shutil.copy(source, path)
        pid = os.fork()  # nothing is open, and there are no threads
        if pid == 0:
            kill_at(count)
            write_masks(path, CHANGE)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        found = masks(path)
        in_place.complete_change(path)
        killed = os.WIFSIGNALED(status)
        print(json.dumps({"killed": killed, "found": found, "then": masks(path)}))
        if not killed:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
