"""The pool of Ray actors: the same episodes in any layout, actors that die, clear errors."""

import json
import os
import signal
import time

import pytest
import ray
import torch
from tiny import start_ray

from raymimic.algo import algo_factory
from raymimic.config import config_factory
from raymimic.envs.seeds import evaluation_seeds
from raymimic.errors import CheckpointError, ConfigError, EnvError
from raymimic.rollout.actors import RolloutPool
from raymimic.rollout.evaluation import EvalJob, evaluate
from raymimic.rollout.video import enable_rendering

pytestmark = pytest.mark.ray

HOPPER = {"env_name": "Hopper-v5", "type": 2, "env_kwargs": {}}
TIMEOUT = 120.0


@pytest.fixture(scope="module", autouse=True)
def _cluster():
    start_ray()
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained policy for Hopper."""
    torch.manual_seed(0)
    config = config_factory("bc")
    with config.values_unlocked():
        config.observation.modalities.obs.low_dim = ["flat"]
        config.algo.actor_layer_dims = [32]
    shapes = {"flat": [11]}
    algo = algo_factory("bc", config, shapes, 3, torch.device("cpu"))
    path = tmp_path_factory.mktemp("models") / "model.pth"
    torch.save(
        {
            "model": algo.serialize(),
            "config": config.dump(),
            "algo_name": "bc",
            "env_metadata": HOPPER,
            "shape_metadata": {"ac_dim": 3, "all_shapes": shapes},
        },
        path,
    )
    return str(path)


@pytest.fixture
def pool():
    made = []

    def make(actors, envs, **kwargs):
        made.append(RolloutPool(actors, envs, cpus_per_actor=0.5, **kwargs))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


def job(checkpoint, epoch=1, n=20, horizon=60, env_metas=None, **kwargs):
    seeds = evaluation_seeds(0, epoch, n)
    return EvalJob(checkpoint, env_metas or {"Hopper": HOPPER}, seeds, horizon, **kwargs)


def finish(pool, jobs=1):
    results = []
    end = time.monotonic() + TIMEOUT
    while len(results) < jobs and time.monotonic() < end:
        results += pool.poll(timeout=5.0)
    assert len(results) == jobs
    return results


def returns(result):
    return {
        env: [(e.seed, e.episode_return, e.length) for e in episodes]
        for env, episodes in result.episodes.items()
    }


def test_one_by_one_and_two_by_eight_play_the_same_episodes(checkpoint, pool):
    walker = {"a": HOPPER, "b": {**HOPPER, "env_kwargs": {"reset_noise_scale": 0.1}}}
    jobs = [job(checkpoint, epoch, env_metas=walker) for epoch in (1, 2)]
    found = []
    for actors, envs in ((1, 1), (2, 8)):
        pool_ = pool(actors, envs)
        for each in jobs:
            pool_.submit(each)
        assert pool_.poll() == []  # does not wait
        assert pool_.pending == jobs
        results = finish(pool_, jobs=2)
        assert pool_.pending == []
        assert [result.job for result in results] == jobs
        found.append([returns(result) for result in results])
    assert found[0] == found[1]
    assert found[0][0] == returns(evaluate(jobs[0], num_envs=4))
    assert found[0][0]["a"] != found[0][0]["b"]


def test_episodes_of_a_killed_actor_are_played_again(checkpoint, pool):
    undisturbed = returns(evaluate(job(checkpoint, n=60, horizon=1000), num_envs=8))
    pool_ = pool(2, 4)
    victim, other = pool_.pids()
    pool_.submit(job(checkpoint, n=60, horizon=1000))
    os.kill(victim, signal.SIGKILL)
    (result,) = finish(pool_)
    assert returns(result) == undisturbed
    pids = pool_.pids()
    assert victim not in pids
    assert other in pids


def test_failures_and_errors_reach_the_driver_and_the_pool_goes_on(checkpoint, pool):
    pool_ = pool(2, 2)
    unknown = {"x": {"env_name": "Hoper-v5", "type": 2}}
    pool_.submit(job(checkpoint, n=2))
    pool_.submit(job(checkpoint, n=4, env_metas=unknown))
    pool_.submit(job(checkpoint + ".missing", n=4))
    pool_.submit(job(checkpoint, n=4))
    played, failed = finish(pool_, jobs=2)  # the result of the first is not lost
    assert [e.error for e in played.episodes["Hopper"]] == [None] * 2
    assert all("did you mean 'Hopper-v5'" in e.error for e in failed.episodes["x"])
    assert len(failed.episodes["x"]) == 4
    with pytest.raises(CheckpointError, match=r"model\.pth\.missing"):
        pool_.poll(TIMEOUT)
    assert len(finish(pool_)) == 1


def test_modules_are_imported_in_the_actors(checkpoint, pool):
    pool_ = pool(1, 1, imports=["no_such_module_x"])
    pool_.submit(job(checkpoint, n=1))
    with pytest.raises(ConfigError, match="no_such_module_x"):
        pool_.poll(TIMEOUT)


def test_films_come_back_as_mp4_and_change_nothing(checkpoint, pool):
    plain = returns(evaluate(job(checkpoint, n=4), num_envs=2))
    pool_ = pool(2, 2)
    pool_.submit(job(checkpoint, n=4, film=1))
    (result,) = finish(pool_)
    assert returns(result) == plain
    try:
        enable_rendering(HOPPER)
    except EnvError as error:
        assert result.no_video == str(error)  # noqa: PT017
        assert result.videos == []
    else:
        assert result.no_video is None
        (video,) = result.videos
        assert (video.env, video.seed) == ("Hopper", evaluation_seeds(0, 1, 1)[0])
        assert video.mp4[4:8] == b"ftyp"


def test_job_is_plain_data():
    assert json.dumps(job("c.pth", n=3).__dict__)  # pending jobs are part of a checkpoint
