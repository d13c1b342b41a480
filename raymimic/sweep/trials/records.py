"""The records of a sweep: a parent run, and a child run for each trial.

Only the sweep's driver writes, through the same trackers as a training's (`raymimic.tracking`).
With MLflow each run has a spool and a delivery of its own: a server that is down loses nothing,
repeated epochs count once, and the runs of a killed driver are closed as KILLED.
"""

import contextlib
import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raymimic import storage
from raymimic.config import BaseConfig, config_factory
from raymimic.config.config import leaves
from raymimic.data.training_data import DataInfo
from raymimic.errors import LeaseLostError
from raymimic.sweep.outcome.note import sweep_note
from raymimic.sweep.outcome.report import SweepReport
from raymimic.sweep.outcome.result import FinalScore, TrialResult
from raymimic.sweep.outcome.stats import expected_online_performance
from raymimic.sweep.spec.sweep_spec import SweepSpec, Trial
from raymimic.sweep.trials.folder import SPEC, SweepFolder
from raymimic.sweep.trials.messages import LoggedEpoch
from raymimic.tracking.journal import began_with_all_settings, run_id_of
from raymimic.tracking.parameters import settings_in_force
from raymimic.tracking.registry import trackers_for
from raymimic.tracking.tags import dataset_name
from raymimic.tracking.tracker import RunInfo, Status, TrackerGroup
from raymimic.training.kept_models import dataset_uses, model_of
from raymimic.user_modules import modules_of

logger = logging.getLogger(__name__)

_STATUS: dict[str, Status] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class SweepRecords:
    """The runs of one sweep in all trackers.

    Args:
        spec: the sweep.
        facts: tags that all of its trainings share (algorithm, dataset digest, versions, ...).
        data: the data that all of them share; None where they vary.

    Raises:
        ConfigError: the config names an impossible place for records.
    """

    def __init__(
        self, spec: SweepSpec, facts: Mapping[str, str], data: DataInfo | None = None
    ) -> None:
        self._spec, self._data = spec, data
        self._config = config_factory(spec.algo, spec.base_config)
        self._tags = {**facts, "sweep": spec.name}
        self._local, self._uri = Path(), ""
        self._key: str | None = None
        self._parent = TrackerGroup([])
        self._children: dict[str, TrackerGroup] = {}
        self._closing: list[threading.Thread] = []
        self._ends_early = threading.Event()
        self._said: set[str] = set()
        self._saying = threading.Lock()
        # Made for their checks alone, before there is a cluster or a folder.
        trackers_for(self._config, RunInfo(spec.name, kind="sweep"))

    @property
    def run_id(self) -> str | None:
        """The parent run's id in MLflow; None until the server has given one."""
        return run_id_of(self._local)

    @contextlib.contextmanager
    def of(self, folder: SweepFolder) -> Iterator[None]:
        """Opens the parent run, or goes on with it, and closes all runs at the end.

        Args:
            folder: folder of the sweep.
        """
        self._local, self._uri = folder.local, folder.uri
        if storage.is_uri(folder.uri):  # another machine may resume the sweep, without `local`
            self._key = folder.uri
        self._parent = self._start_parent()
        status: Status = "FAILED"
        try:
            yield
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        except LeaseLostError:
            for tracker in (*self._children.values(), self._parent):
                tracker.abandon()
            self._children.clear()
            self._parent = TrackerGroup([])
            raise
        finally:
            if status != "FINISHED":
                self._ends_early.set()
            for child in self._children.values():  # an error or the user has left them open
                self._finish(child, "KILLED")
            self._finish(self._parent, status)
            for thread in self._closing:
                thread.join()
            self._parent.finish_sweep(status)

    def _start_parent(self) -> TrackerGroup:
        spec = self._spec
        params = parent_params(spec, self._tags["dataset"])
        info = self._info("", spec.name, kind="sweep", params=params, config_file=SPEC)
        parent = TrackerGroup(trackers_for(self._config, info))
        parent.start(self._local, spec.to_dict(), self._tags)
        self._log_datasets(parent)
        return parent

    def _log_datasets(self, run: TrackerGroup) -> None:
        if self._data is not None:
            run.log_datasets(dataset_uses(self._config, self._data))

    # -- children --

    def open(self, trial: Trial) -> None:
        """Opens a trial's run, or goes on with it."""
        if trial.trial_id not in self._children:  # else its process was lost and restarted
            child = self._child(trial)
            self._start(trial, child)
            self._children[trial.trial_id] = child

    def _start(self, trial: Trial, child: TrackerGroup) -> None:
        config = self._spec.config_for(trial)
        tags = {**self._tags, "dataset": dataset_name(config)}
        tags |= {"trial": trial.trial_id, "setting": trial.setting_id, "seed": str(trial.seed)}
        if "train.data" in trial.setting:
            # These are of one of the datasets.
            for name in ("raymimic.dataset_digest", "environment"):
                tags.pop(name, None)
        if "experiment.env" in trial.setting:
            tags["environment"] = str(config.experiment.env)
        child.start(self._folder_of(trial), config.to_dict(), tags)
        self._log_datasets(child)

    def log(self, trial_id: str, epochs: Sequence[LoggedEpoch]) -> None:
        """Passes on a trial's epochs; the run counts repeated ones once."""
        child = self._children[trial_id]
        for epoch, step, metrics, episodes in epochs:
            if episodes:
                child.log_evaluation(epoch, step, metrics, episodes)
            else:
                child.log_epoch(epoch, step, metrics)

    def close(self, trial: Trial, result: TrialResult) -> None:
        """Closes a trial's run; the delivery of the rest goes on beside the sweep."""
        self.open(trial)  # the trial may not have started in this session
        child = self._children.pop(result.trial_id)
        child.set_tags(_tags_of_end(result))
        self._finish(child, _STATUS[result.status])

    def close_left_open(self, ended: Sequence[tuple[Trial, TrialResult]]) -> None:
        """Closes runs of trials that ended just before their driver was killed.

        One after the other, beside the sweep: where the sweep's folder was lost with its machine,
        this may be the runs of all ended trials.
        """
        thread = threading.Thread(
            target=self._close_left_open, args=[ended], name="close-left-open"
        )
        thread.start()
        self._closing.append(thread)

    def _close_left_open(self, ended: Sequence[tuple[Trial, TrialResult]]) -> None:
        for trial, result in ended:
            left_open = [
                tracker
                for tracker in self._child(trial).trackers
                if not TrackerGroup([tracker]).is_closed(self._folder_of(trial))
            ]
            if self._ends_early.is_set():
                return  # the next session closes them
            if left_open:
                child = TrackerGroup(left_open)
                self._start(trial, child)
                child.set_tags(_tags_of_end(result))
                child.finish(_STATUS[result.status])

    def _child(self, trial: Trial) -> TrackerGroup:
        config = self._spec.config_for(trial)
        info = self._info(
            f"trials/{trial.trial_id}",
            config.experiment.name,
            kind="trial",
            params=self._params_of(config),
            sweep_dir=self._local,
        )
        return TrackerGroup(trackers_for(self._config, info))

    def _params_of(self, config: BaseConfig) -> dict[str, Any]:
        """The parameters of a trial: those of all trials, so that they can be compared."""
        if began_with_all_settings(self._local):
            params = dict(leaves(config.to_dict()))
        else:
            params = settings_in_force(config, [*self._spec.space, "train.seed"])
        # MLflow's comparison page then shows no difference but the setting and the seed.
        return {
            path: value
            for path, value in params.items()
            if path != "experiment.name" and not path.startswith("meta.")
        }

    def _folder_of(self, trial: Trial) -> Path:
        return self._local / "trials" / trial.trial_id

    # -- results --

    def report(self, report: SweepReport, final: FinalScore | None) -> None:
        """Gives the parent run the report, the winner's checkpoint and its score.

        Args:
            report: files and table.
            final: the winner's score on new episodes.
        """
        numbers: dict[str, float] = {}
        winner = next(row for row in report.rows if row.setting_id == report.best_setting_id)
        if winner.score is not None:
            score = winner.score
            numbers |= {f"best/{k}": getattr(score, k) for k in ("mean", "iqm", "low", "high")}
        if winner.last is not None:
            numbers["best/last"] = winner.last
        # After the scores: MLflow's compare page begins with the first number.
        numbers["search/episodes"] = float(report.episodes)
        if final is not None:
            numbers |= {f"final/{key}": float(final[key]) for key in ("mean", "low", "high")}
            numbers["final/episodes"] = float(final["episodes"])
        self._parent.log_numbers(0, numbers)
        self._report_online_performance(report)
        for file in report.files:
            self._parent.log_artifact(file, "figures" if file.suffix == ".png" else None)
        if winner.best_checkpoint is not None:
            with storage.local_copy(winner.best_checkpoint) as checkpoint:
                self._log_winner(checkpoint)
        self._parent.set_tags({"best_setting": report.best_setting_id})
        self._parent.log_note(sweep_note(self._spec, report, self._uri, self._tags["dataset"]))

    def _log_winner(self, checkpoint: Path) -> None:
        """Logs the winner's best checkpoint as a model, or as a file where the data vary."""
        model = (
            None
            if self._data is None
            else model_of(checkpoint, self._data, modules_of(self._config))
        )
        if model is None:
            self._parent.log_artifact(checkpoint, "checkpoints")
        else:
            self._parent.log_model(model)
            self._parent.keep_models({model.sha256: ["best of the sweep"]})

    def _report_online_performance(self, report: SweepReport) -> None:
        curves = {
            "best": [row.score.mean for row in report.rows if row.score],
            "last": [row.last for row in report.rows if row.score and row.last is not None],
        }
        for name, scores in curves.items():
            expected = expected_online_performance(scores, self._spec.mode).expected
            for tried, value in enumerate(expected, start=1):
                self._parent.log_numbers(tried, {f"expected_online_performance/{name}": value})

    # -- helpers --

    def _info(self, below: str, name: str, **fields: Any) -> RunInfo:
        """Describes a run to its trackers.

        Args:
            below: the run's folder, within the sweep's.
            name: name to show.
            fields: further fields.
        """
        key = None if self._key is None else f"{self._key}/{below}"
        return RunInfo(name, key=key, say=self._say, **fields)

    def _finish(self, tracker: TrackerGroup, status: Status) -> None:
        """Closes a run without waiting for its delivery."""
        thread = threading.Thread(target=tracker.finish, args=[status], name="finish-records")
        thread.start()
        self._closing.append(thread)

    def _say(self, level: int, text: str) -> None:
        """Says a mishap that several runs meet once, such as a server that is down."""
        mishap, _, _ = text.partition(" (")
        with self._saying:
            if level == logging.INFO:  # the server is back
                self._said.clear()
            elif mishap in self._said:
                return
            else:
                self._said.add(mishap)
        logger.log(level, text)


def _tags_of_end(result: TrialResult) -> dict[str, str]:
    return {"status": result.status} | ({"error": result.error} if result.error else {})


def parent_params(spec: SweepSpec, dataset: str) -> dict[str, Any]:
    """The parameters that tell sweeps apart on MLflow's page; `sweep.json` holds all.

    Args:
        spec: the sweep.
        dataset: name of the data.
    """
    content = spec.to_dict()
    base = spec.base_config
    params = {
        "algo": spec.algo,
        "dataset": dataset,
        **{f"space.{path}": json.dumps(kind) for path, kind in content["space"].items()},
        "scheduler": spec.scheduler,
        **{f"scheduler.{name}": value for name, value in spec.scheduler_options.items()},
        **{key: content[key] for key in ("seeds", "search", "search_seed", "metric", "mode")},
        **{key: content[key] for key in ("budget", "resources", "final_episodes")},
        "train.num_epochs": base["train"]["num_epochs"],
        "train.batch_size": base["train"]["batch_size"],
        "experiment.epoch_every_n_steps": base["experiment"]["epoch_every_n_steps"],
    }
    return {key: value for key, value in params.items() if value is not None}
