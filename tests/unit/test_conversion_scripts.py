"""robomimic's scripts that convert datasets, or take their actions apart."""

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest
from demo_files import write_demos

from raymimic.cli.entry import run_script
from raymimic.errors import DatasetError
from raymimic.scripts import dataset_states_to_obs_mp, hyperparam_helper, setup_macros
from raymimic.scripts.conversion import convert_d4rl, convert_robosuite
from raymimic.scripts.extract_action_dict import extract_action_dict
from raymimic.sweep.spec.config_folder import configs_in


def call(script, *words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        run_script(script.arguments(), script.main, words)
    return int(ended.value.code)


def raw_demos(path: Path, number: int, width: int = 7) -> Path:
    """`demo.hdf5` as robosuite's collecting script writes it."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env"] = "Lift"
        data.attrs["env_info"] = json.dumps({"env_name": "Lift", "robots": ["Panda"]})
        data.attrs["repository_version"] = "1.5.1"
        for i in range(1, number + 1):
            demo = data.create_group(f"demo_{i}")
            demo.attrs["model_file"] = "<mujoco/>"
            demo["states"] = rng.random((i + 2, 5))
            demo["actions"] = rng.uniform(-1, 1, (i + 2, width))
    return path


# --------------------------------------------------------------------- robosuite


def test_demonstrations_of_robosuite_become_a_dataset(tmp_path: Path, capfd):
    path = raw_demos(tmp_path / "demo.hdf5", 20)
    assert call(convert_robosuite, "--dataset", str(path), "--filter_num_demos", "5", "10") == 0
    assert "2 validation demonstrations out of 20" in capfd.readouterr().out
    with h5py.File(path) as file:
        data = file["data"]
        assert json.loads(data.attrs["env_args"]) == {
            "env_name": "Lift",
            "type": 1,
            "env_version": "1.5.1",
            "env_kwargs": {"robots": ["Panda"]},
        }
        assert data.attrs["total"] == sum(range(3, 23))
        assert data["demo_4"].attrs["num_samples"] == 6
        assert data["demo_4/states"].shape == (6, 5)
        assert data["demo_4/action_dict/rel_rot_6d"].shape == (6, 6)
        sizes = {key: len(names) for key, names in file["mask"].items()}
    assert sizes == {"train": 18, "valid": 2, "5_demos": 5, "10_demos": 10}


def test_few_demonstrations_of_two_arms_are_converted_as_far_as_it_goes(tmp_path: Path, capfd):
    path = raw_demos(tmp_path / "demo.hdf5", 2, width=14)
    assert call(convert_robosuite, "--dataset", str(path)) == 0
    said = capfd.readouterr().out
    assert "2 demos are too few for a split" in said
    assert "no action_dict" in said
    with h5py.File(path) as file:
        assert file["data"].attrs["total"] == 7
        assert "mask" not in file


def test_files_without_environment_or_scene_are_left_as_they_are(tmp_path: Path, capfd):
    path = raw_demos(tmp_path / "demo.hdf5", 2)
    with h5py.File(path, "r+") as file:
        del file["data/demo_2"].attrs["model_file"]
    before = path.read_bytes()
    assert call(convert_robosuite, "--dataset", str(path)) == 2
    assert "'demo_2' has no attribute 'model_file'" in capfd.readouterr().err
    assert path.read_bytes() == before
    with h5py.File(path, "r+") as file:
        del file["data"].attrs["env"]
        file["data/demo_2"].attrs["model_file"] = "<mujoco/>"
    assert call(convert_robosuite, "--dataset", str(path)) == 2
    assert "nor 'env_args'" in capfd.readouterr().err


# ------------------------------------------------------------------ parts of actions


def test_actions_are_taken_apart(tmp_path: Path):
    path = write_demos(tmp_path / "demos.hdf5", (3, 4))
    quarter = np.pi / 2
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            del demo["actions"]
            row = [1.0, 2.0, 3.0, 0.0, 0.0, quarter, -1.0, 0.5]
            demo["actions"] = np.tile(row, (demo["rewards"].shape[0], 1))
            demo["actions_abs"] = 2 * demo["actions"][()]
    extract_action_dict(str(path), add_absolute_actions=False)
    with h5py.File(path) as file:
        group = file["data/demo_1/action_dict"]
        found = {key: item[()] for key, item in group.items()}
    # A quarter turn about z takes x to y, and y to -x; six numbers are the matrix's first rows.
    turned = [0.0, -1.0, 0.0, 1.0, 0.0, 0.0]
    expected = {
        "rel_pos": [1.0, 2.0, 3.0],
        "rel_rot_axis_angle": [0.0, 0.0, quarter],
        "rel_rot_6d": turned,
        "gripper": [-1.0],
        "base_mode": [0.5],
    }
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        assert found[key].dtype == np.float32
        np.testing.assert_allclose(found[key], np.tile(row, (4, 1)), atol=1e-6)
    extract_action_dict(str(path))
    with h5py.File(path) as file:
        group = file["data/demo_0/action_dict"]
        assert len(group) == 8
        np.testing.assert_allclose(group["abs_pos"][0], [2.0, 4.0, 6.0])
        # Half a turn about z.
        np.testing.assert_allclose(group["abs_rot_6d"][0], [-1, 0, 0, 0, -1, 0], atol=1e-6)


def test_actions_of_no_arm_are_refused(tmp_path: Path):
    path = write_demos(tmp_path / "demos.hdf5")
    before = path.read_bytes()
    with pytest.raises(DatasetError, match=r"demo_0': 'actions' is \[5, 2\]: an arm"):
        extract_action_dict(str(path))
    assert path.read_bytes() == before


# -------------------------------------------------------------------------- D4RL


@pytest.fixture
def d4rl(tmp_path: Path, monkeypatch):
    place = tmp_path / "served" / "gym_mujoco_v2"
    place.mkdir(parents=True)
    with h5py.File(place / "hopper_medium_expert-v2.hdf5", "w") as file:
        file["observations"] = np.arange(60.0).reshape(20, 3)
        file["actions"] = np.zeros((20, 2))
        file["rewards"] = np.ones(20)
        file["terminals"] = np.arange(20) == 9
        file["timeouts"] = np.zeros(20, bool)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=place.parent))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(convert_d4rl, "D4RL_SERVER", f"http://127.0.0.1:{server.server_port}")
    yield place
    server.shutdown()
    server.server_close()


def test_data_of_d4rl_are_downloaded_and_converted(d4rl: Path, tmp_path: Path, capfd):
    words = ["--env", "hopper-medium-expert-v2", "--folder", str(tmp_path / "datasets")]
    assert call(convert_d4rl, *words) == 0
    folder = tmp_path / "datasets" / "d4rl"
    with h5py.File(folder / "converted" / "hopper_medium_expert_v2.hdf5") as file:
        assert json.loads(file["data"].attrs["env_args"])["env_name"] == "hopper-medium-expert-v2"
        assert file["data/demo_0/obs/flat"].shape == (10, 3)
    assert (folder / "hopper_medium_expert-v2.hdf5").exists()
    capfd.readouterr()
    assert call(convert_d4rl, "--env", "pen-human-v1", "--folder", str(tmp_path)) == 2
    error = capfd.readouterr().err
    assert "put D4RL's file at" in error
    assert "pen-human-v1.hdf5" in error


# ------------------------------------------------------------------------- others


def test_the_example_of_a_sweep_writes_configs_and_a_script(tmp_path: Path, capfd):
    base = tmp_path / "base.json"
    base.write_text('{"algo_name": "bc", "experiment": {"name": "rnn"}, "train": {"data": "a"}}')
    script = tmp_path / "run.sh"
    assert call(hyperparam_helper, "--config", str(base), "--script", str(script)) == 0
    names = sorted(path.stem for path in tmp_path.glob("rnn_*.json"))
    assert len(names) == 8
    assert names[0] == "rnn_plr_0.0001_gmm_f_rnnd_1000_mlp_0"
    assert script.read_text().count("\npython ") == 8
    assert configs_in(tmp_path).num_settings == 8


def test_macros_are_not_needed(capfd):
    assert call(setup_macros) == 0
    assert "nothing was written" in capfd.readouterr().out


def test_the_extraction_by_several_processes_has_its_number():
    words = ["--dataset", "a.hdf5", "--output_name", "b.hdf5", "--num_procs", "3"]
    assert dataset_states_to_obs_mp.arguments().parse_args(words).actors == 3
