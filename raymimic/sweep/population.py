"""Population based training: the weakest trials go on from the strongest's weights.

Every so many gradient steps all trials wait for each other. Then each of the weakest takes over
networks, targets, optimizers and schedules of one of the strongest, with perturbed hyperparameters
(Jaderberg et al. 2017, arXiv:1711.09846). Waiting makes the comparison fair, and the result
independent of how many trials run at a time.

Ray Tune's scheduler decides and copies; what is copied is the checkpoint whose evaluation gave the
score. A trial that took over another's weights goes on in a folder of its own.
"""

import json
import math
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.train import Checkpoint
from ray.tune.schedulers import PopulationBasedTraining

from raymimic.sweep.result import TrialResult
from raymimic.sweep.space import Setting, perturb
from raymimic.sweep.spec import SweepSpec
from raymimic.sweep.trial import ENTRY, SCORE, STEP, Reports
from raymimic.training.checkpoint import CheckpointStore
from raymimic.utils import storage

if TYPE_CHECKING:
    from raymimic.config import BaseConfig

# Whose a trial's config is, within Ray Tune.
_DONOR = "donor"
# What a checkpoint of Ray Tune's holds.
_MODEL, _ORIGIN = "model.pth", "origin.json"


@dataclass(frozen=True)
class Adoption:
    """Whose weights a trial goes on from.

    Attributes:
        donor: id of the trial that they come from.
        step: gradient steps that they have behind them.
    """

    donor: str
    step: int

    def run_dir(self, home: str) -> str:
        """Where a trial goes on from them.

        Args:
            home: the trial's folder.
        """
        return f"{home}_from_{self.donor}_{self.step}"


class Population(PopulationBasedTraining):
    """Ray Tune's scheduler with a sweep's space, and draws that follow from seed and step.

    Args:
        spec: the sweep.
        known: results of an earlier session; the population goes on from there.
        on_adoption: hears of each trial that takes over another's weights, and its new setting.
    """

    def __init__(
        self,
        spec: SweepSpec,
        known: Mapping[str, TrialResult],
        on_adoption: Callable[[str, Adoption, Setting], None],
    ) -> None:
        options = spec.scheduler_options
        super().__init__(
            time_attr=STEP,
            perturbation_interval=options["interval_steps"],
            burn_in_period=_next_meeting(spec, list(known.values())),
            quantile_fraction=options["quantile"],
            custom_explore_fn=self._explore,
            log_config=False,
            synch=True,
        )
        self._spec, self._on_adoption = spec, on_adoption
        self._last_step = spec.total_steps or math.inf

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Has a trial wait for the others, and exploits when it is the last of them."""
        meeting = self._next_perturbation_sync
        # What a process that was started again tells again is over, and after the last step there
        # is nothing left to train with another's weights.
        if SCORE not in result or not meeting <= result[STEP] < self._last_step:
            return self.CONTINUE
        for one in tune_controller.get_live_trials():
            if one.is_finished():  # Ray Tune counts trials that failed as alive
                self._trial_state[one].last_train_time = int(meeting)
        # Ray Tune copies a donor's config as it is; so it must tell whose it is.
        trials = tune_controller.get_trials()
        for one in trials:
            one.config = {**one.config, _DONOR: str(one)}
        before = random.getstate()
        random.seed(f"{self._spec.search_seed} {result[STEP]}")
        try:
            decision = str(super().on_trial_result(tune_controller, trial, result))
        finally:
            random.setstate(before)
        for one in trials:
            donor = one.config[_DONOR]
            if donor != str(one):
                setting = one.config[ENTRY]["trial"]["setting"]
                self._on_adoption(str(one), Adoption(donor, result[STEP]), setting)
        return decision

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Keeps what is known of a trial whose process was lost and is started again."""
        if trial not in self._trial_state:
            super().on_trial_add(tune_controller, trial)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Lets the others go on if they waited for a trial that has ended."""
        self._go_on_without(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Lets the others go on if they waited for a trial that has failed for good."""
        # One that is started again has been stopped as failed before Ray Tune tells of it.
        if not trial.is_finished():
            self._go_on_without(tune_controller, trial)

    def _go_on_without(self, tune_controller: Any, gone: Any) -> None:
        self._trial_state[gone].last_train_time = int(self._next_perturbation_sync)
        self._trial_state[gone].last_score = None
        others = [
            trial
            for trial in tune_controller.get_live_trials()
            if trial is not gone and not trial.is_finished()
        ]
        times = [self._trial_state[trial].last_train_time for trial in others]
        if others and min(times) >= self._next_perturbation_sync:
            last: dict[str, Any] = self._trial_state[others[0]].last_result or {}
            self.on_trial_result(tune_controller, others[0], last)

    def _explore(self, config: dict[str, Any]) -> dict[str, Any]:
        """The donor's config with perturbed hyperparameters."""
        trial = config[ENTRY]["trial"]
        rng = np.random.default_rng(random.getrandbits(64))
        resample = self._spec.scheduler_options["resample"]
        setting = perturb(self._spec.space, trial["setting"], rng, resample)
        told = {**config[ENTRY], "trial": {**trial, "setting": setting}, "run_dir": None}
        return {**config, ENTRY: told}


def _next_meeting(spec: SweepSpec, known: Sequence[TrialResult]) -> int:
    """The gradient step at which the population meets next.

    The last meeting counts as held when somebody has gone on from there; else it is held again,
    with the same scores and the same draws.
    """
    interval: int = spec.scheduler_options["interval_steps"]
    living = [result for result in known if result.status != "failed"]
    reached = [result.curve[-1][0] if result.curve else 0 for result in living]
    if len(known) < spec.num_trials or not living:
        return interval
    last = min(reached) // interval * interval
    adopted = [entry["step"] for result in living for entry in result.schedule]
    held = last == 0 or max(*reached, *adopted) > last or last in adopted
    return last + interval if held else last


@dataclass(frozen=True)
class Lineage:
    """Where a trial's present weights came from, and where they go on.

    Attributes:
        trial_id: the trial.
        run_dir: folder of its training.
        step: gradient steps until the checkpoint that it goes on from, as far as Ray Tune knows.
    """

    trial_id: str
    run_dir: str
    step: int = 0

    def after(self, checkpoint: Checkpoint | None, home: str) -> "Lineage":
        """What it is for a process that Ray Tune starts with a checkpoint.

        Args:
            checkpoint: the trial's own newest one, another's that it shall go on from, or none.
            home: folder of the trial.
        """
        if checkpoint is None:
            return self
        with checkpoint.as_directory() as path:
            origin = json.loads((Path(path) / _ORIGIN).read_text())
            donor, step = origin["trial_id"], origin["step"]
            if donor == self.trial_id:
                return Lineage(donor, origin["run_dir"], step)
            run_dir = Adoption(donor, step).run_dir(home)
            store = CheckpointStore(run_dir, None)
            if store.last is None:  # else this process was lost and is started again
                store.adopt((Path(path) / _MODEL).read_bytes(), origin["epoch"])
        return Lineage(self.trial_id, run_dir, step)

    @contextmanager
    def offered(self, epoch: int, step: int) -> Iterator[Checkpoint | None]:
        """An evaluated checkpoint, as Ray Tune hands it to others; `None` if it is kept no more.

        Args:
            epoch: after which it was taken.
            step: gradient steps until then.
        """
        store = CheckpointStore(self.run_dir, None)
        paths = [store.path(entry) for entry in store.entries if entry.epoch == epoch]
        if not paths:
            yield None
            return
        origin = asdict(self) | {"epoch": epoch, "step": step}
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / _MODEL).write_bytes(storage.read_bytes(paths[0]))
            (Path(folder) / _ORIGIN).write_text(json.dumps(origin))
            yield Checkpoint.from_directory(folder)


def find_offered(logs: str, adoption: Adoption) -> str | None:
    """The checkpoint that a trial was to go on from when the sweep's driver was killed.

    Args:
        logs: folder or URI of Ray Tune's experiments.
        adoption: whose it is.

    Returns:
        its folder, if it is there.
    """
    for experiment in storage.subfolders(logs):
        offered = storage.join(logs, experiment, adoption.donor)
        for name in storage.subfolders(offered):
            path = storage.join(offered, name)
            with suppress(FileNotFoundError):
                origin = json.loads(storage.read_bytes(storage.join(path, _ORIGIN)))
                if origin["step"] == adoption.step:
                    return path
    return None


def checkpoint_at(path: str) -> Checkpoint:
    """Ray Tune's handle of what `find_offered` found."""
    filesystem, name = storage.for_arrow(path)
    return Checkpoint(name, filesystem)


class PopulationReports(Reports):
    """Hands Ray Tune the evaluated checkpoint too, where the population meets.

    What a process that was started again tells again comes without: each new checkpoint would make
    Ray Tune drop an old one, which another trial may be about to take over.

    Args:
        spec: the sweep.
        config: the trial's.
        report: `ray.tune.report`.
        lineage: the trial's.
    """

    def __init__(
        self, spec: SweepSpec, config: "BaseConfig", report: Callable[..., None], lineage: Lineage
    ) -> None:
        super().__init__(spec.metric, config.experiment.rollout.n, report)
        self._lineage, self._interval = lineage, spec.scheduler_options["interval_steps"]

    def report(self, score: Mapping[str, Any], **attached: Any) -> None:
        """Adds the checkpoint."""
        step = score.get(STEP, 0)
        if step <= self._lineage.step or step % self._interval:
            super().report(score)
            return
        with self._lineage.offered(score["epoch"], step) as checkpoint:
            super().report(score, checkpoint=checkpoint)
