"""`raymimic dataset info`: a dataset at a glance, and which algorithms it can train."""

import json
import re
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest
from demo_files import write_demos

from raymimic.cli import main
from raymimic.cli.commands import parse
from raymimic.cli.train import _config
from raymimic.data.summary import summarize
from raymimic.training.prepare import prepare
from raymimic.training.trainable import obstacles

PAGE = Path(__file__).parents[2] / "docs/data.md"


@pytest.fixture
def path(tmp_path):
    path = write_demos(tmp_path / "demos.hdf5")
    with h5py.File(path, "r+") as file:
        for i, demo in enumerate(file["data"].values()):
            demo["actions"][:, 1] = 0.5
            demo["actions"][0, 0] = -0.9 + i
            demo["rewards"][:] = 0
            demo["rewards"][-1] = i > 0
    return path


def test_numbers(path):
    summary = summarize(path)
    with h5py.File(path) as file:
        actions = np.concatenate([demo["actions"] for demo in file["data"].values()])
    extent = summary.extents["actions"]
    np.testing.assert_array_equal(extent.low, actions.min(axis=0))
    np.testing.assert_array_equal(extent.high, actions.max(axis=0))
    assert (extent.width, extent.constant) == (2, [1])
    assert summary.lengths == [5, 7, 4]
    assert summary.returns == [0, 1, 1]
    assert (summary.ended, summary.successes) == (3, 2)


def test_which_algorithms_can_be_trained(path):
    with h5py.File(path, "r+") as file:
        file["data/demo_0/actions"][0, 0] = 2.5
        del file["data/demo_1/rewards"]
    found = obstacles(summarize(path))
    assert found["bc"] == ""
    assert found["td3_bc"] == "it reads 'rewards', and 1 of 3 demos have none"
    assert "the file's reach 2.5" in found["diffusion_policy"]
    assert "normalization=min_max" in found["diffusion_policy"]


def test_next_observations_are_made_of_observations(tmp_path):
    path = write_demos(tmp_path / "demos.hdf5", next_obs=False)
    assert not any(obstacles(summarize(path)).values())


def test_rewards_that_are_not_sparse_tell_no_success(tmp_path):
    assert summarize(write_demos(tmp_path / "demos.hdf5")).successes is None


def test_command(path, capfd):
    with pytest.raises(SystemExit, match="0"):
        main(["dataset", "info", str(path)])
    out = capfd.readouterr().out
    assert "lengths: 4 to 7, mean 5.3" in out
    assert "constant: components 1 (counted from 0)" in out
    assert "success: 2 of 3 demos" in out
    assert "can train: bc, bcq" in out
    assert f"--dataset {path} --set 'observation.modalities.obs.low_dim=[\"flat\"]'" in out
    with pytest.raises(SystemExit, match="0"):
        main(["dataset", "info", str(path), "--json"])
    summary = json.loads(capfd.readouterr().out)
    assert summary["actions"]["constant"] == [1]
    assert summary["obstacles"]["bc"] == ""


def test_values_that_are_not_finite_are_problems(path, capfd):
    with h5py.File(path, "r+") as file:
        file["data/demo_2/actions"][1] = np.nan
    with pytest.raises(SystemExit, match="2"):
        main(["dataset", "info", str(path)])
    assert "demo 'demo_2': 'actions' holds NaN" in capfd.readouterr().err


def test_the_blocks_of_the_page_on_data_run(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for code in [text for language, text in blocks if language == "python"]:
        exec(code, {})
    commands = [shlex.split(text) for language, text in blocks if language == "bash"]
    assert [words[:2] for words in commands] == [
        ["raymimic", "dataset"],
        ["raymimic", "train"],
        ["raymimic", "train"],
    ]
    with pytest.raises(SystemExit, match="0"):
        main(commands[0][1:])
    for words in commands[1:]:
        args = parse([*words[1:], "experiment.rollout.enabled=false"])
        prepared = prepare(_config(args))
        assert prepared.config.train.data == str(tmp_path / "demos.hdf5")
    assert len(prepared.data.valid.demos) == 2
