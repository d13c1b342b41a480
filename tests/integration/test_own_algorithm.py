"""An algorithm of the user's own, pasted from robomimic's tutorial, on two Ray Train workers."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny import SETTINGS
from waiting import DEADLINE_S

from raymimic.checkpoints.policy import policy_from_checkpoint
from raymimic.checkpoints.reading import load_dict_from_checkpoint
from raymimic.config import import_modules

pytestmark = pytest.mark.ray

LISTING = Path(__file__).parents[1] / "data" / "my_td3_bc.py"
# Modules that raymimic, Ray or their libraries import, in whichever process.
NAMES = ("json", "mlflow", "torch", "pandas", "pyarrow", "h5py", "gymnasium", "tensorboardX")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with the algorithm, and with files that nobody must take for a library."""
    shutil.copy(LISTING, tmp_path / "my_td3_bc.py")
    for name in NAMES:
        mark = tmp_path / f"{name}-was-imported"
        (tmp_path / f"{name}.py").write_text(f"open({str(mark)!r}, 'w')\n")
    yield tmp_path
    assert not list(tmp_path.glob("*-was-imported"))


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a folder, as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "raymimic", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def test_it_trains_on_two_workers_and_its_checkpoint_acts(
    hopper: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [
        *("train", "--import", "my_td3_bc"),
        *("--algo", "my_td3_bc", "--dataset", str(hopper), "--workers", "2", "--json"),
        *("--set", *SETTINGS, "algo.actor.layer_dims=[8,8]", "algo.critic.layer_dims=[8,8]"),
        *("experiment.rollout.enabled=true", "experiment.rollout.rate=2", "experiment.rollout.n=2"),
        *("experiment.rollout.horizon=10", "experiment.render_video=false"),
        *("experiment.save.on_best_rollout_return=true", "ray.rollout_actors=1"),
        "mlflow.enabled=true",  # delivered by a process of its own
    ]
    done = run(folder, *command)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert np.isfinite(result["metrics"]["Train/Loss"])
    assert np.isfinite(result["metrics"]["Rollout/Return/Hopper-v5"])

    ckpt = load_dict_from_checkpoint(result["best_checkpoint"])
    assert ckpt["raymimic"]["imports"] == ["my_td3_bc"]
    assert ckpt["raymimic"]["training_state"]["actor_update_counter"] == 10
    modules = folder / "modules"
    modules.mkdir()
    shutil.copy(LISTING, modules)
    monkeypatch.syspath_prepend(str(modules))
    import_modules(["my_td3_bc"])
    policy, _ = policy_from_checkpoint(ckpt_dict=ckpt)
    policy.start_episode()
    action = policy({"flat": np.zeros(11, np.float32)})
    assert action.shape == (3,)
    assert np.all(np.abs(action) <= 1.0)


def test_its_trials_find_it(hopper: Path, folder: Path) -> None:
    sweep = {
        "algo": "my_td3_bc",
        "dataset": str(hopper),
        "space": {"algo.discount": {"grid": [0.9]}},
        "metric": "Rollout/Return",
        "final_episodes": 0,
    }
    settings = [
        *(*SETTINGS, "algo.actor.layer_dims=[8,8]", "algo.critic.layer_dims=[8,8]"),
        *("experiment.rollout.enabled=true", "experiment.rollout.rate=2"),
        *("experiment.rollout.n=1", "experiment.rollout.horizon=5", "train.output_dir=out"),
    ]
    (folder / "sweep.yaml").write_text(json.dumps(sweep))
    done = run(folder, "tune", "sweep.yaml", "--json", "--import", "my_td3_bc", "--set", *settings)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout.splitlines()[-1])["table"]
    assert row["trials"] == {"finished": 1}


@pytest.mark.parametrize("command", ["train --workers 0", "train --workers 2", "tune sweep.yaml"])
def test_its_exception_names_its_file_and_line(hopper: Path, folder: Path, command: str) -> None:
    module = folder / "my_td3_bc.py"
    begin = "        info = OrderedDict()\n\n        # Actor loss"
    text = module.read_text()
    assert text.count(begin) == 1
    line = text[: text.index(begin)].count("\n") + 1
    module.write_text(text.replace(begin, f"        batch['nobs']\n{begin}"))
    sweep = {"space": {"algo.discount": {"grid": [0.9]}}, "metric": "Rollout/Return"}
    sweep |= {"algo": "my_td3_bc", "final_episodes": 0}
    (folder / "sweep.yaml").write_text(json.dumps(sweep))
    settings = [*SETTINGS, "ray.max_failures=0", "algo.actor.layer_dims=[8,8]"]
    if command.startswith("tune"):
        settings += ["experiment.rollout.enabled=true", "experiment.rollout.rate=2"]
    else:
        command += " --algo my_td3_bc"
    words = [*command.split(), "--import", "my_td3_bc", "--dataset", str(hopper)]
    done = run(folder, *words, "--set", *settings)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    told = done.stderr if command.startswith("train") else done.stdout + done.stderr
    assert f"KeyError: 'nobs' ({module}, line {line})" in told
