"""One trial of a sweep, in the process that Ray Tune has placed.

A trial with one worker trains in that process itself; one with more starts Ray Train from there.
Either way it is an ordinary training (`raymimic.training.trainer.train_in_folder`), in a folder
that follows from the trial alone. So a restarted trial goes on from its last checkpoint.
"""

import os
from typing import Any

from raymimic import storage
from raymimic.config import BaseConfig
from raymimic.errors import LeaseLostError, RaymimicError
from raymimic.sweep.spec.sweep_spec import SweepSpec, Trial
from raymimic.sweep.trials.messages import ORDER_KEY, SCORE, STEP, Ended, TuneTracker
from raymimic.user_modules import ImportPath, noting_own_place

# How long a trial waits for an earlier, killed process to let go of its folder [s].
_PATIENCE_S = 60.0


def trial_config(spec: SweepSpec, trial: Trial) -> BaseConfig:
    """The config with which a trial trains.

    It is `SweepSpec.config_for` with the trial's own place and records: the driver keeps the
    records, the checkpoint with the best score is kept, no video is made.
    """
    config = spec.config_for(trial)
    resources = spec.resources
    with config.values_unlocked():
        config.experiment.name = trial.trial_id
        config.experiment.logging.log_tb = False
        config.experiment.render_video = False
        config.mlflow.enabled = False
        save = config.experiment.save
        save.enabled, save.every_n_seconds, save.every_n_epochs, save.epochs = True, None, None, []
        save.on_best_validation = spec.metric.startswith("Valid/")
        save.on_best_rollout_return = spec.metric.startswith("Rollout/Return")
        save.on_best_rollout_success_rate = spec.metric.startswith("Rollout/Success_Rate")
        config.ray.num_workers = 0 if resources.workers == 1 else resources.workers
        if config.ray.threads_per_worker is None:
            config.ray.threads_per_worker = max(1, int(resources.cpus_per_worker))
    return config


def run_trial(
    config: dict[str, Any],
    spec: SweepSpec,
    folder: str,
    import_path: ImportPath,
    imports: tuple[str, ...],
) -> None:
    """Trains one trial; Ray Tune calls this in the trial's process.

    Args:
        config: Ray Tune's config, which holds the order (`messages.trial_order`).
        spec: the sweep, which the driver has checked.
        folder: folder of all trials.
        import_path: where the driver finds a user's modules.
        imports: modules to import first.
    """
    from ray import tune

    from raymimic.config.base_config import import_modules

    order = config[ORDER_KEY]
    if order["replay"] is not None:
        for step, score in order["replay"]:
            tune.report({STEP: step, SCORE: score})
        return
    # Ray Tune waits so long for a stopped trial to leave the process that the next one gets.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", str(int(_PATIENCE_S)))
    import_path.join()
    import_modules(imports)
    # Under population based training the order is the donor's; only the name is the trial's own.
    trial_id = tune.get_context().get_trial_name()
    home = storage.join(folder, trial_id)
    Ended.forget(home)
    try:
        with noting_own_place():
            _train(spec, order, trial_id, home)
    except LeaseLostError:
        raise  # another process has taken over the folder
    except RaymimicError as error:
        Ended(str(error)).write(home)  # a restart would meet the same error
    else:
        Ended(None).write(home)


def _train(spec: SweepSpec, order: dict[str, Any], trial_id: str, home: str) -> None:
    """Trains a trial in its folder, or goes on there.

    Args:
        spec: the sweep.
        order: see `messages.trial_order`.
        trial_id: the trial.
        home: folder of the trial.
    """
    from ray import tune

    from raymimic.training.trainer import train_in_folder

    config = trial_config(spec, Trial(**order["trial"]))
    config.experiment.name = trial_id
    run_dir = order["run_dir"] or home
    if spec.scheduler == "pbt":
        from raymimic.sweep.trials.lineage import Lineage, PbtTracker, checkpoint_at

        checkpoint = tune.get_checkpoint()
        if checkpoint is None and order["adopt"] is not None:
            checkpoint = checkpoint_at(order["adopt"])
        lineage = Lineage(trial_id, run_dir).after(checkpoint, home)
        tracker: TuneTracker = PbtTracker(spec, config, tune.report, lineage)
        train_in_folder(config, lineage.run_dir, tracker, _PATIENCE_S)
        return
    tracker = TuneTracker(spec.metric, config.experiment.rollout.n, tune.report)
    train_in_folder(config, run_dir, tracker, _PATIENCE_S)
