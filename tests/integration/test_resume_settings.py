"""Settings that may change when a run is resumed, and those that are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checks import assert_refused, assert_same, state_of
from run_records import evaluations_of
from tiny import Ran, train_args, train_here, write_hopper

from raymimic.config import get_all_registered_configs
from raymimic.training.resume import FREE, changed, matches

pytestmark = pytest.mark.usefixtures("evaluations_here")

SETTINGS = [
    *("experiment.rollout.enabled=true", "experiment.rollout.rate=2", "experiment.rollout.n=2"),
    *("experiment.rollout.horizon=10", "experiment.render_video=false"),
    *("experiment.save.on_best_rollout_return=true", "ray.commit_interval_s=0"),
]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs, beside its dataset `hopper.hdf5`."""
    folder = tmp_path_factory.mktemp("first")
    return train_here(folder, *train_args(write_hopper(folder / "hopper.hdf5"), *SETTINGS))


@pytest.fixture
def run(first: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    copy = tmp_path / "td3_bc_trained_models" / "test" / first.name
    return Path(shutil.copytree(first, copy))


@pytest.fixture
def resume(cli: Callable[..., Ran], run: Path) -> Callable[..., Ran]:
    def go_on(*settings: str, args: tuple[str, ...] = ()) -> Ran:
        return cli("train", "--resume", str(run), "--json", *args, "--set", *settings)

    return go_on


@pytest.mark.parametrize(
    "settings",
    [
        ["experiment.rollout.n=3", "experiment.rollout.seed=7", "experiment.rollout.warmstart=2"],
        ["experiment.rollout.enabled=false", "experiment.logging.log_tb=true"],
        [
            *("experiment.save.every_n_epochs=1", "experiment.save.epochs=[3]"),
            *("experiment.save.on_best_validation=true", "experiment.save.enabled=false"),
            *("experiment.save.on_best_rollout_return=false", "experiment.video_skip=1"),
        ],
        ["experiment.name=renamed", "meta.hp_values=[1]", "train.hdf5_cache_mode=low_dim"],
        ["train.imports=[]", "train.num_data_workers=2", "experiment.keep_all_videos=true"],
    ],
)
def test_what_changes_no_result_may_change(first, resume, settings):
    ran = resume("train.num_epochs=4", *settings)
    assert ran.status == 0, ran.err
    whole = state_of(Ran(0, json.dumps({"last_checkpoint": str(_whole(first))}), ""))
    assert_same(state_of(ran), whole)
    evaluations = evaluations_of(Path(ran.result["run_dir"]))
    counts = [len(e["episodes"]["Hopper-v5"]) for e in evaluations]
    evaluated = [2, 3] if settings[0].endswith("n=3") else [2, 2]
    assert counts == ([2] if "experiment.rollout.enabled=false" in settings else evaluated)


def _whole(first: Path) -> Path:
    """The last checkpoint of a run of four epochs that nothing interrupted."""
    folder = first.parents[2]
    if not (first.parents[1] / "whole").exists():
        args = train_args(folder / "hopper.hdf5", *SETTINGS, "train.num_epochs=4")
        train_here(folder, *args, "--name", "whole")
    (found,) = (first.parents[1] / "whole").glob("*/models/model_epoch_4.pth")
    return found


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.seed=2", "train.seed was 1 and now is 2; start a new run"),
        ("train.batch_size=8", "train.batch_size was 16 and now is 8; start a new run"),
        ("ray.data_placement=shard", "ray.data_placement was 'replicate' and now is 'shard'"),
        ("experiment.rollout.horizon=20", "was 10 and now is 20; leave it as it was"),
        ("experiment.env=Walker2d-v5", "raymimic evaluate CHECKPOINT"),
        ("experiment.rollout.terminate_on_success=false", "was True and now is False; leave it"),
        ('experiment.env_meta_update_dict={"env_kwargs":{"a":1}}', "leave it as it was"),
        ("experiment.ckpt_path=other.pth", "experiment.ckpt_path was None and now is"),
        ("train.output_dir=elsewhere", "stays where it lies"),
        ("ray.storage_path=memory://elsewhere", "stays where it lies"),
    ],
)
def test_what_changes_a_result_is_refused(resume, run, setting, said):
    before = sorted(run.rglob("*"))
    if "env_meta" in setting or "experiment.env=" in setting:
        setting_args = ("experiment.rollout.enabled=false", setting)
    else:
        setting_args = (setting,)
    assert_refused(resume(*setting_args), setting.partition("=")[0], said)
    assert sorted(run.rglob("*")) == before


def test_what_nothing_was_scored_by_may_change(cli, hopper):
    ran = cli(*train_args(hopper), "--json")
    settings = [*SETTINGS, "experiment.rollout.horizon=5", "train.num_epochs=4"]
    ran = cli("train", "--resume", ran.result["run_dir"], "--json", "--set", *settings)
    assert ran.status == 0, ran.err
    assert ran.result["metrics"]["Rollout/Horizon/Hopper-v5"] == 5


def test_a_run_that_was_moved_goes_on_where_it_is(cli, run, tmp_path):
    (tmp_path / "moved" / "mine").mkdir(parents=True)
    run.rename(tmp_path / "moved" / "mine" / run.name)
    names = ["--name", "mine", "--set", f"train.output_dir={tmp_path}/moved"]
    config = tmp_path / "mine.json"
    shutil.copyfile(tmp_path / "moved" / "mine" / run.name / "config.json", config)
    ran = cli("train", "--config", str(config), "--resume", "--json", *names)
    assert ran.status == 0, ran.err
    assert ran.result["run_dir"] == str(tmp_path / "moved" / "mine" / run.name)


# -- data --


def test_the_same_data_elsewhere_are_the_same_data(first, run, resume, tmp_path):
    config = json.loads((run / "config.json").read_text())
    config["train"]["data"] = str(tmp_path / "gone.hdf5")
    (run / "config.json").write_text(json.dumps(config))
    assert_refused(resume("train.num_epochs=4"), "gone.hdf5", "does not exist", "--dataset")
    moved = shutil.copyfile(first.parents[2] / "hopper.hdf5", tmp_path / "other_name.hdf5")
    ran = resume("train.num_epochs=4", args=("--dataset", str(moved)))
    whole = state_of(Ran(0, json.dumps({"last_checkpoint": str(_whole(first))}), ""))
    assert_same(state_of(ran), whole)
    saved = json.loads((run / "config.json").read_text())
    assert saved["train"]["data"] == str(moved)
    entry = json.dumps([{"path": str(moved)}])
    assert resume("train.num_epochs=4", f"train.data={entry}").status == 0
    entry = json.dumps([{"path": str(moved), "filter_key": "train"}])
    assert_refused(resume("train.num_epochs=4", f"train.data={entry}"), "train.data was [{}]")


def test_other_data_are_refused(resume, tmp_path):
    other = write_hopper(tmp_path / "other.hdf5", seed=1)
    ran = resume("train.num_epochs=4", args=("--dataset", str(other)))
    assert_refused(ran, "the data of", "have changed", "sha256:", "start a new run")


def test_evaluations_keep_their_names(cli, tmp_path):
    """Two datasets of one environment are told apart by the names of their files."""
    paths = [write_hopper(tmp_path / f"{name}.hdf5", seed) for seed, name in enumerate("ab")]

    def data(*entries: dict[str, Any]) -> str:
        return f"train.data={json.dumps(list(entries))}"

    given = data(*({"path": str(path)} for path in paths))
    ran = cli(*train_args(paths[0], *SETTINGS, given), "--json")
    assert ran.status == 0, ran.err
    paths[1] = paths[1].rename(tmp_path / "c.hdf5")
    resume = ["train", "--resume", ran.result["run_dir"], "--set", "train.num_epochs=3"]
    moved = data(*({"path": str(path)} for path in paths))
    assert_refused(cli(*resume, moved), "recorded for a, b", "would be for a, c", "'key'")
    named = data({"path": str(paths[0])}, {"path": str(paths[1]), "key": "b"})
    assert cli(*resume, named).status == 0


# -- all keys --


def test_each_key_is_decided(first):
    """Free settings are listed; a new key of these sections must be decided upon."""
    config = get_all_registered_configs()["td3_bc"]()
    keys = [path for path, _ in config.leaves()]
    free = {key for key in keys if matches(key, FREE)}
    for pattern in FREE:
        known = any(matches(key, [pattern]) for key in keys)
        filled_in = pattern.startswith("algo.") or pattern == "train.allow_links"
        assert known or filled_in, pattern
    assert not {key for key in free if key.startswith(("algo.", "observation."))}
    assert {k for k in keys if k.startswith("experiment.") and k not in free} == {
        *("experiment.validate", "experiment.epoch_every_n_steps", "experiment.ckpt_path"),
        *("experiment.validation_epoch_every_n_steps", "experiment.env"),
        *("experiment.additional_envs", "experiment.env_meta_update_dict"),
        *("experiment.rollout.horizon", "experiment.rollout.terminate_on_success"),
    }


def test_what_the_training_fills_in_may_differ():
    a, b = (get_all_registered_configs()["td3_bc"]() for _ in "ab")
    b.algo.optim_params.actor["num_train_batches"] = 5
    b.algo.optim_params.actor["num_epochs"] = 7
    assert all(matches(key, FREE) for key, _, _ in changed(a, b))
    assert len(list(changed(a, b))) == 2
