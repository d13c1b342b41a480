"""Processor time of one demonstration, without cameras and with some.

python benchmarks/recording.py metaworld-push-v3 gripperPOV,topview
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from raymimic.recording.demos import ExpertPlayer, Recipe

QUALITY = {"shadows": False, "reflections": False, "multisampling": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="a dataset of `raymimic dataset make`")
    parser.add_argument("cameras", help="names, such as gripperPOV,topview")
    parser.add_argument("--demos", type=int, default=5)
    args = parser.parse_args()
    render = {"cameras": args.cameras.split(","), "height": 84, "width": 84, **QUALITY}
    for title, settings in (("no cameras", None), (args.cameras, render)):
        seconds, steps = measured(Recipe(args.name, settings), args.demos)
        print(f"{args.name}, {title}: {seconds:.2f} s of a core, {steps:.0f} steps per demo")


def measured(recipe: Recipe, demos: int) -> tuple[float, float]:
    """Median processor time of a demo [s], and mean steps; the first demo does not count."""
    player: Any = ExpertPlayer(recipe)
    player.play(demos)
    seconds, steps = [], []
    for seed in range(demos):
        begin = time.process_time()
        steps.append(len(player.play(seed).episode))
        seconds.append(time.process_time() - begin)
    player.close()
    return statistics.median(seconds), statistics.mean(steps)


if __name__ == "__main__":
    main()
