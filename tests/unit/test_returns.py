"""The returns of demonstrations, and their places in a training's picture."""

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from tiny import small_config

from raymimic.data.returns import reference_returns
from raymimic.data.training_data import DataInfo
from raymimic.training.prepare import prepare

ENV = "Hopper-v5"


def data(paths: list[Path], **settings: Any) -> DataInfo:
    entries = [{"path": str(path)} for path in paths]
    return prepare(small_config("bc", **{"train.data": entries, **settings})).data


def rewards(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return np.array([file[f"data/demo_{i}/rewards"][:] for i in range(6)])


@pytest.fixture
def own(hopper: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(hopper, tmp_path / "own.hdf5"))


def test_the_data_s_mean_is_that_of_the_training_demos_within_the_horizon(own: Path) -> None:
    with h5py.File(own, "a") as file:
        file["data"].attrs["expert_return"] = 3000.0
    train = data([own], **{"train.hdf5_filter_key": "train"})
    played = rewards(own)[:5]
    whole, short = reference_returns(train, 20), reference_returns(train, 7)
    assert whole == {ENV: {"data": pytest.approx(played.sum(1).mean()), "expert": 3000.0}}
    # An episode of 7 steps cannot reach the expert's return of 20.
    assert short == {ENV: {"data": pytest.approx(played[:, :7].sum(1).mean())}}


def test_data_of_another_environment_are_no_reference(own: Path, hopper: Path) -> None:
    other = data([own], **{"experiment.env": "Pendulum-v1"})
    assert reference_returns(other, 20) == {"Pendulum-v1": {}}
    both = data([own, hopper], **{"experiment.additional_envs": ["Pendulum-v1"]})
    mean = pytest.approx(rewards(own).sum(1).mean())
    assert reference_returns(both, 20) == {
        "own": {"data": mean},
        "Pendulum-v1": {},
        "hopper": {"data": mean},
    }


@pytest.mark.parametrize("value", [None, np.inf])
def test_data_without_returns_give_no_reference(own: Path, value: float | None) -> None:
    with h5py.File(own, "a") as file:
        del file["data/demo_3/rewards"]
        if value is not None:
            file["data/demo_3/rewards"] = np.full(20, value)
        file["data"].attrs["expert_return"] = "high"
    assert reference_returns(data([own]), 20) == {ENV: {}}
