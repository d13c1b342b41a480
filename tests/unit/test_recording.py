"""Demonstrations of experts: their files, dropped episodes, errors, and numbers of actors."""

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import ray
import slider_expert
from checks import assert_refused
from killed_parts import killed_after_two
from tiny import start_ray

from raymimic.data.writer import RecordedEpisode, writing_dataset
from raymimic.envs.kinds import env_from_metadata
from raymimic.envs.rendering import use_renderer
from raymimic.envs.seeds import Purpose, episode_seeds
from raymimic.errors import ConfigError, EnvError, pip_install
from raymimic.recording.demos import ExpertPlayer, Recipe, play_episode, record_demos
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


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    start_ray()
    yield
    ray.shutdown()


@pytest.mark.ray
def test_the_file_is_the_same_for_any_number_of_actors(cli, cluster, tmp_path: Path) -> None:
    """Episodes that crash a process, raise an exception, or are not solved among them."""
    ran = cli(*SLIDER, "--demos", "11", "--actors", "0", "--out", "one.hdf5")
    assert ran.status == 0, ran.err
    path, rate, crashed, _, train = ran.out.splitlines()
    assert path.startswith("dataset: one.hdf5, 11 demos, ")
    assert "0.92 (11 of 12, 95 % interval 0.65 to 0.99)" in rate  # Wilson, by hand
    assert crashed.startswith("left out: 2 episodes that crashed (")
    assert "'observation.modalities.obs.rgb=[\"top_image\"]'" in train
    record_demos(Recipe("slider-line"), "two.hdf5", 11, 2, imports=IMPORTS, progress=False)
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
def test_a_killed_recording_goes_on(cli, tmp_path: Path) -> None:
    """Beyond episodes that crash a process, raise an exception, or are not solved."""
    words = [*SLIDER, "--demos", "200", "--actors", "0", "--out", "one.hdf5"]
    parts = tmp_path / "one.hdf5.parts"
    num_kept = killed_after_two(words, parts)
    assert 0 < num_kept < 200
    assert_refused(cli(*words, "--noise", "0.2"), "one.hdf5.parts", "another noise")
    ran = cli(*words)
    assert ran.status == 0, ran.err
    assert f"{num_kept} of the episodes are from an earlier, interrupted run" in ran.out
    assert "'observation.modalities.obs.rgb=[\"top_image\"]'" in ran.out
    made = record_demos(Recipe("slider-line"), "two.hdf5", 200, 0, imports=IMPORTS, progress=False)
    assert (made.resumed, made.num_demos, len(made.crashes)) == (0, 200, 2)
    assert (tmp_path / "one.hdf5").read_bytes() == (tmp_path / "two.hdf5").read_bytes()
    assert not parts.exists()


@pytest.mark.slow
def test_a_kept_failure_and_an_expert_that_never_ends(cli, tmp_path: Path) -> None:
    recipe = Recipe("slider-line", horizon=3)  # too short for any success
    args = (tmp_path / "kept.hdf5", 3, 0)
    made = record_demos(recipe, *args, keep_failures=True, imports=IMPORTS, progress=False)
    assert (made.num_demos, made.solved, made.unsolved) == (3, 0, 3)
    with h5py.File(made.path) as file:
        assert [demo.attrs["success"] for demo in file["data"].values()] == [False] * 3
        assert len(file["mask/valid"]) == 1
    ran = cli(*SLIDER, "--actors", "0", "--seed", "1", "--horizon", "3")
    assert_refused(ran, "'slider-line'", "solved none of 20 episodes", "--keep-failures")
    broken = ["dataset", "make", "slider-broken", "--import", *IMPORTS, "--actors", "0"]
    ran = cli(*broken)
    assert_refused(ran, "'slider-broken'", "all of them crashed", "RuntimeError: the slider jams")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.hdf5"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2**24, 2**70])
def test_a_single_demo_of_any_seed(cli, tmp_path: Path, seed: int) -> None:
    args = ["--actors", "0", "--demos", "1", "--out", "one.hdf5", "--seed", str(seed)]
    ran = cli(*SLIDER, *args)
    assert "no filter key 'valid': the demos are too few; train.validation_fraction" in ran.out
    with h5py.File(tmp_path / "one.hdf5") as file:
        assert list(file["mask"]) == ["train"]
        assert str(file["data"].attrs["seed"]) == str(seed)
        first = episode_seeds(Purpose.DEMONSTRATION, seed, 0, 1)[0]
        assert file["data/demo_0"].attrs["seed"] == first < 2**63


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["walker2d-medium"], ["did you mean 'walker2d-medium-expert'"]),
        (["slidr-line"], ["did you mean 'slider-line'"]),
        (["nothing-lift"], ["known are: ", "metaworld-…, ogbench-…, robosuite-…, slider-…"]),
        (["robosuite"], ["robosuite needs a task at the end of the name; known are: lift"]),
        (["slider-line", "--expert", "5"], ["'slider-line' takes no --expert"]),
        (["slider-line", "--size", "20"], ["takes no --size without --cameras"]),
        (["slider-line", "--cameras", "a,a"], ["'a,a'"]),
        (["slider-line", "--cameras", "a", "--size", "0x3"], ["'0x3' is no size"]),
        (["slider-line", "--noise", "nan"], ["'nan' is not a number"]),
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
    with pytest.raises(Exception, match=re.escape(pip_install("metaworld"))):
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


@installed("metaworld")
@pytest.mark.ray
def test_images_and_states_of_metaworld(cluster: None, tmp_path: Path) -> None:
    quality = {"shadows": False, "reflections": False, "multisampling": 0}
    render = {"cameras": ["corner2"], "height": 24, "width": 32, **quality}
    try:
        use_renderer()
    except EnvError as error:
        pytest.skip(str(error))
    recipe = Recipe("metaworld-reach-v3", render)
    one, two = tmp_path / "one.hdf5", tmp_path / "two.hdf5"
    record_demos(recipe, one, 2, 0, progress=False)
    made = record_demos(recipe, two, 2, 2, progress=False)
    assert one.read_bytes() == two.read_bytes()
    assert (made.solved, made.judged) == (2, 2)
    assert made.low_dim == ("hand_pos", "gripper")
    assert made.images == {"rgb": ["corner2_image"]}
    with h5py.File(two) as file:
        env_args = json.loads(file["data"].attrs["env_args"])
        assert env_args["render"].items() >= render.items()
        demo = file["data/demo_1"]
        assert "next_obs" not in demo
        images = demo["obs/corner2_image"]
        assert (images.shape[1:], images.dtype) == ((24, 32, 3), np.uint8)
        assert np.std(images[-1]) > 10
        assert not np.array_equal(images[0], images[-1])
        env = env_from_metadata(env_args)
        for row in (0, 9):  # plays back, frame by frame
            obs = env.reset_to({"states": demo["states"][row]})
            for key, column in demo["obs"].items():
                np.testing.assert_allclose(obs[key], column[row], atol=1e-6, err_msg=key)
        obs, reward, *_ = env.step(demo["actions"][9])
        np.testing.assert_allclose(obs["flat"], demo["obs/flat"][10], atol=1e-6)
        assert reward == pytest.approx(demo["rewards"][9])


@installed("robosuite")
@pytest.mark.slow
def test_lift_has_the_parts_of_robomimics_files() -> None:
    player = ExpertPlayer(Recipe("robosuite-lift"))
    env_args = player.prepare()
    assert (env_args["env_name"], env_args["type"]) == ("Lift", 1)
    demo = player.play(3)
    episode = demo.episode
    assert demo.solved
    assert episode.rewards[-11] == 1.0
    keys = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 10}
    for key, width in keys.items():
        assert episode.obs[key].shape == (len(episode), width)
    assert "cube" in episode.attrs["model_file"]
    height = episode.obs["object"][:, 2]
    assert height[-1] - height[0] > 0.04  # robosuite's own criterion
    env = env_from_metadata(env_args)
    obs = env.reset_to({"states": episode.states[20], "model": episode.attrs["model_file"]})
    for key in keys:
        np.testing.assert_allclose(obs[key], episode.obs[key][20], atol=1e-5, err_msg=key)


@installed("ogbench")
@pytest.mark.slow
def test_ogbenchs_oracles_play() -> None:
    player = ExpertPlayer(Recipe("ogbench-cube-single-play", horizon=150))
    assert player.prepare() == {"env_name": "cube-single-v0", "type": 2, "env_kwargs": {}}
    player.play(1)
    demo = player.play(0)
    assert demo.solved is None
    assert demo.episode.rewards is None
    assert np.abs(demo.episode.actions).max() <= 1
    cube = demo.episode.obs["flat"][:, 19:22] / 10  # OGBench's scale
    assert np.linalg.norm(cube[-1] - cube[0]) > 0.05
    again = ExpertPlayer(Recipe("ogbench-cube-single-play", horizon=150)).play(0).episode
    for key, array in demo.episode.arrays().items():
        np.testing.assert_array_equal(again.arrays()[key], array, err_msg=key)


@installed("ogbench")
@pytest.mark.slow
def test_the_way_through_a_maze_ends_at_the_goal() -> None:
    expert = expert_of("ogbench-pointmaze-medium-stitch")
    env = env_from_metadata(expert.env_meta)
    episode = play_episode(env, expert, seed=2).episode
    maze = env.base_env.unwrapped
    assert len(episode) == 201
    assert maze.compute_success()
    steps = np.linalg.norm(np.diff(episode.obs["flat"][:, :2], axis=0), axis=1)
    assert steps.max() < 0.4  # no jumps
    cells = {maze.xy_to_ij(xy) for xy in episode.obs["flat"][:, :2]}
    assert len(cells) == 5  # the goal is four cells away
