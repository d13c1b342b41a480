"""The driver of a sweep: Ray Tune runs the trials, this keeps what they say.

Ray Tune decides which trial runs where, starts it again when its process is lost, and stops or
perturbs it as the scheduler says. Its own records are not used: what it would restore after a kill
is older than what lies in the trials' folders and in `results.jsonl`. A resumed sweep is a new
experiment of Ray Tune over the trials that have not ended, each of which goes on from its last
checkpoint; schedulers hear the scores of the others again.
"""

import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymimic.errors import TrainingError
from raymimic.sweep.board import Board
from raymimic.sweep.final import evaluate_winner
from raymimic.sweep.folder import SweepFolder
from raymimic.sweep.mlflow_sweep import SweepRecords
from raymimic.sweep.population import Population
from raymimic.sweep.report import report_lines, write_report
from raymimic.sweep.result import FinalScore, TrialResult
from raymimic.sweep.spec import SweepSpec, Trial
from raymimic.sweep.stopping import Halving, Median
from raymimic.sweep.trial import ENTRY, SCORE, run_trial, trial_config
from raymimic.training.cluster import Resources, at_once, memory_share, ray_session
from raymimic.training.progress import duration
from raymimic.training.trainer import facts, prepare, user_sys_path
from raymimic.utils import storage

if TYPE_CHECKING:
    from raymimic.config import BaseConfig

# Restarts of a trial whose process was lost, before the trial counts as failed.
MAX_FAILURES = 3
# Ray Tune's own records and messages, which say nothing that ours do not.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class SweepResult:
    """What a sweep leaves behind.

    Attributes:
        sweep_dir: its folder or URI.
        mlflow_parent_run_id: the parent run's id on the tracking server, once that has given one.
        best_config: path or URI of the winner's config, which `raymimic train` accepts.
        table: one row a setting, the best first.
        final: the winner's score on new episodes, if it was evaluated.
    """

    sweep_dir: str
    mlflow_parent_run_id: str | None
    best_config: str
    table: list[dict[str, Any]]
    final: FinalScore | None

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return asdict(self)


def run(
    sweep: SweepSpec | Mapping[str, Any] | str | Path,
    *,
    resume: bool = False,
    max_concurrent: int | None = None,
    quiet: bool = False,
) -> SweepResult:
    """Runs a sweep: trains every trial, reports on them, evaluates the winner on new episodes.

    Args:
        sweep: what to do, its dictionary, or the path of its YAML file.
        resume: go on with the newest sweep of that name.
        max_concurrent: trials at a time; as many as the cluster holds unless given here or there.
        quiet: print nothing.

    Returns:
        where the results lie, and the table.

    Raises:
        RaymimicError: what the user can cure, in one sentence.
    """
    spec = _own_spec(sweep, max_concurrent)
    spec.check_data()
    config, data, _ = prepare(trial_config(spec, spec.example()))
    environments = {env.key: env.env_meta["env_name"] for env in data.env_metas if env.evaluate}
    tags = facts(config, data.digest) | {"workers": str(spec.resources.workers)}
    records = SweepRecords(spec, tags)
    with ray_session(config):
        placement = at_once(config)  # before there is a folder of a sweep that could never run
        find = SweepFolder.find if resume else SweepFolder.create
        folder = find(spec)
        try:
            return _run(spec, config, environments, placement, folder, records, quiet)
        finally:
            folder.mirror()
            folder.release()


def _run(
    spec: SweepSpec,
    config: "BaseConfig",
    environments: Mapping[str, str],
    placement: tuple[Resources, float],
    folder: SweepFolder,
    records: SweepRecords,
    quiet: bool,
) -> SweepResult:
    begin = time.monotonic()
    board = Board(spec, folder, records, quiet)
    board.say(f"sweep {spec.name}: results go to {folder.uri}")
    with records.of(folder):
        board.amend()
        _tune(spec, placement, folder, board)
        results = list(board.results.values())
        _check_scores(results, folder.uri)
        report = write_report(spec, results, folder.local, None)
        final = None
        if spec.final_episodes:
            board.say(f"evaluating the best setting on {spec.final_episodes} new episodes")
            final = evaluate_winner(spec, config, environments, results, report.best_setting_id)
            report = write_report(spec, results, folder.local, final)
        records.report(report, final)
    for line in report_lines(spec, report):
        board.say(line)
    board.say(f"sweep finished in {duration(time.monotonic() - begin)}; see {folder.uri}")
    return SweepResult(
        sweep_dir=folder.uri,
        mlflow_parent_run_id=records.run_id,
        best_config=storage.join(folder.uri, "best_config.json"),
        table=report.table,
        final=final,
    )


def _check_scores(results: list[TrialResult], folder: str) -> None:
    if any(result.best is not None for result in results):
        return
    errors = sorted({result.error for result in results if result.error})
    raise TrainingError(
        f"no trial of '{folder}' has a score" + (f": {'; '.join(errors[:2])}" if errors else "")
    )


def _own_spec(
    sweep: SweepSpec | Mapping[str, Any] | str | Path, max_concurrent: int | None
) -> SweepSpec:
    if isinstance(sweep, str | Path):
        spec = SweepSpec.from_file(sweep)
    elif isinstance(sweep, SweepSpec):
        spec = sweep
    else:
        spec = SweepSpec.from_dict(dict(sweep))
    return spec if max_concurrent is None else replace(spec, max_concurrent=max_concurrent)


# -- Ray Tune --


def _tune(
    spec: SweepSpec, placement: tuple[Resources, float], folder: SweepFolder, board: Board
) -> None:
    """Runs the trials that have not ended."""
    from ray import tune
    from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner

    reserved, room = placement
    most = min(room, spec.max_concurrent or math.inf)
    population = spec.scheduler == "pbt"
    alone = spec.resources.workers == 1
    # A trial with workers of its own only waits for them; Ray Tune wants it to reserve something.
    bundle = dict(reserved.worker_bundle) if alone else {"memory": 1.0}
    if population and most < math.inf:
        # Ray Tune would count those that wait for the others too.
        bundle["memory"] = memory_share(int(most))
    resources = replace(spec.resources, gpus_per_worker=reserved.gpus_per_worker)
    os.environ.update(_ENVIRONMENT)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it misses the records that are off
    trainable = tune.with_resources(
        tune.with_parameters(
            run_trial,
            spec=replace(spec, resources=resources).to_dict(),
            folder=folder.trials,
            sys_path=user_sys_path(),
        ),
        tune.PlacementGroupFactory([bundle]),
    )
    # What trials take over from each other must be where all nodes can read it.
    logs = storage.join(folder.uri if population else str(folder.local), "logs")
    filesystem, logs = storage.for_arrow(logs)
    search: dict[str, Any] = {}
    space: dict[str, Any] = {}
    if spec.search == "optuna":
        from raymimic.sweep.optuna_search import OptunaSettings

        replays = board.replays()
        search["search_alg"] = OptunaSettings(
            spec, folder.local / "optuna.log", board.result_of, replays
        )
        search["num_samples"] = spec.num_trials + len(replays)
    else:
        left = board.left(spec.trials())
        if not left:
            return
        space[ENTRY] = tune.grid_search(board.replays() + left)
    tuner = Tuner(
        trainable,
        param_space=space,
        tune_config=TuneConfig(
            metric=SCORE,
            mode=spec.mode,
            scheduler=_scheduler(spec, board),
            max_concurrent_trials=None if most == math.inf or population else int(most),
            trial_name_creator=_name,
            trial_dirname_creator=_name,
            # Ray Train's threads may outlive a training that is stopped within its process.
            reuse_actors=alone,
            **search,
        ),
        run_config=RunConfig(
            name=f"ray_tune_{time.time_ns()}",
            storage_path=logs,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=3),  # such are PBT's alone
            callbacks=[board],
            stop=board.budget,
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        board.clear()


def _name(trial: Any) -> str:
    """Ray Tune's trial has our trial's name, also when it has taken over another one's entry."""
    entry = trial.config[ENTRY]
    name = Trial(**entry["trial"]).trial_id
    return name if entry["replay"] is None else f"replay_of_{name}"


def _scheduler(spec: SweepSpec, board: Board) -> Any:
    """Who stops trials early, or lets them learn from each other; time is gradient steps."""
    match spec.scheduler:
        case "none":
            from ray.tune.schedulers import FIFOScheduler

            return FIFOScheduler()  # type: ignore[no-untyped-call]
        case "asha":
            return Halving(spec)
        case "median":
            return Median(spec)
        case "pbt":
            return Population(spec, board.results, board.adopt)
