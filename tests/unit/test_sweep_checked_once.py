"""A sweep is checked once, when it is read; a trial checks its own config alone."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from tiny import write_hopper

from raymimic.config.td3_bc_config import TD3_BCConfig
from raymimic.errors import ConfigError
from raymimic.sweep import tuner
from raymimic.sweep.cost import Speed, cost_of
from raymimic.sweep.spec.checks import checked
from raymimic.sweep.spec.sweep_file import sweep_from_dict
from raymimic.sweep.spec.sweep_spec import SweepSpec
from raymimic.sweep.trials import trial as trial_module
from raymimic.sweep.trials.folder import SweepFolder
from raymimic.sweep.trials.messages import trial_order
from raymimic.sweep.trials.records import SweepRecords
from raymimic.sweep.trials.trial import trial_config

OLD = Path(__file__).parents[1] / "data" / "sweep_0.1.0"


class Counter:
    """Counts the checks of whole configs."""

    checks = 0

    def since(self, before: int) -> int:
        return self.checks - before


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Counts the checks of TD3-BC's configs."""
    counted, problems = Counter(), TD3_BCConfig.problems

    def count(config: TD3_BCConfig) -> Iterable[str]:
        counted.checks += 1
        return problems(config)

    monkeypatch.setattr(TD3_BCConfig, "problems", count)
    return counted


def content(tmp_path: Path, trials: int) -> dict[str, Any]:
    return {
        "name": "s",
        "algo": "td3_bc",
        "dataset": str(write_hopper(tmp_path / "hopper.hdf5")),
        "set": {
            "observation.modalities.obs.low_dim": ["flat"],
            "algo.actor.layer_dims": [8],
            "algo.critic.layer_dims": [8],
            "experiment.epoch_every_n_steps": 2,
            "experiment.rollout.enabled": False,
            "experiment.validate": True,
            "train.hdf5_filter_key": "train",
            "train.hdf5_validation_filter_key": "valid",
            "train.batch_size": 8,
            "train.num_epochs": 1,
            "train.cuda": False,
            "train.output_dir": str(tmp_path / "out"),
            "mlflow.enabled": False,
        },
        "space": {"algo.alpha": {"loguniform": [0.5, 10]}},
        "search": "random",
        "budget": {"trials": trials},
        "metric": "Valid/Loss",
        "final_episodes": 0,
    }


def test_200_trials_take_200_checks_and_a_trial_start_takes_1(
    tmp_path: Path, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = sweep_from_dict(content(tmp_path, trials=200))
    assert len(spec.trials()) == 200
    assert counter.checks == 200
    # The driver: it takes the spec, estimates its cost, opens its records, resumes.
    assert tuner._read(spec, 3) == replace(spec, max_concurrent=3)
    cost_of(spec, Speed("CPU", 100.0, {}, 100))
    folder = SweepFolder.create(spec)
    records = SweepRecords(spec, {"dataset": "hopper"})
    with records.of(folder):
        for trial in spec.trials()[:5]:
            records.open(trial)
    folder.release()
    SweepFolder.find(spec).release()
    assert counter.checks == 200
    # A trial's process.
    order = trial_order(spec.trials()[7])
    monkeypatch.setattr(tune, "report", lambda *args, **kwargs: None)
    trial_module._train(spec, order, "t", str(tmp_path / "t"))
    assert list((tmp_path / "t" / "models").glob("*.pth"))
    assert counter.checks == 201


def test_a_spec_is_plain_data(tmp_path: Path, counter: Counter) -> None:
    spec = sweep_from_dict(content(tmp_path, trials=2))
    before = counter.checks
    wrong = replace(spec, num_trials=-1, space={}, seeds=(), metric="no such metric")
    assert counter.since(before) == 0
    with pytest.raises(ConfigError, match=r"'metric' cannot be 'no such metric'"):
        checked(wrong)
    # A spec made by hand is completed, and its password taken out.
    base_config = json.loads(json.dumps(spec.base_config))
    base_config["train"]["num_epochs"] = 4
    base_config["mlflow"]["tracking_uri"] = "http://ann:hunter2@host"
    made = SweepSpec("s", "td3_bc", base_config, spec.space, seeds=(1,), search="random")
    made = replace(made, num_trials=2, scheduler="asha", metric="Valid/Loss", mode="min")
    assert made.scheduler_options == {}
    complete = checked(made)
    assert complete.scheduler_options == {"grace_steps": 2, "reduction_factor": 3}
    assert "hunter2" not in json.dumps(complete.to_dict())
    # A wrong field is refused by `run` too, before it does anything.
    with pytest.raises(ConfigError, match="'seeds' is empty"):
        tuner.run(replace(spec, seeds=()))


def test_a_wrong_setting_is_named_when_the_sweep_is_read(tmp_path: Path, counter: Counter) -> None:
    wrong = content(tmp_path, trials=2) | {
        "search": "grid",
        "space": {"train.frame_stack": {"grid": [1, 2]}},
        "budget": {},
    }
    with pytest.raises(ConfigError, match=r"with train.frame_stack=2: "):
        sweep_from_dict(wrong)


def test_a_sweep_of_0_1_0_is_resumed(tmp_path: Path) -> None:
    """The files were written by raymimic 0.1.0."""
    home = tmp_path / "out" / "old" / "20260101000000"
    home.mkdir(parents=True)
    for file in OLD.iterdir():
        text = file.read_text().replace("FOLDER", str(home)).replace("OUT", str(tmp_path / "out"))
        (home / file.name).write_text(text)
    written = json.loads((home / "sweep.json").read_text())
    spec = sweep_from_dict(
        {
            "name": "old",
            "algo": "td3_bc",
            "dataset": "/DATA/hopper.hdf5",
            "set": {
                "observation.modalities.obs.low_dim": ["flat"],
                "train.output_dir": str(tmp_path / "out"),
                "mlflow.enabled": False,
                "experiment.epoch_every_n_steps": 100,
                "train.num_epochs": 4,
                "experiment.rollout.rate": 1,
            },
            "space": {"algo.alpha": {"loguniform": [0.5, 10]}},
            "search": "random",
            "budget": {"trials": 4},
            "scheduler": "asha",
        }
    )
    folder = SweepFolder.find(spec, "sha256:old")
    assert folder.uri == str(home)
    results = folder.results()
    # The same settings are drawn, so three trials have a result, and one is left to begin.
    assert list(results) == [trial.trial_id for trial in spec.trials()][:3]
    assert [result.status for result in results.values()] == ["finished", "stopped", "running"]
    assert results[spec.trials()[0].trial_id].curve == [(100, 1.0), (200, 2.0)]
    now = json.loads((home / "sweep.json").read_text())
    assert {key: now[key] for key in written if key != "config"} == {
        key: written[key] for key in written if key != "config"
    }
    folder.release()


def test_a_trial_has_the_config_of_its_setting(tmp_path: Path, counter: Counter) -> None:
    spec = sweep_from_dict(content(tmp_path, trials=3))
    before = counter.checks
    configs = [trial_config(spec, trial) for trial in spec.trials()]
    alphas = [trial.setting["algo.alpha"] for trial in spec.trials()]
    assert [config.algo.alpha for config in configs] == alphas
    assert counter.since(before) == 0
