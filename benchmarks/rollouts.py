"""Environment steps per second: one environment in one process against Ray actors.

Plays Walker2d-v5 with an untrained 256x256 policy. Episodes are cut at 200 steps and do not
terminate early, so that both play the same number of steps. With `--cameras` the environments are
those of `CAMERAS`, each with two images of 84x84 (one of OGBench's) and a small convolutional
policy, drawn as the simulator does and without shadows, reflections and multisampling; one
environment in this process beside 1 and 2 actors with one each. The last line is JSON.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import torch

from raymimic.algo import algo_factory
from raymimic.config import config_factory
from raymimic.envs.kinds import env_from_metadata
from raymimic.envs.seeds import evaluation_seeds
from raymimic.rollout.actors import RolloutPool
from raymimic.rollout.evaluation import EvalJob, evaluate

ENV = {
    "env_name": "Walker2d-v5",
    "type": 2,
    "env_kwargs": {"terminate_when_unhealthy": False},
}
HORIZON = 200

CAMERAS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "gymnasium Walker2d-v5": (ENV, ["track", "default"]),
    "metaworld push-v3": (
        {"env_name": "push-v3", "type": "metaworld", "env_kwargs": {}},
        ["corner2", "gripperPOV"],
    ),
    "robosuite Lift": (
        {"env_name": "Lift", "type": 1, "env_kwargs": {"robots": ["Panda"]}},
        ["agentview", "robot0_eye_in_hand"],
    ),
    "ogbench cube-single-v0": (
        {"env_name": "cube-single-v0", "type": 2, "env_kwargs": {}},
        ["front_pixels"],
    ),
}
QUALITIES: dict[str, dict[str, Any]] = {
    "as the simulator draws": {},
    "fast": {"shadows": False, "reflections": False, "multisampling": 0},
}
FRAMES_HORIZON, FRAMES_EPISODES = 100, 4


def save_policy(path: Path, env_meta: dict[str, Any]) -> None:
    """Writes the checkpoint of an untrained policy, which reads all images of an environment."""
    torch.manual_seed(0)
    env = env_from_metadata(env_meta)
    obs, ac_dim = env.reset(seed=0), env.action_dimension
    env.close()
    images = sorted(key for key in obs if key.endswith("_image"))
    low_dim = [] if images else ["flat"]
    config = config_factory("bc")
    with config.values_unlocked():
        config.observation.modalities.obs.low_dim = low_dim
        config.observation.modalities.obs.rgb = images
        config.observation.encoder.rgb.core_class = "VisualCore" if images else None
        config.observation.encoder.rgb.core_kwargs.backbone_class = "ShallowConv"
        config.algo.actor_layer_dims = [256, 256]
    shapes = {key: [*obs[key].shape] for key in low_dim}
    shapes |= {key: [3, *obs[key].shape[:2]] for key in images}
    algo = algo_factory("bc", config, shapes, ac_dim, torch.device("cpu"))
    checkpoint = {
        "model": algo.serialize(),
        "config": config.dump(),
        "algo_name": "bc",
        "env_metadata": env_meta,
        "shape_metadata": {"ac_dim": ac_dim, "all_shapes": shapes},
    }
    torch.save(checkpoint, path)


def frames_per_second(folder: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Images per second of each environment with cameras, in one process and of 1 and 2 actors."""
    rates: dict[str, dict[str, float]] = {}
    for name, (meta, cameras) in CAMERAS.items():
        for quality, settings in QUALITIES.items():
            env_meta = {**meta, "render": {"cameras": cameras, **settings}}
            path = folder / f"{len(rates)}.pth"
            save_policy(path, env_meta)

            def job(epoch: int, path: Path = path, env: dict[str, Any] = env_meta) -> EvalJob:
                seeds = evaluation_seeds(0, epoch, FRAMES_EPISODES)
                return EvalJob(str(path), {"env": env}, seeds, FRAMES_HORIZON)

            frames = len(cameras) * FRAMES_EPISODES * FRAMES_HORIZON
            seconds: dict[str, list[float]] = {}
            pools = {f"{n} actor{'s' * (n > 1)}": RolloutPool(n, 1) for n in (1, 2)}
            for repeat in range(repeats + 1):  # in turns; the first one starts everything
                start = time.perf_counter()
                evaluate(job(repeat), num_envs=1)
                seconds.setdefault("one loop", []).append(time.perf_counter() - start)
                for label, pool in pools.items():
                    start = time.perf_counter()
                    pool.submit(job(repeat))
                    pool.poll(timeout=600.0)
                    seconds.setdefault(label, []).append(time.perf_counter() - start)
            for pool in pools.values():
                pool.close()
            rates[f"{name}, {quality}"] = {
                label: round(frames / statistics.median(times[1:]), 1)
                for label, times in seconds.items()
            }
            print(f"{name}, {quality}: {rates[f'{name}, {quality}']} frames/s", flush=True)
    return rates


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--envs-per-actor", type=int, default=8)
    parser.add_argument("--episodes", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cameras", action="store_true", help="environments with cameras")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.cameras:
        ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)  # the two pools
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(frames_per_second(Path(folder), args.repeats)))
        ray.shutdown()
        return 0

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        save_policy(path, ENV)

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
