"""A kind of environments of the user's own is one file, named by `--import`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from tiny import Ran, train_args, write_hopper

from raymimic.envs import kinds

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def cli(cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    monkeypatch.syspath_prepend(DATA)
    monkeypatch.delitem(sys.modules, "toy_kind", raising=False)
    monkeypatch.delitem(kinds._KINDS, "toy", raising=False)  # other tests register it
    return cli


@pytest.mark.slow
def test_a_policy_is_evaluated_in_a_kind_of_ones_own(
    cli: Callable[..., Ran], tmp_path: Path
) -> None:
    dataset = write_hopper(tmp_path / "toy.hdf5")
    env_args = {"env_name": "Push", "type": "toy", "env_kwargs": {"goal_steps": 5}}
    with h5py.File(dataset, "a") as file:
        file["data"].attrs["env_args"] = json.dumps(env_args)
    rollouts = [f"experiment.rollout.{key}" for key in ("enabled=true", "rate=1", "n=2")]
    train = [*train_args(dataset, *rollouts, "experiment.render_video=false"), "--json"]

    refused = cli(*train)
    assert refused.status == 2
    assert refused.err.count("\n") == 1
    assert "environment 'Push' is of type 'toy', and the known types are 1, 2" in refused.err
    assert "--import a module that registers the type" in refused.err

    trained = cli(*train, "--import", "toy_kind")
    assert trained.status == 0, trained.err
    checkpoint = trained.result["best_checkpoint"]
    assert torch.load(checkpoint, weights_only=True)["env_metadata"] == env_args
    assert "evaluated epoch 2" in (Path(trained.result["run_dir"]) / "logs" / "log.txt").read_text()

    def evaluate(actors: int) -> list[dict[str, Any]]:
        arguments = ["--episodes", "3", "--actors", str(actors), "--json", "report.json"]
        ran = cli("evaluate", checkpoint, *arguments, "--import", "toy_kind")
        assert ran.status == 0, ran.err
        episodes: list[dict[str, Any]] = json.loads(Path("report.json").read_text())["episodes"]
        for episode in episodes:
            assert episode.pop("seconds") >= 0
        return episodes

    here = evaluate(actors=0)
    assert [episode["length"] for episode in here] == [5, 5, 5]
    assert all(episode["success"] for episode in here)
    assert len({episode["episode_return"] for episode in here}) == 3
    assert evaluate(actors=1) == here
