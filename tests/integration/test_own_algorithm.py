"""An algorithm of the user's own, pasted from robomimic's tutorial, on two Ray Train workers."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import SETTINGS

from raymimic.utils.file_utils import load_dict_from_checkpoint, policy_from_checkpoint

LISTING = Path(__file__).parents[1] / "data" / "my_td3_bc.py"


def test_it_trains_on_two_workers_and_its_checkpoint_acts(
    hopper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(LISTING, tmp_path / "my_td3_bc.py")
    command = [
        *(sys.executable, "-m", "raymimic", "train", "--import", "my_td3_bc"),
        *("--algo", "my_td3_bc", "--dataset", str(hopper), "--workers", "2", "--json"),
        *("--set", *SETTINGS, "algo.actor.layer_dims=[8,8]", "algo.critic.layer_dims=[8,8]"),
        *("experiment.rollout.enabled=true", "experiment.rollout.rate=2", "experiment.rollout.n=2"),
        *("experiment.rollout.horizon=10", "experiment.render_video=false"),
        *("experiment.save.on_best_rollout_return=true", "ray.rollout_actors=1"),
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert np.isfinite(result["metrics"]["Train/Loss"])
    assert np.isfinite(result["metrics"]["Rollout/Return/Hopper-v5"])

    ckpt = load_dict_from_checkpoint(result["best_checkpoint"])
    assert ckpt["raymimic"]["imports"] == ["my_td3_bc"]
    assert ckpt["raymimic"]["training_state"]["actor_update_counter"] == 10
    monkeypatch.syspath_prepend(str(tmp_path))
    policy, _ = policy_from_checkpoint(ckpt_dict=ckpt)
    policy.start_episode()
    action = policy({"flat": np.zeros(11, np.float32)})
    assert action.shape == (3,)
    assert np.all(np.abs(action) <= 1.0)
