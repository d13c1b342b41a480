"""Small real sweeps: each scheduler stops weak settings, and Optuna tries every seed."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from sweeps import RATE, SWEEP, results_in
from tiny import Ran, start_ray

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    start_ray()
    yield
    ray.shutdown()


@pytest.fixture
def run(
    cli: Callable[..., Ran], hopper: Path, tmp_path: Path
) -> Callable[[dict[str, Any]], tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Runs a sweep of two trials at a time in this process; its outcome, and its results."""

    def tune(sweep: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        (tmp_path / "s.yaml").write_text(json.dumps(sweep | {"dataset": str(hopper)}))
        ran = cli("tune", "s.yaml", "--json", "--max-concurrent", "2")
        assert ran.status == 0, ran.err
        return ran.result, list(results_in(Path(ran.result["sweep_dir"])).values())

    return tune


@pytest.mark.parametrize("options", [{"asha": {}}, {"median": {"min_samples": 2}}])
def test_a_scheduler_stops_weak_settings(run: Callable[..., Any], options: dict[str, Any]) -> None:
    rate = "algo.optim_params.policy.learning_rate.initial"
    sweep = {
        "algo": "bc",
        "set": {
            **{key: value for key, value in SWEEP["set"].items() if not key.startswith("algo.")},
            "algo.actor_layer_dims": [8, 8],
            "experiment.rollout.enabled": False,
            "experiment.validate": True,
            "train.hdf5_filter_key": "train",
            "train.hdf5_validation_filter_key": "valid",
            "train.num_epochs": 4,
            "mlflow.enabled": False,
        },
        # Two that learn, and two that cannot.
        "space": {rate: {"grid": [1e-2, 3e-3, 1e-9, 1e-10]}},
        "seeds": [1],
        "scheduler": options,
        "metric": "Valid/Loss",
        "final_episodes": 0,
    }
    outcome, results = run(sweep)
    ends = {r["setting"][rate]: (r["status"], len(r["curve"])) for r in results}
    assert ("finished", 4) in (ends[1e-2], ends[3e-3])
    assert ends[1e-9][0] == ends[1e-10][0] == "stopped"
    assert max(ends[1e-9][1], ends[1e-10][1]) < 4
    assert outcome["table"][0]["setting"][rate] in (1e-2, 3e-3)
    assert Path(outcome["table"][0]["best_checkpoint"]).exists()


def test_optuna_tries_every_seed_of_each_setting_while_episodes_last(
    run: Callable[..., Any],
) -> None:
    huber, norm = "algo.critic.use_huber", "algo.critic.max_gradient_norm"
    sweep = SWEEP | {
        "space": {
            "algo.alpha": {"loguniform": [0.5, 10]},
            huber: {"choice": [True, False]},
            norm: {"uniform": [0.5, 2.0], "when": {huber: True}},
        },
        "search": "optuna",
        "final_episodes": 0,
        "budget": {"trials": 40, "episodes": 14},
        "set": SWEEP["set"] | {"mlflow.enabled": False, "train.num_epochs": 2 * RATE},
    }
    outcome, results = run(sweep)
    assert all((norm in result["setting"]) == result["setting"][huber] for result in results)
    stopped = [result for result in results if result["status"] == "stopped"]
    assert stopped
    assert {r["error"] for r in stopped} == {"the sweep's 14 evaluation episodes were played"}
    assert {r["status"] for r in results} == {"stopped", "finished"}
    # Two episodes an evaluation; the trials beside the last one may have played one more.
    assert 14 <= sum(result["episodes"] for result in results) <= 16
    best = outcome["table"][0]
    assert sorted(best["by_seed"]) == ["1", "2"]
    assert best["trials"] == {"finished": 2}
