"""Demonstrations of experts: their files, dropped episodes, errors, and numbers of actors."""

import importlib.util
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import slider_expert
from checks import assert_refused

from raymimic.data.writer import RecordedEpisode, writing_dataset
from raymimic.envs.kinds import env_from_metadata
from raymimic.errors import ConfigError
from raymimic.recording.demos import Recipe, play_episode, record_demos
from raymimic.recording.experts.expert import Expert, expert_of, register_expert

IMPORTS = ["slider_expert"]
SLIDER = ["dataset", "make", "slider-line", "--import", *IMPORTS]


def slider(noise: float | None = None) -> tuple:
    expert = expert_of("slider-line", noise)
    return env_from_metadata(expert.env_meta), expert


def test_an_episode_ends_some_steps_after_its_success() -> None:
    env, expert = slider(noise=0.0)
    demo = play_episode(env, expert, seed=0)
    rewards, dones = demo.episode.rewards, demo.episode.dones
    assert rewards is not None
    assert dones is not None
    first = int(np.argmax(rewards))
    assert demo.solved
    assert len(rewards) == first + 1 + expert.hold
    assert dones.tolist() == [0] * (len(dones) - 1) + [1]  # the task has no other end
    unsolved = play_episode(env, expert, seed=slider_expert.UNSOLVED)
    assert unsolved.solved is False
    assert len(unsolved.episode) == expert.horizon
    assert not unsolved.episode.dones.any()


def test_actions_are_those_that_were_played() -> None:
    env, expert = slider()
    episode = play_episode(env, expert, seed=7).episode
    moved = episode.next_obs["position"] - episode.obs["position"]
    np.testing.assert_allclose(moved, 0.1 * episode.actions, atol=1e-6)
    clean = np.clip(-10 * episode.obs["position"], -1, 1)
    noise = (episode.actions - clean)[np.abs(episode.actions) < 1]
    assert np.all(noise != 0)
    assert np.abs(noise).max() < 5 * expert.noise
    assert episode.obs["position"].dtype == episode.actions.dtype == np.float32
    assert episode.obs["top_image"].dtype == np.uint8


def test_an_episode_follows_from_its_seed_alone() -> None:
    env, expert = slider()
    first = play_episode(env, expert, seed=7).episode.arrays()
    play_episode(env, expert, seed=8)
    again = play_episode(env, expert, seed=7).episode.arrays()
    for key, array in first.items():
        np.testing.assert_array_equal(again[key], array)


@pytest.mark.ray
def test_the_file_is_the_same_for_any_number_of_actors(cli, tmp_path: Path) -> None:
    """Crashes, the same in each file: of a process, of Python, and one that Ray starts again."""
    ran = cli(*SLIDER, "--demos", "11", "--actors", "2", "--out", "two.hdf5")
    assert ran.status == 0, ran.err
    path, rate, crashed, _, train = ran.out.splitlines()
    assert path.startswith("dataset: two.hdf5, 11 demos, ")
    assert "0.92 (11 of 12, 95 % interval 0.65 to 0.99)" in rate  # Wilson, by hand
    assert crashed.startswith("left out: 2 episodes that crashed (")
    assert "observation.modalities.obs.rgb=[top_image]" in train
    record_demos(Recipe("slider-line"), "one.hdf5", 11, 0, imports=IMPORTS, progress=False)
    assert (tmp_path / "one.hdf5").read_bytes() == (tmp_path / "two.hdf5").read_bytes()
    with h5py.File("two.hdf5") as file:
        data = file["data"]
        seeds = [data[f"demo_{i}"].attrs["seed"] for i in range(11)]
        dropped = {slider_expert.KILLED, slider_expert.RAISES, slider_expert.UNSOLVED}
        assert seeds == sorted(set(range(14)) - dropped)
        assert all(demo.attrs["success"] for demo in data.values())
        assert data.attrs["num_crashed"] == 2
        assert data.attrs["num_unsolved"] == 1
        assert data.attrs["success_rate"] == pytest.approx(11 / 12)
        assert json.loads(data.attrs["env_args"])["env_name"] == "Slider-v0"
        assert list(file["mask/valid"]) == [b"demo_9"]
        assert len(file["mask/train"]) == 10


@pytest.mark.slow
def test_a_kept_failure_and_an_expert_that_never_ends(cli, tmp_path: Path) -> None:
    recipe = Recipe("slider-line", horizon=3)  # too short for any success
    args = (tmp_path / "kept.hdf5", 3, 0)
    made = record_demos(recipe, *args, keep_failures=True, imports=IMPORTS, progress=False)
    assert (made.num_demos, made.solved, made.unsolved) == (3, 0, 3)
    with h5py.File(made.path) as file:
        assert [demo.attrs["success"] for demo in file["data"].values()] == [False] * 3
        assert len(file["mask/valid"]) == 1
    ran = cli(*SLIDER, "--actors", "0", "--horizon", "3", "--out", "none.hdf5")
    assert_refused(ran, "'slider-line'", "solved none of 20 episodes", "--keep-failures")
    broken = ["dataset", "make", "slider-broken", "--import", *IMPORTS, "--actors", "0"]
    ran = cli(*broken, "--out", "none.hdf5")
    assert_refused(ran, "'slider-broken'", "all of them crashed", "RuntimeError: the slider jams")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.hdf5"]


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["walker2d-medium"], ["did you mean 'walker2d-medium-expert'"]),
        (["slidr-line"], ["did you mean 'slider-line'"]),
        (["slider-line", "--expert", "5"], ["'slider-line' takes no --expert"]),
        (["slider-line", "--size", "20"], ["takes no --size without --cameras"]),
        (["slider-line", "--cameras", "a,a"], ["'a,a'"]),
        (["slider-line", "--cameras", "a", "--size", "0x3"], ["'0x3' is no size"]),
        (["slider-line", "--noise", "nan"], ["'nan' is no number"]),
        (["slider-line", "--demos", "99999"], ["1 to 32,768 demos"]),
        (["hopper-medium-expert", "--noise", "0"], ["takes no --noise"]),
        (["robosuite-lif"], ["no task 'lif'; did you mean 'lift'"]),
    ],
)
def test_bad_input_is_one_sentence(cli, args: list[str], names: list[str]) -> None:
    ran = cli("dataset", "make", *args, "--actors", "0", "--import", *IMPORTS)
    if args[0].startswith("hopper"):
        ran = cli("dataset", "make", *args, "--actors", "0")
    assert_refused(ran, *names)


def test_an_expert_without_its_simulator_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "metaworld", None)  # as if not installed
    monkeypatch.setitem(__import__("sys").modules, "metaworld.policies", None)
    with pytest.raises(Exception, match=r"pip install 'raymimic\[metaworld\]'"):
        expert_of("metaworld-push-v3")


def test_an_expert_has_one_name() -> None:
    assert register_expert("slider")(slider_expert.SliderExpert) is slider_expert.SliderExpert
    with pytest.raises(ConfigError, match="taken"):
        register_expert("metaworld")(slider_expert.SliderExpert)
    with pytest.raises(ConfigError, match="does not extend Expert"):
        register_expert("other")(object)  # type: ignore[type-var]
    assert issubclass(slider_expert.SliderExpert, Expert)


def test_compressed_images_are_read_frame_by_frame(tmp_path: Path) -> None:
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    actions = np.zeros((2, 1), np.float32)
    with writing_dataset(tmp_path / "a.hdf5", {}, compress=True) as writer:
        writer.add(RecordedEpisode({"front_image": images}, actions))
    with h5py.File(tmp_path / "a.hdf5") as file:
        stored = file["data/demo_0/obs/front_image"]
        assert (stored.chunks, stored.compression) == ((1, 4, 5, 3), "gzip")
        np.testing.assert_array_equal(stored[:], images)
        assert file["data/demo_0/actions"].chunks is None


# -- the simulators --


def installed(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"needs {package}")
