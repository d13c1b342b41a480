"""From a config to a trained, evaluated, logged policy: `raymimic.train`."""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymimic.config import BaseConfig, config_factory
from raymimic.config.base_config import config_from_file, import_modules
from raymimic.config.checks import check_config, warnings_for
from raymimic.errors import ClusterError, ConfigError, DatasetError, RaymimicError, TrainingError
from raymimic.tracking.journal import RUN_FILE, read_json
from raymimic.tracking.tracker import Tracker, TrackerGroup
from raymimic.training.checkpoint import CheckpointStore
from raymimic.training.cluster import Resources, plan, ray_session
from raymimic.training.driver import Driver, raise_fatal
from raymimic.training.link import LocalLink, Mailbox
from raymimic.training.progress import ProgressReporter, duration
from raymimic.training.run_folder import RunFolder, config_of_run
from raymimic.training.worker import WorkerSpec, ray_train_loop, train_loop
from raymimic.utils import storage

if TYPE_CHECKING:
    from raymimic.data.loader import DataInfo

logger = logging.getLogger(__name__)

# What may change when a run is resumed; all else would make it another run.
RESUMABLE = ("train.num_epochs", "train.cuda", "experiment.rollout.rate", "ray.", "mlflow.")
NOT_RESUMABLE = ("ray.data_placement", "ray.storage_path")

_POLL_S = 0.1
# For the workers of a training that failed to end.
_STOP_S = 30.0


@dataclass(frozen=True)
class TrainResult:
    """What a training leaves behind.

    Attributes:
        run_dir: folder or URI of the run.
        last_checkpoint: path or URI of the newest checkpoint.
        best_checkpoint: that of the best evaluation, if any was made.
        metrics: the newest value of each metric.
        mlflow_run_id: the run's id on the tracking server, once that has given one.
        learning_curve: picture of the learning curve.
        mlflow_command: what opens MLflow's page with the run.
    """

    run_dir: str
    last_checkpoint: str | None
    best_checkpoint: str | None
    metrics: dict[str, float]
    mlflow_run_id: str | None
    learning_curve: str | None
    mlflow_command: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return asdict(self)


def train(
    config: BaseConfig | Mapping[str, Any] | str | Path,
    *,
    resume: str | None = None,
    quiet: bool = False,
) -> TrainResult:
    """Trains a policy.

    Args:
        config: a config, its dictionary, or the path of its JSON file.
        resume: folder or URI of a run to go on with; `config` may then differ from the run's own
            in `train.num_epochs`, workers, resources and tracking only.
        quiet: print nothing.

    Returns:
        where the results lie.

    Raises:
        RaymimicError: what the user can cure, in one sentence.
    """
    config, data, envs = prepare(config)
    trackers = _trackers(config)
    if resume is None:
        run = RunFolder.create(config)
    else:
        run = RunFolder.at(resume, config)
        _check_resume(config, run, data.digest)
        run.prepare()
    result = _train(config, run, envs, data, trackers, new=resume is None, quiet=quiet)
    return replace(result, mlflow_command=_mlflow_command(config, run))


def train_at(config: BaseConfig, run_dir: str, tracker: Tracker, patience_s: float) -> TrainResult:
    """Trains as a part of something larger, in a folder of its choice, for a tracker of its own.

    Goes on from the last checkpoint where the folder holds one. The config may differ from that
    checkpoint's: whoever calls this knows why.

    Args:
        config: the whole config; what it says of MLflow and TensorBoard does not count.
        run_dir: folder or URI of the run.
        tracker: who hears everything; what it raises beside `SystemExit`, which ends the training,
            becomes a warning.
        patience_s: how long to wait for another process to leave the folder [s].

    Raises:
        RaymimicError: what the user can cure, in one sentence.
    """
    config, data, envs = prepare(config)
    run = RunFolder.at(run_dir, config)
    run.prepare(patience_s)
    return _train(config, run, envs, data, [tracker], new=False, quiet=True)


def _train(
    config: BaseConfig,
    run: RunFolder,
    envs: dict[str, dict[str, Any]],
    data: "DataInfo",
    trackers: list[Tracker],
    *,
    new: bool,
    quiet: bool,
) -> TrainResult:
    """Trains in a folder that is prepared; lets go of it in the end."""
    log_file = run.local / "logs" / "log.txt"
    progress = ProgressReporter(
        config.train.num_epochs,
        log_file if config.experiment.logging.terminal_output_to_txt else None,
        quiet=quiet,
    )
    begin = time.monotonic()
    progress.line(f"{'results go to' if new else 'resuming'} {run.uri}")
    training = None
    try:
        with _tracked(trackers) as tracker:
            training = _Training(config, run, envs, data, tracker, progress)
            result = training.run()
        result = replace(result, mlflow_run_id=read_json(run.local / RUN_FILE).get("run_id"))
        progress.line(f"finished in {duration(time.monotonic() - begin)}; results are in {run.uri}")
    except TrainingError:
        raise  # its story is in the folder
    except RaymimicError:
        # Some mistakes show only where the workers are placed or have read the data.
        if new and not (training and training.begun):
            progress.close()
            run.discard()
        raise
    finally:
        progress.close()
        run.mirror()
        run.release()
    return result


class _Training:
    """One call of `train`, after everything was checked."""

    def __init__(
        self,
        config: BaseConfig,
        run: RunFolder,
        envs: dict[str, dict[str, Any]],
        data: "DataInfo",
        tracker: TrackerGroup,
        progress: ProgressReporter,
    ) -> None:
        self.config, self.run_folder, self.envs = config, run, envs
        self.tracker, self.progress = tracker, progress
        self.tags = facts(config, data.digest)
        self.driver: Driver | None = None
        self.spec = WorkerSpec(
            algo_name=config.algo_name,
            config=json.dumps(config.to_dict()),
            run_dir=run.uri,
            sys_path=user_sys_path(),
            evaluates=bool(envs),
            env_metadata=data.env_metas[0].env_meta if data.env_metas else {},
            dataset_digest=data.digest,
        )

    def run(self) -> TrainResult:
        """Trains, waits for the evaluations, and gathers what came out."""
        if self.config.ray.num_workers == 0:
            driver = self._run_here()
        else:
            with ray_session(self.config):
                driver = self._run_on_ray()
        return self._result(driver)

    @property
    def begun(self) -> bool:
        """Whether the workers have been placed and have loaded data and model."""
        return self.driver is not None and self.driver.started

    def _driver(self, evaluator: Any, post: Any) -> Driver:
        self.driver = Driver(
            self.config,
            self.run_folder,
            self.envs,
            self.tracker,
            self.tags,
            self.progress,
            evaluator if self.envs else None,
            post,
        )
        return self.driver

    def _run_here(self) -> Driver:
        import torch

        from raymimic.rollout.local import LocalEvaluator
        from raymimic.utils.torch_utils import get_torch_device

        link = LocalLink(lambda event: driver.handle(event))
        driver = self._driver(
            LocalEvaluator(self.config.ray.envs_per_actor, self.config.train.imports), link.post
        )
        threads = torch.get_num_threads()
        try:
            train_loop(
                self.spec,
                link,
                rank=0,
                world_size=1,
                device=get_torch_device(try_to_use_cuda=self.config.train.cuda),
            )
            driver.finish()
        except BaseException:
            # So that whoever goes on does not play the same episodes again.
            with suppress(RaymimicError):
                driver.settle()
            raise
        finally:
            torch.set_num_threads(threads)
        return driver

    def _run_on_ray(self) -> Driver:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from raymimic.rollout.actors import RolloutPool

        resources = plan(self.config)
        # On the driver's node: the loss of another one must cost only workers.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor_class: Any = ray.remote(Mailbox)
        mailbox = actor_class.options(num_cpus=0, scheduling_strategy=here).remote()
        pool = None
        if self.envs:
            pool = RolloutPool(
                num_actors=resources.num_actors,
                envs_per_actor=self.config.ray.envs_per_actor,
                cpus_per_actor=resources.cpus_per_actor,
                imports=tuple(self.config.train.imports),
            )
        driver = self._driver(pool, lambda outcome: mailbox.post.remote(outcome))
        fit = _Fit(self.config, self.spec, self.run_folder, resources, mailbox)
        fit.start()
        try:
            while True:
                alive = fit.is_alive()
                for event in ray.get(mailbox.drain.remote()):
                    driver.handle(event)
                driver.poll()
                if driver.fatal is not None:
                    raise_fatal(driver.fatal)
                if not alive:
                    break
                time.sleep(_POLL_S)
            fit.raise_if_failed()
            driver.finish()
        except BaseException as error:
            ray.get(mailbox.stop.remote(f"{type(error).__name__}: {error}"))
            # Left alone with a Ray that is shut down, the thread would spin.
            fit.join(_STOP_S)
            raise
        finally:
            if pool is not None:
                pool.close()
        return driver

    def _result(self, driver: Driver) -> TrainResult:
        store = CheckpointStore(self.run_folder.uri, self.config.experiment.save)
        curve = driver.draw()
        best, last = store.best, store.last
        if best is not None:
            with storage.local_copy(store.path(best)) as file:
                self.tracker.log_artifact(file, "checkpoints")
        for video in sorted((self.run_folder.local / "videos").glob("*.mp4")):
            self.tracker.log_artifact(video, "videos")
        return TrainResult(
            run_dir=self.run_folder.uri,
            last_checkpoint=store.path(last) if last else None,
            best_checkpoint=store.path(best) if best else None,
            metrics=driver.metrics,
            mlflow_run_id=None,
            learning_curve=str(curve) if curve else None,
        )


class _Fit(threading.Thread):
    """`TorchTrainer.fit`, which blocks, beside the driver's loop."""

    def __init__(
        self,
        config: BaseConfig,
        spec: WorkerSpec,
        run: RunFolder,
        resources: Resources,
        mailbox: Any,
    ) -> None:
        super().__init__(name="ray-train-fit", daemon=True)
        self.error: BaseException | None = None
        self._log = run.local / "logs" / "error.txt"
        self._timeout = config.ray.placement_timeout_s
        # Read by Ray's controller: how long it waits for the workers' resources.
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(self._timeout)
        os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"
        self._trainer = _torch_trainer(config, spec, run, resources, mailbox)

    def run(self) -> None:
        """Trains until all is done or failed for good."""
        try:
            self._trainer.fit()
        except BaseException as error:
            self.error = error

    def raise_if_failed(self) -> None:
        """Raises what ended the training, in one sentence; the whole story goes to a file."""
        if self.error is None:
            return
        text = str(self.error)
        self._log.write_text(text)
        if "WorkerGroupStartupTimeout" in f"{type(self.error).__name__} {text}" or (
            "startup timed out" in text.lower()
        ):
            raise ClusterError(
                f"the cluster placed no workers within {self._timeout:g} s "
                "(ray.placement_timeout_s): other jobs hold its resources, or its autoscaler "
                "cannot add what ray.cpus_per_worker and ray.gpus_per_worker ask for"
            ) from self.error
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        reason = lines[-1] if lines else type(self.error).__name__
        raise TrainingError(
            f"training failed on its workers: {reason}; the whole traceback is in '{self._log}', "
            "and --resume goes on from the last checkpoint"
        ) from self.error


def _torch_trainer(
    config: BaseConfig, spec: WorkerSpec, run: RunFolder, resources: Resources, mailbox: Any
) -> Any:
    """Ray's trainer for this run. Checkpoints, retention and metrics are ours, not its."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    filesystem, path = storage.for_arrow(storage.join(run.uri, "logs"))
    # Several workers on one GPU cannot use NCCL.
    shared_gpu = 0 < resources.gpus_per_worker < 1
    return TorchTrainer(
        ray_train_loop,
        train_loop_config={"spec": spec, "mailbox": mailbox},
        torch_config=TorchConfig(backend="gloo" if shared_gpu else None),
        scaling_config=ScalingConfig(
            num_workers=resources.num_workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=resources.worker_bundle,
        ),
        run_config=RunConfig(
            # Ray would take a name that it knows for the same training.
            name=f"ray_train_{time.time_ns()}",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(  # type: ignore[call-arg] # V2 has it
                max_failures=config.ray.max_failures, controller_failure_limit=0
            ),
        ),
    )


# -- before a training --


def prepare(
    config: BaseConfig | Mapping[str, Any] | str | Path,
) -> tuple[BaseConfig, "DataInfo", dict[str, dict[str, Any]]]:
    """Finds whatever mistake can be found before a training.

    Args:
        config: a config, its dictionary, or the path of its JSON file.

    Returns:
        a config of the caller's own, what is in the data, and the environments to evaluate in, by
        the name that their metrics carry.

    Raises:
        RaymimicError: what the user can cure, in one sentence.
    """
    config = _own_config(config)
    for warning in warnings_for(config):
        logger.warning(warning)
    import_modules(config.train.imports)
    data = _inspect_data(config)
    envs = _environments(config, data)
    if config.experiment.rollout.enabled and not envs:
        logger.warning(
            "nothing is evaluated: the data name no environment (env_args) to evaluate in; "
            "experiment.env names one"
            if _acts(config)
            else f"nothing is evaluated: {config.algo_name} plans, but does not act"
        )
    return config, data, envs


def _own_config(config: BaseConfig | Mapping[str, Any] | str | Path) -> BaseConfig:
    """A config of our own, which names data by absolute paths."""
    if isinstance(config, str | Path):
        config = config_from_file(config)
    elif not isinstance(config, BaseConfig):
        import_modules((config.get("train") or {}).get("imports", ()))
        config = config_factory(str(config.get("algo_name")), config)
    own = config_factory(config.algo_name, config.to_dict())
    check_config(own)
    with own.unlocked():
        data = own.train.data
        if isinstance(data, str):
            own.train.data = storage.absolute(data)
        elif data is not None:
            own.train.data = [{**d, "path": storage.absolute(d["path"])} for d in data]
        if own.experiment.ckpt_path is not None:
            own.experiment.ckpt_path = storage.absolute(own.experiment.ckpt_path)
    own.lock()
    return own


def _inspect_data(config: BaseConfig) -> "DataInfo":
    """Checks the data's structure, so that its mistakes are found before Ray starts."""
    from raymimic.algo import algo_class
    from raymimic.data.loader import inspect_data

    return inspect_data(config, algo_class(config.algo_name, config).needs)


def _environments(config: BaseConfig, data: "DataInfo") -> dict[str, dict[str, Any]]:
    """The environments to evaluate in, by the name that their metrics carry.

    Each is made once here, so that one that cannot be made is found before training.
    """
    if not config.experiment.rollout.enabled or not _acts(config):
        return {}
    from raymimic.envs.env_base import check_env

    envs = {env.key: env.env_meta for env in data.env_metas if env.evaluate}
    for env_meta in envs.values():
        check_env(env_meta, goals=config.use_goals)
    return envs


def _acts(config: BaseConfig) -> bool:
    from raymimic.algo import algo_class
    from raymimic.algo.rollout_policy import can_act

    return can_act(algo_class(config.algo_name, config))


def _check_resume(config: BaseConfig, run: RunFolder, digest: str) -> None:
    """Refuses to resume a run as another one.

    Raises:
        ConfigError: a setting differs that may not.
        DatasetError: the data differ.
    """
    before, now = dict(leaves(config_of_run(run.uri))), dict(leaves(config))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) == now.get(key):
            continue
        if not key.startswith(RESUMABLE) or key.startswith(NOT_RESUMABLE):
            raise ConfigError(
                f"a resumed run keeps its settings, but {key} was {before.get(key)!r} and now is "
                f"{now.get(key)!r}; start a new run for it (experiment.ckpt_path takes the weights "
                "along)"
            )
    ckpt = CheckpointStore(run.uri, config.experiment.save).load_last()
    if ckpt is None:
        return
    before_digest = ckpt["raymimic"]["dataset_digest"]
    if before_digest != digest:
        raise DatasetError(
            f"the data of '{run.uri}' have changed since it was started ({before_digest} then, "
            f"{digest} now); start a new run for them"
        )


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of what is nested; sequences are lists, as JSON has them."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


def user_sys_path() -> tuple[str, ...]:
    """The driver's folders for modules of the user's own, absolute."""
    installed = {Path(p).resolve() for p in (sys.prefix, sys.base_prefix)}
    paths = (Path(p or ".").resolve() for p in sys.path)
    return tuple(
        str(p) for p in paths if p.is_dir() and not any(p.is_relative_to(i) for i in installed)
    )


# -- records --


@contextmanager
def _tracked(trackers: list[Tracker]) -> Iterator[TrackerGroup]:
    """Closes the run's records with how the training truly ended; the driver opens them."""
    group = TrackerGroup(trackers)
    status: Any = "FAILED"
    try:
        yield group
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        group.finish(status)


def _trackers(config: BaseConfig) -> list[Tracker]:
    """Who keeps records.

    Raises:
        ConfigError: the config names a place for them that cannot be.
    """
    trackers: list[Tracker] = []
    if config.mlflow.enabled:
        from raymimic.tracking.mlflow_tracker import MLflowTracker

        trackers.append(
            MLflowTracker(
                tracking_uri=config.mlflow.tracking_uri,
                experiment=config.mlflow.experiment_name or "raymimic",
                run_name=config.mlflow.run_name or config.experiment.name,
                tags=config.mlflow.tags,
            )
        )
    if config.experiment.logging.log_tb:
        from raymimic.tracking.tensorboard_tracker import TensorBoardTracker

        trackers.append(TensorBoardTracker())
    return trackers


def _mlflow_command(config: BaseConfig, run: RunFolder) -> str | None:
    if not config.mlflow.enabled:
        return None
    from raymimic.tracking.mlflow_tracker import open_command, resolve_tracking_uri

    return open_command(resolve_tracking_uri(config.mlflow.tracking_uri, run.local))


def facts(config: BaseConfig, digest: str) -> dict[str, str]:
    """What MLflow's comparison page filters by: tags of a training.

    Args:
        config: the whole config.
        digest: of its data.
    """
    from importlib.metadata import version

    import raymimic

    tags = {
        "algo": config.algo_name,
        "dataset": dataset_name(config),
        "dataset_digest": digest,
        "workers": str(config.ray.num_workers),
        "version.raymimic": raymimic.__version__,
        "version.python": sys.version.split()[0],
    }
    tags |= {f"version.{name}": version(name) for name in ("torch", "ray", "mujoco", "gymnasium")}
    commit = _git_commit()
    return tags | ({"git_commit": commit} if commit else {})


def dataset_name(config: BaseConfig) -> str:
    """The files of a training's data, without their folders."""
    data = config.train.data
    paths = [data] if isinstance(data, str) else [d["path"] for d in data]
    return ",".join(Path(path).name for path in paths)


def _git_commit() -> str | None:
    """The commit of the folder where the command runs, marked when there are changes."""
    git = shutil.which("git")
    if git is None:
        return None
    try:
        run = [git, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
        done = subprocess.run(run, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
