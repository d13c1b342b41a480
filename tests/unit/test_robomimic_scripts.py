"""robomimic's scripts that play datasets and policies, with its arguments."""

import json
from pathlib import Path

import h5py
import pytest
from rail_kind import record

from raymimic.cli.entry import run_script
from raymimic.errors import ConfigError
from raymimic.scripts import dataset_states_to_obs, playback_dataset

RAIL = ["--import", "rail_kind", "--actors", "0"]


def test_states_to_obs_writes_beside_the_dataset(tmp_path: Path, capfd) -> None:
    source = record(tmp_path / "demo.hdf5", demos=3)
    words = ["--dataset", str(source), "--done_mode", "2", "--n", "2", *RAIL]
    images = ["--camera_names", "front", "side", "--camera_height", "6", "--camera_width", "8"]
    parse = dataset_states_to_obs.arguments().parse_args
    args = parse([*words, *images, "--exclude-next-obs", "--copy_rewards", "--copy_dones"])
    dataset_states_to_obs.dataset_states_to_obs(args)
    with h5py.File(tmp_path / "demo_im8.hdf5") as file:
        assert list(file["data"]) == ["demo_0", "demo_2"]
        assert file["data/demo_0/obs/side_image"].shape == (4, 6, 8, 3)
        assert "next_obs" not in file["data/demo_0"]
        render = json.loads(file["data"].attrs["env_args"])["render"]
        assert "shadows" not in render  # as the simulator draws
    dataset_states_to_obs.dataset_states_to_obs(parse([*words, "--output_name", "low.hdf5"]))
    with h5py.File(tmp_path / "low.hdf5") as file:
        assert set(file["data/demo_0/obs"]) == {"x", "noise"}
    capfd.readouterr()
    script = dataset_states_to_obs.dataset_states_to_obs
    with pytest.raises(SystemExit) as ended:
        run_script(dataset_states_to_obs.arguments(), script, [*words, "--output_name", "low.hdf5"])
    said = capfd.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("raymimic: error: ")
    assert said.count("\n") == 1


def test_playback_films_and_measures(renderer, tmp_path: Path, capfd) -> None:
    source = record(tmp_path / "demo.hdf5", demos=3, drift=0.25)
    parse = playback_dataset.arguments().parse_args
    words = ["--dataset", str(source), "--filter_key", "train", *RAIL]
    film = str(tmp_path / "a.mp4")
    cameras = ["--render_image_names", "front", "side"]
    playback_dataset.playback_dataset(parse([*words, "--first", "--video_path", film, *cameras]))
    assert "2 frames" in capfd.readouterr().out
    assert Path(film).stat().st_size > 0
    playback_dataset.playback_dataset(parse([*words, "--use-actions"]))
    assert "largest drift 0.75" in capfd.readouterr().out
    with pytest.raises(ConfigError, match="--video_path"):
        playback_dataset.playback_dataset(parse([*words, "--render"]))
