"""Films of demos, and the drift of their actions."""

import json
from collections.abc import Iterator
from pathlib import Path

import h5py
import imageio.v3 as iio
import numpy as np
import pytest
import ray
from checks import assert_refused
from killed_parts import killed_after_two
from rail_kind import KILLS, RAISES, record
from tiny import start_ray

from raymimic.recording.playback import Playback, play_back

PLAYBACK = ["dataset", "playback"]
RAIL = ["--import", "rail_kind", "--actors", "0"]


def greys(video: Path) -> list[float]:
    """The mean of each frame."""
    return [float(frame.mean()) for frame in iio.imiter(video)]


def test_drift_is_the_distance_of_the_states(cli, tmp_path: Path) -> None:
    source = record(tmp_path / "a.hdf5", demos=3, steps=5, drift=0.25)
    ran = cli(*PLAYBACK, str(source), *RAIL, "--verify", "--json", "a.json")
    assert ran.status == 0, ran.err
    report = json.loads((tmp_path / "a.json").read_text())
    assert list(report["demos"]) == ["demo_0", "demo_2", "demo_4"]
    for drift in report["demos"].values():  # a quarter per step, and four states to compare
        assert drift["most"] == drift["end"] == pytest.approx(1.0, abs=1e-6)
        assert (drift["steps"], drift["most_at"], drift["solved"]) == (5, 4, True)
    assert report["summary"]["exact"] == 0
    assert ran.out.splitlines()[1].split() == ["demo_0", "5", "1", "4", "1", "yes"]
    failed = cli(*PLAYBACK, str(source), *RAIL, "--verify", "--tolerance", "0.9")
    assert failed.status == 1
    assert failed.err.endswith("3 demos drift further than 0.9, such as demo_0\n")
    assert cli(*PLAYBACK, str(source), *RAIL, "--verify", "--tolerance", "1.1").status == 0


@pytest.mark.parametrize(
    ("way", "first"), [({}, 0.2), ({"use_actions": True}, 0.3), ({"use_obs": True}, 0.2)]
)
def test_films_show_each_state(renderer, tmp_path: Path, way, first: float) -> None:
    """A frame is taken after each state or action, as in robomimic."""
    source = record(tmp_path / "a.hdf5", demos=2, steps=6)
    with h5py.File(source, "r+") as file:
        for demo in file["data"].values():
            grey = (50 * demo["states"][:, 0]).astype(np.uint8)
            demo["obs/front_image"] = np.tile(grey[:, None, None, None], (1, 64, 64, 3))
    video = tmp_path / "a.mp4"
    playback = Playback(**way, cameras=("front",), skip=2, height=64, width=64)
    play_back(source, playback, video, num_actors=0, imports=["rail_kind"], progress=False)
    shown = np.array(greys(video)).reshape(2, 3)
    for per_step, frames in zip((0.1, 0.3), shown, strict=True):
        begin = 0.2 + (per_step if first > 0.2 else 0.0)
        expected = 50 * (begin + 2 * per_step * np.arange(3))
        np.testing.assert_allclose(frames, expected, atol=3)
    if "use_actions" in way:
        return
    once = Playback(**way, cameras=("front",), first=True, height=64, width=64)
    play_back(source, once, video, num_actors=0, imports=["rail_kind"], progress=False)
    assert len(greys(video)) == 2


@pytest.mark.slow
def test_a_killed_film_goes_on(renderer, cli, tmp_path: Path) -> None:
    source = record(tmp_path / "a.hdf5", demos=6, pause=0.05)
    words = [*PLAYBACK, str(source), *RAIL, "--use-actions", "--cameras", "front"]
    parts = tmp_path / "one.mp4.parts"
    num_kept = killed_after_two([*words, "--video_path", "one.mp4"], parts)
    assert 0 < num_kept < 6
    ran = cli(*words, "--video_path", "one.mp4")
    assert ran.status == 0, ran.err
    assert f"{num_kept} of the demos are from an earlier, interrupted run" in ran.out
    assert cli(*words, "--video_path", "two.mp4").status == 0
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.hdf5", "one.mp4", "two.mp4"]


def test_a_camera_that_the_file_lacks_is_told_those_that_it_has(cli, tmp_path: Path) -> None:
    source = record(tmp_path / "a.hdf5", demos=1)
    with h5py.File(source, "r+") as file:
        file["data/demo_0/obs/front_image"] = np.zeros((5, 8, 8, 3), np.uint8)
    args = ["--use-obs", "--video_path", "a.mp4", "--cameras", "frnt_image"]
    message = "no images of camera 'frnt_image': --cameras takes front_image of this file"
    assert_refused(cli(*PLAYBACK, str(source), *RAIL, *args), message, "did you mean")


@pytest.fixture
def cluster() -> Iterator[None]:
    start_ray()
    yield
    ray.shutdown()


@pytest.mark.ray
def test_any_number_of_actors_plays_the_same(renderer, cluster, cli, tmp_path: Path) -> None:
    source = record(tmp_path / "a.hdf5", demos=6, steps=2, bad={1: KILLS, 3: RAISES})
    args = ["--use-actions", "--filter-key", "train", "--video_skip", "1", "--cameras", "front"]
    one = cli(*PLAYBACK, str(source), *RAIL, *args, "--video_path", "one.mp4")
    assert one.status == 0, one.err  # actions avoid the states that fail
    states = cli(*PLAYBACK, str(source), *RAIL, "--n", "4", "--video_path", "states.mp4")
    assert states.status == 0, states.err
    assert "left out: 2 demos" in states.out
    playback = Playback(use_actions=True, cameras=("front",), skip=1)
    report = play_back(
        source, playback, "two.mp4", None, "train", 2, imports=["rail_kind"], progress=False
    )
    assert report.num_frames == 10
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("a.hdf5", "one.mp4", "states.mp4", "two.mp4")
    ]


@pytest.mark.parametrize(
    ("args", "names"),
    [
        ([], ["nothing to do", "--verify"]),
        (["--video_path", "a.avi"], ["end it in .mp4"]),
        (["--verify", "--use-obs"], ["--use-obs shows images, and --verify"]),
        (["--video_path", "a.mp4", "--json", "a.json"], ["--json needs the drift"]),
        (["--verify", "--video_path", "a.mp4", "--json", "./a.mp4"], ["same file, 'a.mp4'"]),
        (["--verify", "--tolerance", "nan"], ["--tolerance nan"]),
        (["--verify", "--filter-key", "trian"], ["no filter key 'trian'", "did you mean 'train'"]),
        (["--video_path", "a.mp4", "--cameras", "frnt"], ["no camera 'frnt'", "'front'"]),
        (
            ["--video_path", "a.mp4", "--use-obs", "--cameras", "odl"],
            ["'odl'", "--cameras takes none"],
        ),
        (["--video_path", "a.mp4", "--use-obs", "--cameras", "old"], ["'obs/old'", "no film"]),
        (["--video_path", "a.mp4", "--use-obs"], ["holds no images"]),
    ],
)
def test_bad_input_is_one_sentence(cli, tmp_path: Path, args, names) -> None:
    source = record(tmp_path / "a.hdf5", demos=2)
    assert_refused(cli(*PLAYBACK, str(source), *RAIL, *args), *names)
    assert [path.name for path in tmp_path.iterdir()] == ["a.hdf5"]
