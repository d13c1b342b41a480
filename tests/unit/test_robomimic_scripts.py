"""robomimic's scripts that play datasets and policies, with its arguments."""

import json
from pathlib import Path

import h5py
import imageio
import numpy as np
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


def test_distances_of_a_file_are_filmed_beside_its_images(tmp_path: Path) -> None:
    source, film = tmp_path / "demo.hdf5", tmp_path / "a.mp4"
    with h5py.File(source, "w") as file:
        demo = file.create_group("data/demo_0")
        demo["actions"] = np.zeros((4, 1))
        demo["obs/front_image"] = np.full((4, 64, 64, 3), 200, np.uint8)
        steps = np.arange(4, dtype=np.float32)[:, None, None, None]
        demo["obs/front_depth"] = np.broadcast_to(0.5 + steps, (4, 64, 64, 1))
    words = ["--dataset", str(source), "--video_path", str(film), "--video_skip", "1"]
    shown = ["--render_image_names", "front_image", "--render_depth_names", "front_depth"]
    parse = playback_dataset.arguments().parse_args
    playback_dataset.playback_dataset(parse([*words, *shown, "--use-obs", "--actors", "0"]))
    frames = np.stack(imageio.v3.imread(film)).astype(float)
    assert frames.shape == (4, 64, 128, 3)
    means = frames[:, :, 80:, :].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(means, [0, 85, 170, 255], atol=4)  # from near to far
    np.testing.assert_allclose(frames[:, :, :48].mean(axis=(1, 2, 3)), 200, atol=4)
    with pytest.raises(ConfigError, match="add --use-obs"):
        playback_dataset.playback_dataset(parse([*words, *shown]))


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
