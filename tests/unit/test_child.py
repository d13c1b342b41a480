"""The second process for simulators: calls, errors and crashes; evaluations without Ray."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from odd_envs import ACTION_DIM, OBS_DIM
from tiny import small_config
from waiting import wait_for

from raymimic.algo import BC, algo_factory, register_algo_factory_func
from raymimic.config import BCConfig, import_modules
from raymimic.errors import ConfigError, RaymimicError
from raymimic.rollout.child import ChildProcess
from raymimic.rollout.episodes import Episode
from raymimic.rollout.evaluation import EvalJob
from raymimic.rollout.local import LocalEvaluator


@pytest.fixture
def child() -> Iterator[ChildProcess]:
    made = ChildProcess()
    yield made
    made.close()


def test_a_child_answers_call_after_call(child: ChildProcess) -> None:
    assert not child.finished()  # it has nothing to do
    for number in (1, 2):
        child.call(range, number)
        assert child.finished(timeout=None)
        assert child.records == list(range(number))
    assert not child.crashed


def test_a_child_has_its_priority_from_its_start_on() -> None:
    child = ChildProcess(niceness=19)
    assert os.getpriority(os.PRIO_PROCESS, child._process.pid) == 19
    child.call(map, os.getpriority, [os.PRIO_PROCESS], [0])
    assert child.finished(timeout=None)
    assert child.records == [19]
    child.close()


def test_an_error_is_raised_here_and_ends_no_child(child: ChildProcess) -> None:
    child.call(import_modules, ["no_such_module_x"])
    with pytest.raises(ConfigError, match="no_such_module_x"):
        child.finished(timeout=None)
    child.call(range, 3)
    assert child.finished(timeout=None)
    assert child.records == [0, 1, 2]


def test_records_before_a_crash_are_kept(child: ChildProcess) -> None:
    child.call(map, os._exit, [7])
    assert child.finished(timeout=None)
    assert child.crashed
    assert child.records == []
    assert child.story() == "status 7"
    child.call(range, 3)  # and a late result is not lost silently
    assert child.finished(timeout=None)
    assert child.crashed


def test_a_child_ends_with_its_parent(child: ChildProcess) -> None:
    child.call(range, 1)
    assert child.finished(timeout=None)
    child._connection.close()
    wait_for(lambda: child._process.poll() is not None, "the end of the child")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained policy for the odd environments."""
    config = small_config("bc")
    shapes = {"flat": [OBS_DIM]}
    algo = algo_factory("bc", config, shapes, ACTION_DIM, torch.device("cpu"))
    path = tmp_path_factory.mktemp("policy") / "model.pth"
    content = {
        "model": algo.serialize(),
        "algo_name": "bc",
        "config": config.dump(),
        "env_metadata": {},
        "shape_metadata": {"all_shapes": shapes, "ac_dim": ACTION_DIM},
    }
    torch.save(content, path)
    return str(path)


def play(checkpoint: str, apart: bool, **env_kwargs: Any) -> list[Episode]:
    """Three episodes in an odd environment, without Ray."""
    meta = {"env_name": "odd_envs:Odd-v0", "type": 2, "env_kwargs": env_kwargs}
    job = EvalJob(checkpoint, {"odd": meta}, [11, 12, 13], horizon=10)
    evaluator = LocalEvaluator(2, ["odd_envs"], apart=apart)
    try:
        evaluator.submit(job, interrupted=not apart)
        (result,) = evaluator.poll()
    finally:
        evaluator.close()
    return result.episodes["odd"]


def test_an_interrupted_evaluation_costs_the_episode_that_ends_its_process(checkpoint: str) -> None:
    """Though this evaluator plays in its own process otherwise, as that of a sweep's trial."""
    episodes = play(checkpoint, apart=False, odd="episodes end the process", crash_seeds=[13])
    assert [e.seed for e in episodes] == [11, 12, 13]
    assert [e.error for e in episodes] == [None, None, "its process ended with status 0"]
    assert [e.episode_return for e in episodes] == [10.0, 10.0, 0.0]


def test_an_algorithm_that_only_this_process_knows_is_played_here(
    checkpoint: str, tmp_path: Path
) -> None:
    class OnlyHereConfig(BCConfig):
        ALGO_NAME = "only_here"

    @register_algo_factory_func("only_here")
    def choose(algo_config: Any) -> Any:
        return BC, {}

    content = torch.load(checkpoint, weights_only=True)
    content["algo_name"] = "only_here"
    content["config"] = content["config"].replace('"bc"', '"only_here"')
    torch.save(content, tmp_path / "model.pth")
    episodes = play(str(tmp_path / "model.pth"), apart=True)
    assert [e.episode_return for e in episodes] == [10.0] * 3


def test_every_error_of_the_user_passes_between_processes() -> None:
    import raymimic.data.hdf5
    import raymimic.training.trainer  # with all rooms

    waiting, seen = [RaymimicError], []
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__module__.startswith("raymimic."):
            seen.append(kind)
            passed = pickle.loads(pickle.dumps(kind("a sentence")))
            assert (type(passed), str(passed)) == (kind, "a sentence")
    assert raymimic.data.hdf5.MissingObservationError in seen
    missing = raymimic.data.hdf5.MissingObservationError("a sentence", {"x": (3,)})
    assert pickle.loads(pickle.dumps(missing)).known == {"x": (3,)}
