"""A training on augmented images is really killed; resumed, it ends as an uninterrupted one."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from checks import assert_same, state_of
from image_files import write_cameras
from tiny import LAYERS, SETTINGS, Ran
from waiting import DEADLINE_S, wait_for

EPOCHS = 80
ENCODER = {
    "core_kwargs": {"backbone_class": "ShallowConv", "feature_dimension": 8},
    "obs_randomizer_class": ["ColorRandomizer", "CropRandomizer"],
    "obs_randomizer_kwargs": [{}, {"crop_height": 20, "crop_width": 20}],
}


@pytest.mark.slow
def test_a_killed_training_on_images_goes_on_as_if_it_had_not_been(
    cli: Callable[..., Ran], tmp_path: Path
) -> None:
    data = write_cameras(tmp_path / "cameras.hdf5", sizes=[(24, 24)], next_obs=False)
    args = [
        *("train", "--algo", "bc", "--dataset", str(data), "--workers", "0", "--json"),
        *("--set", *LAYERS["bc"], *SETTINGS, 'observation.modalities.obs.rgb=["camera_0"]'),
        *(f"observation.encoder.rgb.{key}={json.dumps(x)}" for key, x in ENCODER.items()),
        *("train.batch_size=4", "experiment.epoch_every_n_steps=2", "ray.commit_interval_s=0"),
        f"train.num_epochs={EPOCHS}",
    ]
    whole = cli(*args)
    (tmp_path / "killed").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "raymimic", *args],
        cwd=tmp_path / "killed",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def manifests() -> list[Path]:
        assert process.poll() is None, process.communicate()
        return list(tmp_path.glob("killed/*_trained_models/*/*/checkpoints.json"))

    try:
        wait_for(manifests, "a checkpoint", interval_s=0.01)
    finally:
        process.kill()
        process.communicate(timeout=DEADLINE_S)
    (manifest,) = tmp_path.glob("killed/*_trained_models/*/*/checkpoints.json")
    begun = json.loads(manifest.read_text())["checkpoints"][-1]["epoch"]
    assert 0 < begun < EPOCHS
    resumed = cli("train", "--resume", str(manifest.parent), "--workers", "0", "--json")
    assert_same(state_of(resumed), state_of(whole))
