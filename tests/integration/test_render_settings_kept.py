"""Evaluations show a policy images like those of its data: their settings go along."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Ran, train_args

from raymimic.config import config_factory
from raymimic.data.environments import environments
from raymimic.data.writer import RecordedEpisode, writing_dataset
from raymimic.envs.kinds import env_from_metadata
from raymimic.rollout.evaluation import EvalJob, evaluate

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("renderer")]

RENDER = {"cameras": ["track"], "height": 16, "width": 16, "depth": False}
RENDER |= {"shadows": False, "reflections": False, "multisampling": 0}
META = {"env_name": "Hopper-v5", "type": 2, "env_kwargs": {}, "render": RENDER}


def record(path: Path, meta: dict[str, Any]) -> Path:
    rng = np.random.default_rng(0)
    env = env_from_metadata(META)
    with writing_dataset(path, meta) as writer:
        for seed in range(2):
            frames, actions = [env.reset(seed=seed)], rng.uniform(-1, 1, (12, 3))
            frames += [env.step(action)[0] for action in actions]
            keys = ("flat", "track_image")
            obs = {key: np.stack([frame[key] for frame in frames[:-1]]) for key in keys}
            writer.add(RecordedEpisode(obs=obs, actions=actions.astype(np.float32)))
    env.close()
    return path


def test_render_settings_go_from_data_to_checkpoint_to_actor_and_not_to_robomimic(
    cli: Callable[..., Ran], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = record(tmp_path / "images.hdf5", META)
    settings = [
        'observation.modalities.obs.rgb=["track_image"]',
        *(f"experiment.rollout.{key}" for key in ("enabled=true", "n=1", "rate=1", "horizon=4")),
        *("experiment.render_video=false", "train.num_epochs=1"),
        *("experiment.epoch_every_n_steps=1", "train.batch_size=4"),
    ]
    trained = cli(*train_args(dataset, *settings, algo="bc"), "--json")
    assert trained.status == 0, trained.err
    assert "draw other images" not in caplog.text
    checkpoint = trained.result["best_checkpoint"]
    assert torch.load(checkpoint, weights_only=True)["env_metadata"] == META

    job = EvalJob(checkpoint, {"Hopper": META}, seeds=[1], horizon=4, film=1)
    played = evaluate(job, num_envs=1)
    assert [episode.length for episode in played.episodes["Hopper"]] == [4]
    assert played.videos[0].mp4[4:8] == b"ftyp"

    assert cli("export", checkpoint, "robomimic.pth").status == 0
    assert 'robomimic has no render settings: cameras ["track"], height 16' in caplog.text
    env_metadata = torch.load("robomimic.pth", weights_only=True)["env_metadata"]
    assert env_metadata == {key: value for key, value in META.items() if key != "render"}


def test_a_difference_to_the_data_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = record(tmp_path / "images.hdf5", META)
    config = config_factory("bc")
    config.observation.modalities.obs.rgb = ["track_image"]
    entries = [{"path": str(dataset)}]
    assert environments(config, entries)[0].meta == META
    assert "other images" not in caplog.text
    config.experiment.env_meta_update_dict = {"render": {"shadows": True}}
    assert environments(config, entries)[0].meta["render"] == {**RENDER, "shadows": True}
    assert "dataset '" in caplog.text
    assert "by experiment.env_meta_update_dict: shadows true, not false" in caplog.text
