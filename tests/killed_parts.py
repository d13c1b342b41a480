"""Commands that are killed while they write a file from parts."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tiny import PROGRAMS
from waiting import wait_for


def killed_after_two(words: list[str], parts: Path) -> int:
    """Kills a command once it has kept two outcomes.

    Args:
        words: after `raymimic`; run in the folder of the parts.
        parts: the folder that they lie in.

    Returns:
        How many outcomes a later run finds.
    """
    ledger = parts / "outcomes.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "raymimic", *words],
        cwd=parts.parent,
        env={**os.environ, "PYTHONPATH": str(PROGRAMS.parent / "data")},
    )

    def two() -> bool:
        assert process.poll() is None
        return ledger.exists() and ledger.read_text().count("\n") >= 2

    try:
        wait_for(two, "two parts", interval_s=0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    lines = [json.loads(line) for line in ledger.read_text().splitlines() if line.endswith("}")]
    while lines and lines[-1]["facts"]["crash"] is not None:
        lines.pop()
    return len(lines)
