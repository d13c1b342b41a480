"""Episodes of a checkpoint's policy as a dataset: the same as in an evaluation, for any actors."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import ray
import torch
from checks import assert_refused
from tiny import process_as_it_was, start_ray, train_args

from raymimic.checkpoints.policy import policy_from_checkpoint
from raymimic.envs.seeds import EPISODES, Purpose, episode_seeds
from raymimic.errors import ConfigError, EnvError, OutputError
from raymimic.recording.demos import record_demos
from raymimic.recording.parts import Parts
from raymimic.recording.policy import PolicyRecipe
from raymimic.rollout.episodes import Rules, run_episodes
from raymimic.rollout.playable import Playable
from raymimic.scripts import run_trained_agent

HORIZON = 30


@pytest.fixture(scope="module")
def checkpoint(hopper: Path, tmp_path_factory) -> str:
    from raymimic.cli import main

    folder = tmp_path_factory.mktemp("policy")
    with process_as_it_was(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(SystemExit) as ended:
            main(train_args(hopper, "experiment.rollout.horizon=40", "train.output_dir=runs"))
        assert ended.value.code == 0
    (last,) = folder.glob("runs/*/*/last.pth")
    return str(last)


def test_episodes_are_those_of_an_evaluation(cli, checkpoint: str, tmp_path: Path) -> None:
    words = ["dataset", "make", "--policy", checkpoint, "--episodes", "3", "--actors", "0"]
    ran = cli(*words, "--horizon", str(HORIZON), "--seed", "4", "--out", "one.hdf5")
    assert ran.status == 0, ran.err
    policy, _ = policy_from_checkpoint(ckpt_path=checkpoint, device=torch.device("cpu"))
    seeds = episode_seeds(Purpose.DEMONSTRATION, 4, PolicyRecipe.stage, EPISODES)[:3]
    meta = {"env_name": "Hopper-v5", "type": 2, "env_kwargs": {}}
    episodes = run_episodes(policy, meta, seeds, Rules(HORIZON), num_envs=2)
    mean = np.mean([episode.episode_return for episode in episodes])
    assert f"mean return {mean:.1f}" in ran.out or f"mean return {mean:.3g}" in ran.out
    assert """one.hdf5 --set 'observation.modalities.obs.low_dim=["flat"]'""" in ran.out
    with h5py.File("one.hdf5") as file:
        data = file["data"]
        assert data.attrs["policy"] == checkpoint
        assert json.loads(data.attrs["env_args"])["env_name"] == "Hopper-v5"
        assert len(data) == 3
        for i, episode in enumerate(episodes):
            demo = data[f"demo_{i}"]
            assert demo.attrs["seed"] == episode.seed
            assert sum(demo["rewards"][:].tolist()) == episode.episode_return  # bit by bit
            assert demo["actions"].shape == (episode.length, 3)
            assert demo["states"].shape[0] == len(demo["next_obs/flat"]) == episode.length
            assert demo["dones"][-1] == episode.terminated


@pytest.mark.ray
def test_the_file_is_the_same_for_any_number_of_actors(checkpoint: str, tmp_path: Path) -> None:
    recipe = PolicyRecipe.of(Playable.read(checkpoint, None, ()), "mine", horizon=HORIZON)
    one, two = tmp_path / "one.hdf5", tmp_path / "two.hdf5"
    record_demos(recipe, one, 5, 0, keep_failures=True, progress=False)
    start_ray()
    try:
        record_demos(recipe, two, 5, 2, keep_failures=True, progress=False)
    finally:
        ray.shutdown()
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.slow
def test_robomimics_script_records_plays_and_films(renderer, checkpoint, tmp_path, capfd) -> None:
    words = ["--agent", checkpoint, "--n_rollouts", "2", "--horizon", "12", "--actors", "0"]
    paths = {name: str(tmp_path / f"a.{name}") for name in ("hdf5", "mp4", "json")}
    files = ["--dataset_path", paths["hdf5"], "--json_path", paths["json"]]
    film = ["--video_path", paths["mp4"], "--camera_names", "track"]
    args = run_trained_agent.arguments().parse_args([*words, *files, *film])
    averages = run_trained_agent.run_trained_agent(args)
    assert json.loads(Path(paths["json"]).read_text()) == averages
    assert (averages["Horizon"], averages["Num_Success"]) == (12.0, 0.0)
    assert Path(paths["mp4"]).stat().st_size > 0
    with h5py.File(paths["hdf5"]) as file:
        assert "obs" not in file["data/demo_1"]
        assert len(file["data/demo_1/states"]) == 12
        returns = [demo["rewards"][:].sum() for demo in file["data"].values()]
    assert averages["Return"] == pytest.approx(np.mean(returns))
    with_obs = run_trained_agent.arguments().parse_args([*words, *files, "--dataset_obs"])
    assert run_trained_agent.run_trained_agent(with_obs) == averages
    with h5py.File(paths["hdf5"]) as file:
        assert file["data/demo_1/next_obs/flat"].shape == (12, 11)


@pytest.mark.parametrize(
    ("args", "names"),
    [
        ([], ["name a dataset", "--policy"]),
        (["walker2d-medium-expert", "--policy", "CKPT"], ["--policy", "leave one out"]),
        (["walker2d-medium-expert", "--episodes", "3"], ["takes no --episodes"]),
        (["--policy", "CKPT", "--noise", "0.1"], ["--policy takes no --noise"]),
        (["--policy", "CKPT", "--size", "20"], ["--policy takes no --size without --cameras"]),
        (["--policy", "CKPT", "--cameras", "trac"], ["camera 'trac'", "did you mean 'track'"]),
        (["--policy", "CKPT", "--env", "Hoper-v5"], ["'Hoper-v5'", "did you mean 'Hopper-v5'"]),
        (["--policy", "CKPT", "--env", "Walker2d-v5"], ["'Walker2d-v5' takes actions of 6"]),
        (["--policy", "missing.pth"], ["missing.pth"]),
    ],
)
def test_bad_input_is_one_sentence(renderer, cli, checkpoint, tmp_path, args, names) -> None:
    words = [checkpoint if word == "CKPT" else word for word in args]
    assert_refused(cli("dataset", "make", *words, "--actors", "0"), *names)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (["--video_path", "a.mp4", "--camera_names", "trac"], EnvError, "did you mean 'track'"),
        (["--video_path", "memory://a.mp4"], OutputError, "write it to a local disk"),
        (["--video_path", "."], OutputError, "cannot write"),
        (
            ["--video_path", "a", "--json_path", "./a"],
            ConfigError,
            "--video_path and --json_path name the same",
        ),
    ],
)
def test_robomimics_script_refuses_before_it_plays(
    renderer, checkpoint, tmp_path, monkeypatch, args, error, message
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Parts, "play", None)
    words = ["--agent", checkpoint, "--actors", "0", *args]
    with pytest.raises(error, match=message):
        run_trained_agent.run_trained_agent(run_trained_agent.arguments().parse_args(words))
    assert not list(tmp_path.iterdir())
