"""Environment steps per second: one environment in one process against Ray actors.

Plays Walker2d-v5 with an untrained 256x256 policy. Episodes are cut at 200 steps and do not
terminate early, so that both play the same number of steps. The last line is JSON.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import ray
import torch

from raymimic.algo import algo_factory
from raymimic.config import config_factory
from raymimic.envs.seeds import evaluation_seeds
from raymimic.rollout.actors import RolloutPool
from raymimic.rollout.evaluation import EvalJob, evaluate

ENV = {
    "env_name": "Walker2d-v5",
    "type": 2,
    "env_kwargs": {"terminate_when_unhealthy": False},
}
OBS_DIM, AC_DIM, HORIZON = 17, 6, 200


def save_policy(path: Path) -> None:
    """Writes the checkpoint of an untrained policy."""
    torch.manual_seed(0)
    config = config_factory("bc")
    with config.values_unlocked():
        config.observation.modalities.obs.low_dim = ["flat"]
        config.algo.actor_layer_dims = [256, 256]
    shapes = {"flat": [OBS_DIM]}
    algo = algo_factory("bc", config, shapes, AC_DIM, torch.device("cpu"))
    checkpoint = {
        "model": algo.serialize(),
        "config": config.dump(),
        "algo_name": "bc",
        "env_metadata": ENV,
        "shape_metadata": {"ac_dim": AC_DIM, "all_shapes": shapes},
    }
    torch.save(checkpoint, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--envs-per-actor", type=int, default=8)
    parser.add_argument("--episodes", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        save_policy(path)

        def job(episodes: int, epoch: int) -> EvalJob:
            return EvalJob(
                str(path), {"Walker2d": ENV}, evaluation_seeds(0, epoch, episodes), HORIZON
            )

        ray.init(num_cpus=args.actors, include_dashboard=False, log_to_driver=False)
        pool = RolloutPool(args.actors, args.envs_per_actor)
        pool.submit(job(args.actors, 0))
        pool.poll(timeout=300.0)  # actors are up, torch is imported, kernels are warm
        evaluate(job(1, 0), num_envs=1)

        single, actors = [], []
        for repeat in range(1, args.repeats + 1):  # in turns: the machine's load changes
            episodes = args.episodes // 2
            start = time.perf_counter()
            evaluate(job(episodes, repeat), num_envs=1)
            single.append(episodes * HORIZON / (time.perf_counter() - start))
            start = time.perf_counter()
            pool.submit(job(args.episodes, repeat))
            pool.poll(timeout=600.0)
            actors.append(args.episodes * HORIZON / (time.perf_counter() - start))
        pool.close()
        ray.shutdown()

    one, many = sorted(single)[len(single) // 2], sorted(actors)[len(actors) // 2]
    print(f"one environment in one process: {one:,.0f} steps/s")
    print(f"{args.actors} actors x {args.envs_per_actor} environments: {many:,.0f} steps/s")
    print(
        json.dumps(
            {
                "single_steps_per_s": round(one, 1),
                "actors_steps_per_s": round(many, 1),
                "ratio": round(many / one, 3),
                "actors": args.actors,
                "envs_per_actor": args.envs_per_actor,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
