"""`raymimic dataset info`: a dataset at a glance, and which algorithms it can train."""

import json
import re
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest
from demo_files import write_demos
from image_files import replace_key, write_cameras

from raymimic.cli import main
from raymimic.cli.commands import parse
from raymimic.cli.train import _config
from raymimic.data.curation.summary import summarize
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


def run_info(capfd, path, *args):
    with pytest.raises(SystemExit) as ended:
        main(["dataset", "info", str(path), *args])
    said = capfd.readouterr()
    return ended.value.code, said.out.splitlines(), said.err


def test_images_are_shown_with_their_size_and_modality(tmp_path, capfd):
    path = write_cameras(tmp_path / "cameras.hdf5", chunks=True, compression="gzip")
    replace_key(path, "camera_0", np.zeros_like, chunks=True, compression="gzip")
    status, lines, _ = run_info(capfd, path)
    assert status == 0
    with h5py.File(path) as file:
        stored = sum(file[f"data/demo_{i}/obs/camera_0"].id.get_storage_size() for i in range(3))
    assert (
        "obs/camera_0 [12, 10, 3] uint8: rgb, 360 bytes a frame, 36.0 kB in all"
        f" ({stored / 1000:.1f} kB in the file)"
    ) in lines
    assert "obs/camera_1 [8, 8, 3] uint8: rgb, 192 bytes a frame, 19.2 kB in all" in lines
    assert "obs/flat [3] float32: low_dim" in lines
    assert "all images: 55.2 kB of memory, 110.4 kB for an algorithm that reads next_obs" in lines
    tries = dict(line.split(": ", 1) for line in lines[-2:])
    for name, cameras in (("try", []), ("with images", ["camera_0", "camera_1"])):
        words = shlex.split(tries[name])
        assert words[:4] == ["raymimic", "train", "--algo", "bc"]
        prepared = prepare(_config(parse([*words[1:], "experiment.rollout.enabled=false"])))
        assert list(prepared.config.observation.modalities.obs.low_dim) == ["flat"]
        assert list(prepared.config.observation.modalities.obs.rgb) == cameras
    forms = json.loads(run_info(capfd, path, "--json")[1][0])["observation_forms"]
    assert forms["camera_0"] == {
        **{"dtype": "uint8", "modality": "rgb", "fault": ""},
        **{"row_bytes": 360, "bytes": 36_000, "stored_bytes": stored},
    }


def test_images_alone_are_proposed(tmp_path, capfd):
    path = write_cameras(tmp_path / "cameras.hdf5", next_obs=False)
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            del demo["obs/flat"]
    replace_key(path, "camera_1", lambda x: x[..., :1] / 255)  # float64
    status, lines, _ = run_info(capfd, path)
    assert status == 0
    assert "obs/camera_1 [8, 8, 1] float64: depth, 512 bytes a frame, 51.2 kB in all" in lines
    assert "all images: 61.6 kB of memory" in lines  # distances as float32
    listed = [
        f'observation.modalities.obs.{m}=["camera_{i}"]' for i, m in enumerate(["rgb", "depth"])
    ]
    assert set(shlex.split(lines[-1])[-2:]) <= {*listed, "observation.modalities.obs.low_dim=[]"}
    assert listed[0] in shlex.split(lines[-1])


def test_images_that_no_modality_takes_are_shown_with_the_reason(tmp_path, capfd):
    path = write_cameras(tmp_path / "cameras.hdf5")
    replace_key(path, "camera_0", lambda x: x.astype(np.uint16))
    replace_key(path, "camera_1", lambda x: np.moveaxis(x, -1, 1))
    status, lines, _ = run_info(capfd, path)
    assert status == 0
    shown = {line.split()[0]: line for line in lines if line.startswith("obs/")}
    assert "uint16: no modality, 720 bytes a frame" in shown["obs/camera_0"]
    assert "; not rgb: holds uint16, and colours are uint8" in shown["obs/camera_0"]
    assert "have the channels first" in shown["obs/camera_1"]
    assert "write np.moveaxis(x, 1, -1)" in shown["obs/camera_1"]
    assert not any("camera_" in line for line in lines if "raymimic train" in line)


def test_a_camera_that_changes_between_demos_is_a_problem(tmp_path, capfd):
    path = write_cameras(tmp_path / "cameras.hdf5")
    replace_key(path, "camera_1", lambda x: x[:, :7], demo=1)
    status, lines, err = run_info(capfd, path)
    assert status == 2
    assert "demo 'demo_1': 'obs/camera_1' has rows [7, 8, 3] of uint8" in err
    assert "demos before it [8, 8, 3] of uint8: convert or remove the demo" in err
    assert any(line.startswith("rewards: ") for line in lines)


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
