#!/usr/bin/env python3
"""Speed of one checkout beside another's: gradient steps per second, template by template.

Each of a pair's two measurements is a process of its own that runs its checkout's `train_step.py`,
so the checkouts may have different layouts. The order alternates from pair to pair. Prints, for
each template, the median of after/before and its 95 % bootstrap interval. Exit status 1: a
template's whole interval lies below 0.97.

usage: compare.py BEFORE AFTER [--algo all] [--pairs 10] [--seconds 6] [--threads 2]
       (BEFORE and AFTER: folders of checkouts, or git revisions of this one)
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SLOWEST = 0.97


def checkout(name: str, stack: ExitStack) -> Path:
    """Returns a checkout's folder; that of a revision is removed when the stack closes."""
    if Path(name).is_dir():
        return Path(name).resolve()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "checkout"
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), name], check=True)
    stack.callback(subprocess.run, [*git, "remove", "--force", str(folder)], check=True)
    return folder


def python(folder: Path, *args: str) -> str:
    """Runs Python with a checkout's package; returns the last line that it prints."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, *args]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


def median_interval(ratios: list[float]) -> tuple[float, float, float]:
    """Returns the median and the bounds of its 95 % bootstrap interval."""
    samples = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(samples, axis=1), [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--algo", default="all", help="a template; several joined by commas; all")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=6, help="of each measurement")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    too_slow = []
    with ExitStack() as stack:
        folders = {name: checkout(getattr(args, name), stack) for name in ("before", "after")}
        for name, folder in folders.items():
            package = Path(python(folder, "-P", "-c", "import raymimic; print(raymimic.__file__)"))
            if not package.is_relative_to(folder):
                parser.error(f"{name} would run the package at {package}, not that of {folder}")
        known = [
            {path.stem for path in (folder / "raymimic/exps/templates").glob("*.json")}
            for folder in folders.values()
        ]
        templates = sorted(set.intersection(*known)) if args.algo == "all" else args.algo.split(",")
        for template in templates:
            ratios = []
            for pair in range(args.pairs):
                rates = {}
                for name in sorted(folders, reverse=pair % 2 == 0):
                    script = str(folders[name] / "benchmarks" / "train_step.py")
                    options = {"algo": template, "seconds": args.seconds, "threads": args.threads}
                    words = [word for k, v in options.items() for word in (f"--{k}", str(v))]
                    line = python(folders[name], script, *words, "--repeats", "5")
                    rates[name] = json.loads(line)["steps_per_s"]
                ratios.append(rates["after"] / rates["before"])
            median, low, high = median_interval(ratios)
            print(f"{template}: {median:.3f} ({low:.3f} to {high:.3f})", flush=True)
            if high < SLOWEST:
                too_slow.append(template)
    if too_slow:
        print(f"slower than {SLOWEST} times as fast as before: {', '.join(too_slow)}")
    return 1 if too_slow else 0


if __name__ == "__main__":
    sys.exit(main())
