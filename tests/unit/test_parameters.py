"""The parameters that MLflow shows: the settings in force."""

import json
from pathlib import Path
from typing import Any

import pytest
from sweeps import small_spec
from tiny import small_config

from raymimic.config.templates import config_named
from raymimic.sweep.trials.records import SweepRecords
from raymimic.tracking.journal import JournalReader, JournalWriter, spool_dir_of
from raymimic.tracking.mlflow_tracker import MLflowTracker
from raymimic.tracking.parameters import settings_in_force
from raymimic.tracking.registry import trackers_for
from raymimic.tracking.tracker import RunInfo


@pytest.mark.parametrize(("template", "most"), [("td3_bc", 60), ("bc", 40), ("bc_rnn", 50)])
def test_a_template_has_few_parameters(template: str, most: int) -> None:
    shown = settings_in_force(config_named(template))
    assert len(shown) <= most
    always = {"algo_name", "train.data", "train.seed", "train.batch_size", "train.num_epochs"}
    assert always <= shown.keys()


def test_only_settings_in_force_are_shown() -> None:
    config = config_named("bc")
    shown = settings_in_force(config)
    off = ("algo.rnn.", "algo.gmm.", "algo.vae.", "algo.transformer.", "observation.encoder.")
    assert not any(path.startswith((*off, "ray.", "mlflow.", "meta.")) for path in shown)
    assert "algo.actor_layer_dims" in shown
    config.algo.rnn.enabled = True
    config.observation.modalities.obs.rgb = ["camera"]
    config.ray.num_workers = 4
    config.experiment.save.every_n_epochs = 7
    config.experiment.rollout.enabled = False
    more = settings_in_force(config)
    added = {
        *(f"algo.rnn.{key}" for key in ("enabled", "horizon", "hidden_dim", "rnn_type")),
        *("algo.rnn.num_layers", "algo.rnn.open_loop", "algo.rnn.kwargs.bidirectional"),
        *("observation.modalities.obs.rgb", "observation.encoder.rgb.core_class"),
        *("ray.num_workers", "experiment.save.every_n_epochs"),
    }
    assert more.keys() - shown.keys() == added
    assert shown.keys() - more.keys() == {
        f"experiment.rollout.{k}" for k in ("n", "horizon", "rate")
    }
    assert (more["ray.num_workers"], more["algo.rnn.horizon"]) == (4, 10)


def test_parts_have_the_encoders_of_their_own_modalities() -> None:
    config = config_named("hbc")
    config.observation.planner.modalities.obs.rgb = ["camera"]
    shown = settings_in_force(config)
    encoders = {path for path in shown if "encoder.rgb" in path}
    assert encoders == {"observation.planner.encoder.rgb.core_class"}


def test_what_a_sweep_varies_is_always_shown() -> None:
    config = config_named("bc")
    asked = ["algo.gaussian.init_std", "algo.vae.prior", "ray.num_workers", "no.such"]
    added = settings_in_force(config, asked).keys() - settings_in_force(config).keys()
    prior = {path for path in added if path.startswith("algo.vae.prior.")}
    assert added - prior == {"algo.gaussian.init_std", "ray.num_workers"}
    assert "algo.vae.prior.learn" in prior
    assert "algo.vae.prior_layer_dims" not in prior


def last_params(run_dir: Path) -> dict[str, str]:
    params: dict[str, str] = _last_start(run_dir)["params"]
    return params


def _last_start(run_dir: Path) -> dict[str, Any]:
    records = JournalReader(spool_dir_of(run_dir)).stream()
    return [record.data for record in records if record.type == "start"][-1]


def test_a_run_goes_on_with_the_parameters_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MLflowTracker, "_spawn", lambda self: None)  # nothing is delivered here
    config = small_config("bc", **{"train.data": "x.hdf5", "ray.max_failures": 9})
    for name, expected in (("new", {"ray.max_failures": "3"}), ("old", {"algo.rnn.horizon": "10"})):
        run_dir = tmp_path / name
        (tracker,) = _mlflow_of(config)
        tracker.start(run_dir, config.to_dict(), {})
        begun = last_params(run_dir)
        assert begun["ray.max_failures"] == "9"
        assert "algo.rnn.horizon" not in begun
        if name == "old":  # as 0.1.0 wrote it
            _rewrite_as_old(run_dir, {**begun, "algo.rnn.horizon": "10", "gone": "1"})
        again = small_config("bc", **{"train.data": "x.hdf5"})
        (tracker,) = _mlflow_of(again)
        tracker.start(run_dir, again.to_dict(), {"raymimic.version.torch": "2", "algo": "bc"})
        torch = "version.torch" if name == "old" else "raymimic.version.torch"
        assert _last_start(run_dir)["tags"] == {torch: "2", "algo": "bc"}
        assert expected.items() <= last_params(run_dir).items()
        assert begun.keys() | expected.keys() == last_params(run_dir).keys()


def test_the_trials_of_a_sweep_have_parameters_of_one_kind(tmp_path: Path) -> None:
    spec = small_spec(tmp_path)
    records = SweepRecords(spec, {"dataset": "hopper"})
    records._local = tmp_path / "sweep"
    params = [records._params_of(spec.config_for(trial)) for trial in spec.trials()]
    different = {key for one in params for key in one if any(p[key] != one[key] for p in params)}
    assert different == {*spec.space, "train.seed"}
    assert len(params[0]) < 70
    # A trial of an older sweep has all settings, as its siblings have.
    JournalWriter(spool_dir_of(records._local)).append(
        {**_START, "params": {}, "tags": {}, "time": 1}
    )
    whole = records._params_of(spec.config_for(spec.trials()[0]))
    assert "ray.max_failures" in whole
    assert "experiment.name" not in whole


_START: dict[str, Any] = {
    **{"type": "start", "key": "k", "tracking_uri": "http://h", "experiment": "e"},
    **{"run_name": None, "host": "h", "pid": 7},
}


def _mlflow_of(config: Any) -> list[MLflowTracker]:
    return [t for t in trackers_for(config, RunInfo("x")) if isinstance(t, MLflowTracker)]


def _rewrite_as_old(run_dir: Path, params: dict[str, str]) -> None:
    path = spool_dir_of(run_dir) / "journal.jsonl"
    first, *rest = path.read_text().splitlines()
    start = {k: v for k, v in json.loads(first).items() if k != "in_force"} | {"params": params}
    path.write_text("".join(f"{line}\n" for line in (json.dumps(start), *rest)))
