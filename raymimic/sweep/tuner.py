"""The driver of a sweep: Ray Tune runs the trials, the driver keeps their results.

Ray Tune decides which trial runs where, restarts it when its process is lost, and stops or perturbs
it as the scheduler says. Its own records are not used: after a kill they would be older than the
trials' folders and `results.jsonl`. A resumed sweep is a new experiment of Ray Tune over the trials
that have not ended, each of which goes on from its last checkpoint; schedulers get the scores of
the others again.
"""

import logging
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from raymimic import storage
from raymimic.cluster.capacity import memory_for_at_most
from raymimic.cluster.placement import Reservation, trials_that_fit
from raymimic.cluster.session import ray_session
from raymimic.cluster.watch import ClusterLostError, ClusterWatch
from raymimic.config import BaseConfig
from raymimic.data.returns import reference_returns
from raymimic.data.training_data import DataInfo
from raymimic.errors import ClusterError, LeaseLostError, TrainingError
from raymimic.sweep.outcome.final import evaluate_winner
from raymimic.sweep.outcome.report import sweep_report_lines, write_report
from raymimic.sweep.outcome.result import FinalScore, TrialResult
from raymimic.sweep.spec.checks import completed
from raymimic.sweep.spec.sweep_file import sweep_from_dict, sweep_from_file
from raymimic.sweep.spec.sweep_spec import SweepSpec, Trial
from raymimic.sweep.trials.folder import SweepFolder
from raymimic.sweep.trials.ledger import TrialLedger
from raymimic.sweep.trials.messages import ORDER_KEY, SCORE
from raymimic.sweep.trials.placement import PlacementWatch
from raymimic.sweep.trials.population import PbtScheduler
from raymimic.sweep.trials.records import SweepRecords
from raymimic.sweep.trials.rehearsal import rehearse
from raymimic.sweep.trials.stopping import AshaScheduler, MedianScheduler
from raymimic.sweep.trials.trial import run_trial
from raymimic.terminal import duration, shown
from raymimic.tracking.places import records_page
from raymimic.tracking.tags import run_tags
from raymimic.training.passwords import remove_passwords
from raymimic.user_modules import ImportPath

# Beginnings of the settings that references depend on.
_OF_REFERENCES = ("train.data", "train.hdf5_filter_key", "experiment.")
# Restarts of a trial whose process was lost, before the trial counts as failed.
MAX_FAILURES = 3
# Turns off Ray Tune's own records and messages, which the sweep's replace.
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
    """The results of a sweep.

    Attributes:
        sweep_dir: folder or URI of the sweep.
        mlflow_parent_run_id: id of the parent run in MLflow; None until the server has given one.
        best_config: path or URI of the winner's config, which `raymimic train` accepts.
        table: one row a setting, the best first.
        final: the winner's score on new episodes, if it was evaluated.
        mlflow_command: shell command that shows the sweep in MLflow; None with a tracking server.
        mlflow_url: the parent run's page on the tracking server; None without a server.
    """

    sweep_dir: str
    mlflow_parent_run_id: str | None
    best_config: str
    table: list[dict[str, Any]]
    final: FinalScore | None
    mlflow_command: str | None = None
    mlflow_url: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The results as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Room:
    """The cluster's room for trials.

    Attributes:
        reservation: resources that each trial reserves.
        trials: number of trials that fit at a time, infinite when no limit is known.
    """

    reservation: Reservation
    trials: float


def run(
    sweep: SweepSpec | Mapping[str, Any] | str | Path,
    *,
    resume: bool = False,
    max_concurrent: int | None = None,
    quiet: bool = False,
) -> SweepResult:
    """Runs a sweep: trains every trial, reports on them, evaluates the winner on new episodes.

    Args:
        sweep: path of a sweep file, its content as a dictionary, or a spec that `sweep_from_file`
            or `sweep_from_dict` made.
        resume: go on with the newest sweep of that name.
        max_concurrent: trials at a time; None: as the sweep says, else as many as the cluster
            holds.
        quiet: print nothing.

    Returns:
        the table, and the places of the results.

    Raises:
        RaymimicError: a mistake that the user can correct, in one sentence.
    """
    spec = _read(sweep, max_concurrent)
    prepared, warnings = rehearse(spec)
    config, data, imports = prepared.config, prepared.data, prepared.imports
    tags = run_tags(config, data.digest, prepared.envs)
    tags |= {"raymimic.workers": str(spec.resources.workers)}
    records = SweepRecords(spec, tags, None if "train.data" in spec.space else data)
    with ray_session(config) as cluster:
        room = Room(
            *trials_that_fit(config)
        )  # raises before a sweep that could never run has a folder
        find = SweepFolder.find if resume else SweepFolder.create
        folder = find(spec, None if "train.data" in spec.space else data.digest)
        try:
            remove_passwords(folder.uri, folder.local)
            ledger = TrialLedger(spec, folder, records, quiet)
            for warning in warnings:  # here once, and not for each trial
                ledger.say(f"warning: {warning}")
            session = _Session(spec, config, imports, data, room, cluster, folder, ledger)
            result = session.run(records)
            folder.mirror()
            return result
        except ClusterLostError as error:
            raise ClusterError(f"{error}; --resume goes on with the sweep") from error
        finally:
            with suppress(LeaseLostError):  # the folder is another process's now
                folder.mirror()
            folder.release()


def _read(
    sweep: SweepSpec | Mapping[str, Any] | str | Path, max_concurrent: int | None
) -> SweepSpec:
    if isinstance(sweep, str | Path):
        spec = sweep_from_file(sweep)
    elif isinstance(sweep, SweepSpec):
        spec = completed(sweep)  # its settings were checked where it was read
    else:
        spec = sweep_from_dict(sweep)
    if max_concurrent is None:
        return spec
    return completed(replace(spec, max_concurrent=max_concurrent))


@dataclass(frozen=True)
class _Session:
    """One call of `run`, after everything was checked.

    Attributes:
        spec: the sweep.
        config: config of any one trial.
        imports: modules that trials import.
        data: structure of the data of any one trial.
        room: the cluster's room for trials.
        cluster: notices the end of the cluster.
        folder: the sweep's folder.
        ledger: results of the trials.
    """

    spec: SweepSpec
    config: BaseConfig
    imports: tuple[str, ...]
    data: DataInfo
    room: Room
    cluster: ClusterWatch
    folder: SweepFolder
    ledger: TrialLedger

    def run(self, records: SweepRecords) -> SweepResult:
        """Trains the trials, compares them, and evaluates the winner."""
        spec, folder, ledger = self.spec, self.folder, self.ledger
        begin = time.monotonic()
        ledger.say(f"sweep {spec.name}: results go to {folder.uri}")
        with records.of(folder):
            ledger.close_left_open()
            self._tune()
            results = list(ledger.results.values())
            _check_scores(results, folder.uri)
            references = self._references()
            report = write_report(spec, results, folder.local, None, references)
            final = None
            if spec.final_episodes:
                ledger.say(f"evaluating the best setting on {spec.final_episodes} new episodes")
                final = evaluate_winner(
                    spec, self.config, self._environments, results, report.best_setting_id
                )
                report = write_report(spec, results, folder.local, final, references)
            records.report(report, final)
        for line in sweep_report_lines(spec, report):
            ledger.say(line)
        ledger.say(
            f"sweep finished in {duration(time.monotonic() - begin)}; see {shown(folder.uri)}"
        )
        page = records_page(self.config, folder.local)
        if str(page):
            ledger.say(f"MLflow page: {page}")
        return SweepResult(
            sweep_dir=folder.uri,
            mlflow_parent_run_id=records.run_id,
            best_config=storage.join(folder.uri, "best_config.json"),
            table=report.table,
            final=final,
            mlflow_command=page.command,
            mlflow_url=page.url,
        )

    @property
    def _environments(self) -> dict[str, str]:
        """Environments of the evaluations: name in metrics to environment name."""
        return {env.key: env.meta["env_name"] for env in self.data.eval_envs if env.evaluate}

    def _references(self) -> dict[str, float]:
        """Returns to compare the scores with; none if settings differ in data or episodes."""
        if not self.spec.metric.startswith("Rollout/Return") or any(
            path.startswith(_OF_REFERENCES) for path in self.spec.space
        ):
            return {}
        found = reference_returns(self.data, self.config.experiment.rollout.horizon)
        counted = [self.spec.environment] if self.spec.environment else list(self._environments)
        # As a score, a mean over environments.
        each = [found.get(env, {}) for env in counted]
        names = [name for name in each[0] if all(name in one for one in each)]
        return {name: fmean(one[name] for one in each) for name in names}

    # -- Ray Tune --

    def _tune(self) -> None:
        """Runs the trials that have not ended."""
        from ray.tune import TuneConfig, Tuner

        space, search = self._trials_to_run()
        if not space and not search:
            return
        os.environ.update(_ENVIRONMENT)
        logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it warns of records that are off
        bundle = self._bundle()
        tuner = Tuner(
            self._trainable(bundle),
            param_space=space,
            tune_config=TuneConfig(
                metric=SCORE,
                mode=self.spec.mode,
                scheduler=_scheduler(self.spec, self.ledger),
                max_concurrent_trials=self._max_concurrent(),
                trial_name_creator=_name,
                trial_dirname_creator=_name,
                # Ray Train's threads may outlive a training that is stopped within its process.
                reuse_actors=self.spec.resources.workers == 1,
                **search,
            ),
            run_config=self._run_config(bundle),
        )
        try:
            tuner.fit()
        finally:
            self.ledger.clear()

    def _trials_to_run(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Ray Tune's space, and its search options; both empty if no trial is left."""
        from ray import tune

        if self.spec.search == "optuna":
            from raymimic.sweep.trials.optuna_search import OptunaSettings

            replays = self.ledger.replays()
            study = self.folder.local / "optuna.log"
            search = OptunaSettings(self.spec, study, self.ledger.result_of, replays)
            return {}, {"search_alg": search, "num_samples": self.spec.num_trials + len(replays)}
        left = self.ledger.left(self.spec.trials())
        if not left:
            return {}, {}
        return {ORDER_KEY: tune.grid_search(self.ledger.replays() + left)}, {}

    @property
    def _is_population(self) -> bool:
        return self.spec.scheduler == "pbt"

    @property
    def _most(self) -> float:
        """Most trials at a time; infinite when no limit is known."""
        return min(self.room.trials, self.spec.max_concurrent or math.inf)

    def _max_concurrent(self) -> int | None:
        """Ray Tune's limit; none under PBT, where it would count trials that wait for others."""
        return None if self._most == math.inf or self._is_population else int(self._most)

    def _bundle(self) -> dict[str, float]:
        """The resources that Ray Tune reserves for a trial's process."""
        # Workers of a trial's own reserve the rest; Ray Tune insists on some resource.
        alone = self.spec.resources.workers == 1
        bundle = dict(self.room.reservation.worker_bundle) if alone else {"memory": 1.0}
        if self._is_population and self._most < math.inf:
            bundle["memory"] = memory_for_at_most(int(self._most))  # limits the trials in its place
        return bundle

    def _trainable(self, bundle: dict[str, float]) -> Any:
        from ray import tune

        resources = replace(
            self.spec.resources, gpus_per_worker=self.room.reservation.gpus_per_worker
        )
        return tune.with_resources(
            tune.with_parameters(
                run_trial,
                spec=replace(self.spec, resources=resources),
                folder=self.folder.trials,
                import_path=ImportPath.of_this_process(),
                imports=self.imports,
            ),
            tune.PlacementGroupFactory([bundle]),
        )

    def _run_config(self, bundle: dict[str, float]) -> Any:
        from ray.tune import CheckpointConfig, FailureConfig, RunConfig

        # All nodes must be able to read the weights that pass from trial to trial.
        base = self.folder.uri if self._is_population else str(self.folder.local)
        filesystem, logs = storage.for_arrow(storage.join(base, "logs"))
        return RunConfig(
            name=f"ray_tune_{time.time_ns()}",
            storage_path=logs,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=3),  # only PBT reports checkpoints
            callbacks=[self.ledger, PlacementWatch(self.cluster, bundle, self.ledger.say)],
            stop=self.ledger.budget,
            verbose=0,
        )


def _check_scores(results: list[TrialResult], folder: str) -> None:
    if any(result.best is not None for result in results):
        return
    errors = sorted({result.error for result in results if result.error})
    raise TrainingError(
        f"no trial of '{folder}' has a score" + (f": {'; '.join(errors[:2])}" if errors else "")
    )


def _name(trial: Any) -> str:
    """Gives Ray Tune's trial our trial's name, which stays when it takes over another's order."""
    order = trial.config[ORDER_KEY]
    name = Trial(**order["trial"]).trial_id
    return name if order["replay"] is None else f"replay_of_{name}"


def _scheduler(spec: SweepSpec, ledger: TrialLedger) -> Any:
    """Ray Tune's scheduler, which stops trials early or exchanges their weights."""
    match spec.scheduler:
        case "none":
            from ray.tune.schedulers import FIFOScheduler

            return FIFOScheduler()  # type: ignore[no-untyped-call]
        case "asha":
            return AshaScheduler(spec)
        case "median":
            return MedianScheduler(spec)
        case "pbt":
            return PbtScheduler(spec, ledger.results, ledger.adopt)
