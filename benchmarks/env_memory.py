"""Memory of one actor by its number of environments, each with two images of 84x84.

Makes the environments of `rollouts.CAMERAS` one after the other in this process, resets each, and
plays 20 steps in each. The last line is JSON: megabytes of the process without environments, and
with 1, 2, 4 and 8.
"""

import argparse
import json

import numpy as np
import psutil
from rollouts import CAMERAS

from raymimic.envs.vector import VectorEnv

NUMBERS, STEPS = (1, 2, 4, 8), 20


def main() -> None:
    """Measures one simulator."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("simulator", choices=list(CAMERAS))
    args = parser.parse_args()
    env_meta, cameras = CAMERAS[args.simulator]
    render = {"cameras": cameras, "height": 84, "width": 84}
    reads = dict.fromkeys([f"{camera}_image" for camera in cameras], "rgb")
    process = psutil.Process()
    found = {0: process.memory_info().rss / 1e6}
    with VectorEnv({**env_meta, "render": render}, NUMBERS[-1], reads=reads) as envs:
        for index in range(len(envs)):
            env = envs[index]
            env.reset(seed=index)
            for _ in range(STEPS):
                env.step(np.zeros(env.action_dimension))
            if index + 1 in NUMBERS:
                found[index + 1] = process.memory_info().rss / 1e6
                print(f"{index + 1} environments: {found[index + 1]:,.0f} MB", flush=True)
    print(json.dumps({"simulator": args.simulator, "megabytes": found}))


if __name__ == "__main__":
    main()
