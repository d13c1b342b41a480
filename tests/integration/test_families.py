"""One algorithm of each family through Ray Train: it trains, is evaluated, and resumes exactly."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from run_records import epochs_of
from tiny import Ran, small_config, start_ray

from raymimic.checkpoints.policy import policy_from_checkpoint
from raymimic.checkpoints.reading import load_dict_from_checkpoint

pytestmark = pytest.mark.ray

# A cosine's pace follows from the number of epochs, which a resume changes.
STEADY = {
    "algo.optim_params.policy.learning_rate.scheduler_type": "multistep",
    "algo.optim_params.policy.learning_rate.step_every_batch": False,
}
RNN = {"algo.gmm.enabled": True, "algo.rnn.enabled": True, "train.seq_length": 10}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bc_rnn_gmm": ("bc", RNN),
    "cql": ("cql", {}),
    "diffusion_policy": ("diffusion_policy", STEADY),
    "iris": ("iris", {}),  # which holds a GL and a BC policy
}


@pytest.fixture(scope="module", autouse=True)
def _ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    start_ray()
    yield
    ray.shutdown()


@pytest.mark.parametrize("family", FAMILIES)
def test_trains_on_ray_is_evaluated_and_resumes_exactly(
    cli: Callable[..., Ran], hopper: Path, family: str
) -> None:
    algo, settings = FAMILIES[family]
    config = small_config(
        algo,
        **settings,
        **{
            "train.data": str(hopper),
            "train.batch_size": 16,
            "train.num_epochs": 2,
            "train.cuda": False,
            "experiment.epoch_every_n_steps": 4,
            "experiment.logging.log_tb": False,
            "experiment.render_video": False,
            "experiment.rollout.rate": 2,
            "experiment.rollout.n": 2,
            "experiment.rollout.horizon": 12,
            "experiment.save.every_n_epochs": 1,
            "mlflow.enabled": False,
            "ray.threads_per_worker": 1,
            "ray.rollout_actors": 1,
        },
    )
    config.dump("config.json")
    args = ["train", "--config", "config.json", "--json"]

    first = cli(*args, "--name", "first", "--workers", "1")
    assert first.status == 0, first.err
    assert np.isfinite(first.result["metrics"]["Train/Loss"])
    evaluated = [key for key in first.result["metrics"] if key.startswith("Rollout/Return")]
    assert bool(evaluated) == (family != "gl")

    more = ["--set", "train.num_epochs=3"]
    resumed = cli("train", "--algo", algo, "--name", "first", "--resume", "--json",
                  "--workers", "0", *more)  # fmt: skip
    assert resumed.status == 0, resumed.err
    whole = cli(*args, "--name", "whole", "--workers", "0", *more,
                "experiment.rollout.enabled=false")  # fmt: skip
    assert whole.status == 0, whole.err
    a, b = (load_dict_from_checkpoint(ran.result["last_checkpoint"]) for ran in (resumed, whole))
    torch.testing.assert_close(a["model"], b["model"], rtol=0, atol=0)
    histories = [
        {k: v for k, v in epoch["metrics"].items() if k.startswith("Train/")}
        for ran in (resumed, whole)
        for epoch in epochs_of(ran.result["last_checkpoint"])
    ]
    assert histories[:3] == histories[3:]

    if family != "gl":
        policy, _ = policy_from_checkpoint(ckpt_dict=a)
        policy.start_episode()
        assert policy({"flat": np.zeros(11, np.float32)}).shape == (3,)
