"""A training on Ray: starts its workers, follows them, and starts them again when one is lost.

Ray Train can restart workers itself, but does not notify its driver, and gives up if another worker
is lost while they start. So each start is a `TorchTrainer.fit` without retries.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import threading
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymimic import storage
from raymimic.cluster.capacity import describe, live_room
from raymimic.cluster.lost import LOST_ACTOR
from raymimic.cluster.placement import Reservation, reserve
from raymimic.cluster.ray_internals import torch_trainer
from raymimic.cluster.session import cluster_address, ray_session
from raymimic.cluster.watch import ClusterLostError, ClusterWatch
from raymimic.credentials import masked
from raymimic.errors import ClusterError, OutputError, TrainingError
from raymimic.rollout.actors import RolloutPool
from raymimic.tracking.system_metrics import Sampling
from raymimic.training.driver import Driver, raise_fatal
from raymimic.training.link import Event, Mailbox, Placed
from raymimic.training.run import Run
from raymimic.training.worker import WorkerSpec, ray_train_loop

_POLL_S = 0.1
# How long the workers of a failed training may take to end. They notice that it failed once they
# have started, which lasts long on a busy machine.
_STOP_S = 120.0
# The same where a signal ends this process, and all threads with it.
_STOP_BY_SIGNAL_S = 30.0
# How long the mailbox may take to answer. It only stores messages.
_ANSWER_S = 30.0
# How long the processes of placed workers may take to start.
_START_S = 300.0


def train_on_ray(run: Run) -> Driver:
    """Trains with workers and rollout actors on Ray.

    Returns:
        the driver, whose evaluations have all finished.

    Raises:
        ClusterError: the cluster has no room for the training, or has ended.
        RaymimicError: as `WorkersOnRay.train`.
    """
    prepared = run.prepared
    address = cluster_address(prepared.config)
    run.progress.phase(f"joining the Ray cluster {address}" if address else "starting Ray")
    with ray_session(prepared.config) as cluster:
        resources = reserve(prepared.config)
        workers = WorkersOnRay(run, resources, cluster)
        pool = None
        if prepared.envs:
            pool = RolloutPool(
                num_actors=resources.num_actors,
                envs_per_actor=prepared.config.envs_per_actor,
                cpus_per_actor=resources.cpus_per_actor,
                imports=prepared.imports,
                cluster=cluster,
            )
        driver = Driver(run, pool, workers.post)
        try:
            workers.train(driver)
            driver.finish()
        except ClusterLostError as error:
            raise ClusterError(workers.go_on(driver, str(error))) from error
        finally:
            driver.close()
            if pool is not None:
                pool.close()
        return driver


class WorkersOnRay:
    """The workers of a training; when some are lost, all start again.

    Args:
        run: the training.
        resources: reserved for the workers.
        cluster: notices when the cluster ends.
    """

    def __init__(self, run: Run, resources: Reservation, cluster: ClusterWatch) -> None:
        self._config, self._folder = run.prepared.config, run.folder
        self._spec = run.prepared.worker_spec(run.folder)
        self._progress, self._alone = run.progress, run.alone
        self._sampling = run.tracker.sampling
        self._resources, self._cluster = resources, cluster
        self._log = run.folder.local / "logs" / "error.txt"
        self._timeout = self._config.ray.placement_timeout_s
        self._thread: TrainerThread | None = None
        # Read by Ray's controller: how long it waits for the workers' resources.
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(self._timeout)
        os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"

    def post(self, evaluation: Any) -> None:
        """Passes a finished evaluation to the workers."""
        if self._thread is not None:
            self._thread.mailbox.post.remote(evaluation)

    def train(self, driver: Driver) -> None:
        """Trains to the last epoch.

        Args:
            driver: answers the workers' events.

        Raises:
            ClusterError: the workers cannot be placed.
            ClusterLostError: the cluster has ended.
            TrainingError: they failed more than `ray.max_failures` times.
            RaymimicError: a worker raised it.
        """
        failures = 0
        while True:
            self._follow(driver)
            assert self._thread is not None
            failure = self._thread.failure()
            if failure is None:
                return
            self._thread.close()
            self._note(failure)
            failures += failure.counts and not failure.unplaced
            self._raise_if_final(failure, failures, driver)
            limit = self._config.ray.max_failures
            self._progress.line(
                f"{failure.what} {_after(driver)}{failure.why}; waiting for "
                f"{describe(self._resources.worker_bundle, self._resources.num_workers)}, at most "
                f"{self._timeout:g} s"
                + (f" (restart {failures} of {limit})" if limit >= 0 and failures else "")
            )

    def _follow(self, driver: Driver) -> None:
        """Starts the workers and answers their events until they have ended or failed."""
        thread = self._thread = TrainerThread(self._spec, self._resources, self._sampling)
        deadline = time.monotonic() + self._timeout + _START_S
        try:
            thread.start()
            while True:
                alive = thread.is_alive()
                self._show_phase(driver, thread)
                for event in thread.events(driver.may_begin(), wait_s=1.0 if alive else _ANSWER_S):
                    driver.handle(event)
                driver.poll()
                if driver.fatal is not None:
                    raise_fatal(driver.fatal)
                self._cluster.check(now=not alive)
                if not alive:
                    return
                if not thread.placed and time.monotonic() > deadline:
                    raise ClusterError(
                        self.go_on(driver, f"the workers did not start within {_START_S:g} s")
                    )
                time.sleep(_POLL_S)
        except BaseException as error:
            try:
                self._cluster.check(now=True)
                seconds = _STOP_S if isinstance(error, Exception) else _STOP_BY_SIGNAL_S
                self._stop(thread, f"{type(error).__name__}: {error}", seconds)
            except ClusterLostError:
                if isinstance(error, Exception):  # which follows from the cluster's end
                    raise
            raise

    def _show_phase(self, driver: Driver, thread: TrainerThread) -> None:
        """Names the present task, as long as training has not begun."""
        if not thread.placed:
            number = self._resources.num_workers
            self._progress.phase(f"placing {number} worker{'s' if number > 1 else ''}")
        elif not driver.started:
            self._progress.phase(driver.preparation, driver.loading)

    def _stop(self, thread: TrainerThread, reason: str, seconds: float) -> None:
        """Asks the workers to end, and waits until they have or the cluster ends.

        If Ray were shut down before, the thread would spin or abort the process.
        """
        thread.mailbox.stop.remote(reason)
        self._progress.phase("ending the workers")
        deadline = time.monotonic() + seconds
        while thread.is_alive() and time.monotonic() < deadline:
            thread.join(1.0)
            self._cluster.check()

    def _note(self, failure: _Failure) -> None:
        """Appends the whole story to a file."""
        with self._log.open("a") as file:
            file.write(masked(f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n{failure.story}\n\n"))

    def _raise_if_final(self, failure: _Failure, failures: int, driver: Driver) -> None:
        """Raises the error of a failure that ends the training."""
        assert self._thread is not None
        cause = self._thread.error
        if failure.unplaced:
            raise ClusterError(self._unplaced(failures, driver)) from cause
        if failure.full_disk:
            raise OutputError(
                self.go_on(driver, f"the disk is full: {failure.reason}; free some space")
            ) from cause
        limit = self._config.ray.max_failures
        if 0 <= limit < failures:
            message = f"{failure.what} {_after(driver)}{failure.why}"
            if limit:
                message += f", the {failures}th time (ray.max_failures={limit})"
            raise TrainingError(
                self.go_on(driver, f"{message}; the whole story is in '{self._log}'")
            ) from cause

    def _unplaced(self, failures: int, driver: Driver) -> str:
        bundle, number = self._resources.worker_bundle, self._resources.num_workers
        if not failures and not driver.started:
            return (
                f"the cluster placed no workers within {self._timeout:g} s "
                "(ray.placement_timeout_s): other jobs hold its resources, or its autoscaler "
                "cannot add the resources of ray.cpus_per_worker and ray.gpus_per_worker"
            )
        room = live_room(bundle)
        if room >= number:
            return self.go_on(
                driver,
                f"a worker was lost, and other jobs hold the resources for its successor since "
                f"{self._timeout:g} s (ray.placement_timeout_s)",
            )
        fewer = f" [--workers {int(room)}]" if room >= 1 else ""
        return self.go_on(driver, "a node was lost and none came") + fewer

    def go_on(self, driver: Driver, message: str) -> str:
        """Adds the command that resumes the run, if there is something to resume."""
        if not driver.started or not self._alone:
            return message
        command = ["raymimic", "train", "--resume", self._folder.uri]
        if self._config.train.imports:
            command += ["--import", *self._config.train.imports]
        return f"{message}; go on with {shlex.join(command)}"


def _after(driver: Driver) -> str:
    return f"after epoch {driver.last_epoch}" if driver.last_epoch else "before the first epoch"


@dataclass(frozen=True)
class _Failure:
    """How a start of the workers failed.

    Attributes:
        what: the event, such as `a worker was lost`.
        reason: the last line of `story`.
        story: the whole message of the error.
        counts: whether it counts against `ray.max_failures`; the announced loss of a node does not.
        unplaced: whether the cluster placed no workers in time.
        full_disk: whether a worker could not write.
        explained: whether `reason` says more than `what`.
    """

    what: str
    reason: str
    story: str
    counts: bool = True
    unplaced: bool = False
    full_disk: bool = False
    explained: bool = False

    @property
    def why(self) -> str:
        """The reason in brackets, if it says more than `what`."""
        return f" ({self.reason})" if self.explained else ""


class TrainerThread(threading.Thread):
    """One start of the workers: runs the blocking `TorchTrainer.fit` beside the driver's loop.

    Attributes:
        mailbox: carries the messages between these workers and the driver.
        placed: whether the workers' processes run.
        error: the exception that ended it, if any.
    """

    def __init__(self, spec: WorkerSpec, resources: Reservation, sampling: Sampling | None) -> None:
        super().__init__(name="ray-train-fit", daemon=True)
        # On the driver's node: the loss of another one must cost only workers.
        node = ray.get_runtime_context().get_node_id()
        here = NodeAffinitySchedulingStrategy(node, soft=False)
        actor_class: Any = ray.remote(Mailbox)
        self.mailbox = actor_class.options(num_cpus=0, scheduling_strategy=here).remote(node)
        self.placed = False
        self.error: BaseException | None = None
        self._mailbox_lost = False
        self._asked: Any = None
        self._trainer = _torch_trainer(
            resources, {"spec": spec, "mailbox": self.mailbox, "sampling": sampling}
        )

    def run(self) -> None:
        """Trains until all is done or something fails."""
        try:
            self._trainer.fit()
        except BaseException as error:
            self.error = error

    def events(self, may_begin: bool, wait_s: float) -> list[Event]:
        """The workers' events since the last call.

        Args:
            may_begin: whether the driver lets training begin.
            wait_s: for the mailbox to answer [s]; the next call returns a later answer.
        """
        if self._mailbox_lost:
            return []
        self._asked = self._asked or self.mailbox.drain.remote(may_begin)
        if not ray.wait([self._asked], timeout=wait_s)[0]:
            self._mailbox_lost = not self.is_alive()
            return []
        try:
            events: list[Event] = ray.get(self._asked)
        except LOST_ACTOR:
            # The workers notice it at their next message, and fail.
            self._mailbox_lost = True
            self.close()
            return []
        self._asked = None
        self.placed = self.placed or bool(events)
        return [event for event in events if not isinstance(event, Placed)]

    def close(self) -> None:
        """Ends the mailbox, and with it any workers that still use it."""
        with contextlib.suppress(RayError):
            ray.kill(self.mailbox)

    def failure(self) -> _Failure | None:
        """Returns how it failed, once it has ended; None if it succeeded."""
        if self._mailbox_lost:
            # Events are lost with it, which the workers send again after their restart.
            what = "the process between workers and driver was lost"
            return _Failure(what, what, f"{what}\n{self.error or ''}")
        return None if self.error is None else _failure_of(self.error)


def _failure_of(error: BaseException) -> _Failure:
    """Distinguishes lost processes from errors of the code that they run."""
    from ray.train import ControllerError, PreemptionError, WorkerGroupError

    story = f"{type(error).__name__}: {error}"
    lines = [line.strip() for line in story.splitlines() if line.strip()]
    reason = lines[-1]
    if "WorkerGroupStartupTimeout" in story or "startup timed out" in story.lower():
        return _Failure("the workers were not placed", reason, story, unplaced=True)
    if "No space left on device" in story or "OutOfDiskError" in story:
        return _Failure("a worker could not write", reason, story, full_disk=True)
    causes = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []
    actors = [c for c in (getattr(c, "health_check_failure", c) for c in causes) if _is_loss(c)]
    if isinstance(error, PreemptionError) or any(getattr(a, "preempted", False) for a in actors):
        return _Failure("a node was taken back", reason, story, counts=False)
    if "low on memory" in story:
        return _Failure("a worker was lost", "its node ran low on memory", story, explained=True)
    if actors or isinstance(error, (*LOST_ACTOR, ControllerError)):
        return _Failure("a worker was lost", reason, story)
    return _Failure("a worker failed", reason, story, explained=True)


def _is_loss(error: BaseException) -> bool:
    """Whether a worker's process was lost, or one that it computed with."""
    text = str(error).lower()
    return isinstance(error, RayError) or "gloo" in text or "nccl" in text


def _torch_trainer(resources: Reservation, loop_config: dict[str, Any]) -> Any:
    """Makes Ray's trainer. It only places workers: checkpoints, metrics and retries are ours.

    Args:
        resources: of the workers.
        loop_config: see `ray_train_loop`.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    filesystem, path = storage.for_arrow(storage.join(loop_config["spec"].run_dir, "logs"))
    # Several workers on one GPU cannot use NCCL.
    shared_gpu = 0 < resources.gpus_per_worker < 1
    return torch_trainer(
        train_loop_per_worker=ray_train_loop,
        train_loop_config=loop_config,
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
            failure_config=FailureConfig(  # type: ignore[call-arg] # V2 has them
                max_failures=0, controller_failure_limit=0, max_preemption_failures=0
            ),
        ),
    )
