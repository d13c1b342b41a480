"""The training loop, which runs in every Ray Train worker, or in place with `--workers 0`."""

import contextlib
import json
import random
import socket
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import raymimic
from raymimic.algo import algo_class, algo_factory
from raymimic.algo.draws import SampleDraws, share_draws
from raymimic.checkpoints.content import CheckpointContent, TrainingSection, plain
from raymimic.checkpoints.reading import read_checkpoint
from raymimic.checkpoints.records import EpochRecord
from raymimic.checkpoints.store import CheckpointStore
from raymimic.cluster.capacity import live_nodes
from raymimic.config import BaseConfig, config_factory
from raymimic.config.base_config import import_modules, sections_named
from raymimic.data.language import Language
from raymimic.data.training_data import make_loaders
from raymimic.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    RaymimicError,
    TrainingError,
    full_disk,
)
from raymimic.lease import Lease
from raymimic.models.vision.weights import weights_follow
from raymimic.tracking.system_metrics import Sampling
from raymimic.training.epoch import EpochRunner
from raymimic.training.grad_sync import GradientSync
from raymimic.training.link import (
    Committed,
    Fatal,
    Link,
    Loading,
    Placed,
    Progress,
    RayLink,
    Started,
)
from raymimic.training.machines import sampled, sampling_of
from raymimic.user_modules import ImportPath, noting_own_place

# With so many evaluations under way, training waits: the best checkpoint is never decided long
# after it was trained.
MAX_PENDING = 2

_BEGIN_POLL_S = 0.05
_SETTLE_POLL_S = 0.1
_SIGN_OF_LIFE_S = 0.5


@dataclass(frozen=True)
class WorkerSpec:
    """A prepared training as plain data, which any process can unpickle.

    Attributes:
        algo_name: the algorithm.
        config: the config as JSON.
        run_dir: folder or URI of the run, absolute.
        import_path: the folders of the user's modules.
        env_metadata: the environment that every checkpoint names.
        evaluates: whether there is an environment to evaluate in.
        dataset_digest: content digest of the training data.
        lease: name under which the driver holds a run behind a URI.
        imports: modules to import first.
        initial_weights: path or URI of the checkpoint that a new run begins with.
        language: embeddings of instructions.
    """

    algo_name: str
    config: str
    run_dir: str
    import_path: ImportPath
    env_metadata: dict[str, Any]
    evaluates: bool
    dataset_digest: str
    lease: str | None = None
    imports: tuple[str, ...] = ()
    initial_weights: str | None = None
    language: Language = field(default_factory=dict)


def _other_depth(content: CheckpointContent, path: str, config: BaseConfig) -> list[str]:
    """Warns of weights that have learned from another kind of depth than the training shows.

    Args:
        content: the checkpoint that the training begins with.
        path: of it.
        config: of the training, which says how depth is seen.
    """
    learned = json.loads(content.config)["train"].get("cut_depth") is not False
    if "depth" not in config.all_modalities.values() or learned == config.cuts_depth:
        return []
    seen = {True: "cut off at 0 and 1", False: "as it is"}
    return [
        f"the weights of '{path}' have learned from depth {seen[learned]}, and this training shows "
        f"it {seen[config.cuts_depth]}: train.cut_depth={str(learned).lower()} shows it as before"
    ]


def ray_train_loop(loop_config: dict[str, Any]) -> None:
    """Runs on each Ray Train worker.

    Args:
        loop_config: `spec`, a `WorkerSpec`; `mailbox`, the driver's `Mailbox` actor; and
            `sampling`, how machines of workers are sampled.
    """
    # Only workers on Ray come here.
    import ray
    import ray.train
    import ray.train.torch

    spec: WorkerSpec = loop_config["spec"]
    link = RayLink(loop_config["mailbox"])
    if link.stopped() is not None:
        return  # the driver has given up already
    context = ray.train.get_context()
    if context.get_world_rank() == 0:
        link.send(Placed())
    sampling: Sampling | None = loop_config["sampling"]
    if sampling is not None:
        node = ray.get_runtime_context().get_node_id()
        sampling = sampling_of(sampling, node, live_nodes()) if link.is_first_of(node) else None
    try:
        with sampled(sampling, link), noting_own_place():
            train_loop(
                spec,
                link,
                rank=context.get_world_rank(),
                world_size=context.get_world_size(),
                device=ray.train.torch.get_device(),
            )
    except RaymimicError as error:
        link.send(Fatal(type(error).__name__, str(error), traceback.format_exc()))
        raise


def train_loop(
    spec: WorkerSpec, link: Link, *, rank: int, world_size: int, device: torch.device
) -> None:
    """Trains from the run's last checkpoint (or from the start) to `train.num_epochs`.

    Args:
        spec: the run.
        link: to the driver; only the first rank uses it.
        rank: this worker's number.
        world_size: how many workers train together.
        device: where the networks and, if it fits, the data live.

    Raises:
        RaymimicError: the user can correct it; one sentence tells how.
    """
    spec.import_path.join()
    import_modules(spec.imports)
    config = config_factory(spec.algo_name, dic=json.loads(spec.config))
    try:
        with _torch_as_it_starts():
            _Worker(spec, config, link, rank, world_size, device).run()
    except OSError as error:
        if (explained := full_disk(error)) is not None:
            raise explained from error
        raise


@contextlib.contextmanager
def _torch_as_it_starts() -> Iterator[None]:
    """Scope with the defaults of a new process, on which results depend.

    Without Ray a training runs in the process of the caller, who may have set others.
    """
    dtype, place = torch.get_default_dtype(), torch.get_default_device()
    elsewhere = place != torch.device("cpu")
    torch.set_default_dtype(torch.float32)
    if elsewhere:
        torch.set_default_device(None)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)
        if elsewhere:
            torch.set_default_device(place)


class _Worker:
    """One rank of a training run."""

    def __init__(
        self,
        spec: WorkerSpec,
        config: BaseConfig,
        link: Link,
        rank: int,
        world_size: int,
        device: torch.device,
    ) -> None:
        self.spec, self.config, self.link, self.rank = spec, config, link, rank
        self.sync = GradientSync(world_size)
        self.last_progress = time.monotonic()
        torch.set_num_threads(_threads(config))
        self.data = make_loaders(
            config,
            algo_class(config.algo_name, config).reads(config),
            device=device,
            rank=rank,
            world_size=world_size,
            language=spec.language,
            say=self._say_loading,
        )
        self._check_data()
        fill_in_schedule_lengths(config, self.data.train.num_steps)
        config.lock()
        lease = None if spec.lease is None else Lease(spec.run_dir, spec.lease)
        self.store = CheckpointStore(spec.run_dir, config.experiment.save, lease)
        begin = self.store.load_last()
        _seed(config.train.seed, 0, 0)  # initial parameters do not depend on the rank
        has_weights = begin is not None or spec.initial_weights is not None
        with weights_follow() if has_weights else contextlib.nullcontext():
            self.algo = algo_factory(
                config.algo_name,
                config,
                obs_key_shapes=self.data.shape_meta["all_shapes"],
                ac_dim=self.data.shape_meta["ac_dim"],
                device=device,
            )
        self.epoch = self.step = 0
        self.last_time_save = time.time()
        self.warnings = list(self.data.out_of_reach) if self.algo.bounded_actions else []
        self._restore(begin)
        self.sync.check_same_start(self.epoch, spec.run_dir)
        if rank == 0:
            self.store.tidy(spec.evaluates)
        self.warnings += self.store.notes
        self.sync.broadcast_state(self.algo.nets)
        self.algo.grad_sync = self.sync
        draws = SampleDraws(config.train.seed)
        self.runner = EpochRunner(
            self.algo,
            self.sync,
            self.data.obs_normalization_stats,
            draws if share_draws(self.algo.nets, draws) else None,
        )
        self.unsent: list[EpochRecord] = []
        self.report_s = 0.0
        self.last_commit = time.monotonic()

    def _restore(self, content: CheckpointContent | None) -> None:
        """Takes up the run's last checkpoint, or else the weights to begin with."""
        last = self.store.last
        if content is None or last is None:
            path = self.spec.initial_weights
            if path is not None:
                content = read_checkpoint(path)
                self._deserialize(content, path)
                self.warnings += _other_depth(content, path, self.config)
            return
        path, section = self.store.path(last), content.training
        if section.dataset_digest != self.spec.dataset_digest:
            raise DatasetError(
                f"the data have changed since '{path}' was trained on them "
                f"({section.dataset_digest} then, {self.spec.dataset_digest} now); restore the "
                "earlier data, or start a new run for these"
            )
        self._deserialize(content, path, load_optimizers=True)
        try:
            self.algo.load_training_state(section.training_state or {})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"cannot go on from '{path}': its record of the training is not one that raymimic "
                f"writes ({error!r}); --from chooses another checkpoint"
            ) from error
        self.epoch, self.step = content.epoch, section.step or 0
        times = {record.epoch: record.time for record in self.store.history}
        timed = [e.epoch for e in self.store.entries if "time" in e.keep]
        since = max(timed) if timed else 1
        self.last_time_save = times.get(since, self.last_time_save)
        if section.arithmetic != self._arithmetic():
            self.warnings.append(
                f"this run was computed with {section.arithmetic} so far and goes on with "
                f"{self._arithmetic()}: the result is as good, but not bit-identical to that of an "
                "uninterrupted run"
            )

    def _check_data(self) -> None:
        """Makes sure that this worker has read the same data as the driver.

        Each worker checks this at each start, after it has read them: a node may hold another file
        under the same path, and a file may be replaced during the training.

        Raises:
            DatasetError: the data differ.
        """
        if self.data.digest != self.spec.dataset_digest:
            raise DatasetError(
                f"the data ({', '.join(self.data.info.paths)}) on {socket.gethostname()} are not "
                f"those with which this training was started ({self.spec.dataset_digest} then, "
                f"{self.data.digest} now); restore the earlier data and --resume, or start a new "
                "run for these"
            )

    def _arithmetic(self) -> str:
        """Names the settings, beside seed and data, that change the last bits of the result."""
        workers, threads = self.sync.world_size, torch.get_num_threads()
        return f"{workers} worker(s), {threads} thread(s) each, on {self.algo.device.type}"

    def _deserialize(
        self, content: CheckpointContent, path: str, load_optimizers: bool = False
    ) -> None:
        try:
            self.algo.deserialize(content.model, load_optimizers=load_optimizers)
        except (AttributeError, CheckpointError, LookupError, TypeError, ValueError) as error:
            reason, name = str(error)[:300], content.algo_name
            if name != self.config.algo_name:
                reason = f"it is one of {name}, and its networks are not {self.config.algo_name}'s"
            raise CheckpointError(f"cannot start from '{path}': {reason}") from error

    def _try_a_batch(self) -> None:
        """Gives the algorithm a batch, so that it complains before the run begins."""
        if self.epoch < self.config.train.num_epochs:
            batch, _, _ = next(self.data.train.epoch(self.epoch + 1))
            self.algo.process_batch_for_training(batch)

    def _may_begin(self) -> bool:
        """Waits while the driver tries the environments; returns False if the driver gives up."""
        while True:
            first = self.rank == 0
            if self.sync.any(first and self.link.stopped() is not None):
                return False
            if self.sync.any(first and self.link.may_begin()):
                return True
            time.sleep(_BEGIN_POLL_S)

    # -- the loop --

    def run(self) -> None:
        """Trains to the last epoch, once the driver lets it, and settles all evaluations."""
        self._try_a_batch()
        if not self._may_begin():
            return
        try:
            if self.rank == 0:
                pending = {e.epoch: self.store.path(e) for e in self.store.pending}
                history, evaluations = self.store.history, self.store.evaluations
                self.link.send(
                    Started(
                        self.epoch,
                        self._describe(),
                        list(history),
                        list(evaluations),
                        pending,
                        self.store.has_evaluation_log,
                    )
                )
            for epoch in range(self.epoch + 1, self.config.train.num_epochs + 1):
                self._train_epoch(epoch)
        except BaseException:
            if self.rank == 0:
                # So that a resumed run does not play the same episodes again.
                with contextlib.suppress(Exception):
                    self._settle()
            raise
        if self.rank == 0:
            self._finish()

    def _finish(self) -> None:
        """Waits for the last evaluations, and settles which checkpoint is the best."""
        self._settle()
        while self.store.pending:
            if self.link.stopped() is not None:
                raise TrainingError("training was stopped by its driver")
            time.sleep(_SETTLE_POLL_S)
            self._settle()
        self.store.finish()

    def _describe(self) -> dict[str, Any]:
        return {
            "parameters": sum(p.numel() for p in self.algo.nets.parameters()),
            "samples": self.data.train.num_samples,
            "split": self.data.info.split,
            "place": self.data.place,
            "cached": self.data.train.dataset.store.is_cached,
            "steps_per_epoch": self.data.train.num_steps,
            "device": str(self.algo.device),
            "action_range": [bound.tolist() for bound in self.data.action_range],
            "warnings": self.warnings,
        }

    def _train_epoch(self, epoch: int) -> None:
        config, begin = self.config, time.perf_counter()
        # Every generator starts again from (seed, epoch, rank), so a resumed run draws the same
        # numbers as an uninterrupted one.
        _seed(config.train.seed, epoch, self.rank)
        before = self.step
        metrics, seconds = self.runner.run(
            self.data.train,
            epoch,
            on_step=lambda done: self._sign_of_life(epoch, before, done, begin),
        )
        self.step += self.data.train.num_steps
        self.algo.on_epoch_end(epoch)
        self.sync.check_replicas(self.algo.nets, epoch)
        _check_finite(metrics, epoch)
        named = {f"Train/{k}": v for k, v in metrics.items()}
        named["Timing/data_s"], named["Timing/step_s"] = seconds["data"], seconds["step"]
        named["Timing/data_share"] = seconds["data"] / seconds["all"]
        keep = self._reasons_to_save(epoch)
        if config.experiment.validate:
            start = time.perf_counter()
            validation, _ = self._validate(epoch)
            named |= {f"Valid/{k}": v for k, v in validation.items()}
            named["Timing/validation_s"] = time.perf_counter() - start
            loss = validation.get("Loss")
            better = loss is not None and self.store.scores.record_validation(loss)
            if better and config.experiment.save.on_best_validation:
                keep.append("best_validation")
        named["Timing/report_s"], self.report_s = self.report_s, 0.0
        named["Timing/epoch_s"] = time.perf_counter() - begin
        named["Timing/steps_per_s"] = self.data.train.num_steps / named["Timing/epoch_s"]
        record = EpochRecord(epoch, self.step, named, time.time())
        self.unsent.append(record)
        self._commit_if_due(epoch, keep)

    def _validate(self, epoch: int) -> tuple[dict[str, float], dict[str, float]]:
        if self.data.valid is None:
            raise ConfigError(
                "experiment.validate is true, but no demos are held out: set "
                "train.validation_fraction, or experiment.validate to false"
            )
        return self.runner.run(self.data.valid, epoch, validate=True)

    def _say_loading(self, text: str) -> None:
        if time.monotonic() - self.last_progress > _SIGN_OF_LIFE_S:
            self.last_progress = time.monotonic()
            if self.rank == 0:
                self.link.send(Loading(text))
            if self.link.stopped() is not None:
                raise TrainingError("training was stopped by its driver")

    def _sign_of_life(self, epoch: int, before: int, done: int, begin: float) -> None:
        if self.rank == 0:
            now = time.monotonic()
            if now - self.last_progress > _SIGN_OF_LIFE_S:
                self.last_progress = now
                rate = done / (time.perf_counter() - begin)
                self.link.send(Progress(epoch, before + done, rate))

    # -- checkpoints --

    def _reasons_to_save(self, epoch: int) -> list[str]:
        save, reasons = self.config.experiment.save, []
        if (save.every_n_epochs and epoch % save.every_n_epochs == 0) or epoch in save.epochs:
            reasons.append("epochs")
        if save.every_n_seconds is not None:
            due = time.time() - self.last_time_save > save.every_n_seconds
            if self.sync.any(due and self.rank == 0):
                reasons.append("time")
                self.last_time_save = time.time()
        return reasons

    def _evaluate_now(self, epoch: int, keep: list[str]) -> bool:
        """Evaluates as robomimic does: every `rate` epochs, and with each timed checkpoint."""
        rollout = self.config.experiment.rollout
        timed = {"epochs", "time"} & set(keep) and self.config.experiment.save.enabled
        return bool(
            self.spec.evaluates
            and epoch > rollout.warmstart
            and (epoch % rollout.rate == 0 or timed)
        )

    def _commit_if_due(self, epoch: int, keep: list[str]) -> None:
        evaluate = self._evaluate_now(epoch, keep)
        last = epoch == self.config.train.num_epochs
        aged = time.monotonic() - self.last_commit >= self.config.ray.commit_interval_s
        if not self.sync.any(self.rank == 0 and bool(evaluate or keep or last or aged)):
            return
        self._settle_until_there_is_room(wait=evaluate)
        if self.rank == 0:
            start = time.perf_counter()
            entry = self.store.commit(
                self._checkpoint(), self.unsent, epoch, keep, pending=evaluate
            )
            path, kept = self.store.path(entry), self.store.kept()
            self.link.send(Committed(epoch, path, self.unsent, evaluate, kept))
            # Known only now, so it stands in the next epoch's record.
            self.report_s = time.perf_counter() - start
        self.unsent = []
        self.last_commit = time.monotonic()

    def _settle(self) -> None:
        """Takes in the evaluations that have finished."""
        for evaluation in self.link.evaluations():
            self.store.settle(evaluation)

    def _settle_until_there_is_room(self, wait: bool) -> None:
        """Settles finished evaluations; where another is due, waits until one may begin."""
        while True:
            if self.rank == 0:
                self._settle()
            stop = self.rank == 0 and self.link.stopped() is not None
            if self.sync.any(stop):
                raise TrainingError("training was stopped by its driver")
            full = self.rank == 0 and wait and len(self.store.pending) >= MAX_PENDING
            if not self.sync.any(full):
                return
            time.sleep(_SETTLE_POLL_S)

    def _checkpoint(self) -> CheckpointContent:
        """Returns the state of the run, as plain tensors, numbers, strings, lists and dicts.

        The store adds the epochs and the manifest.
        """
        data = self.data
        return CheckpointContent(
            model=self.algo.serialize(),
            algo_name=self.config.algo_name,
            config=self.config.dump(),
            shape_metadata=plain(data.shape_meta),
            env_metadata=self.spec.env_metadata,
            obs_normalization_stats=plain(data.obs_normalization_stats),
            action_normalization_stats=plain(data.action_normalization_stats),
            raymimic=TrainingSection(
                version=raymimic.__version__,
                imports=list(self.config.train.imports),
                step=self.step,
                workers=self.sync.world_size,
                arithmetic=self._arithmetic(),
                dataset_digest=self.spec.dataset_digest,
                training_state=self.algo.training_state(),
                language={s: list(x) for s, x in self.spec.language.items()} or None,
            ),
        )


def fill_in_schedule_lengths(config: BaseConfig, num_steps: int) -> None:
    """Writes the length of the training into the settings of learning-rate schedules.

    Where an epoch is a pass over the data, robomimic counts samples instead of batches, which
    stretches its schedules by the batch size; this counts batches.

    Args:
        config: changed in place.
        num_steps: batches of an epoch.
    """
    with config.unlocked():
        for _, nets in sections_named(config.algo, "optim_params"):
            for optim_params in nets.values():
                optim_params["num_train_batches"] = num_steps
                optim_params["num_epochs"] = config.train.num_epochs


def _threads(config: BaseConfig) -> int:
    given = config.ray.threads_per_worker
    if given is not None:
        return int(given)
    if config.ray.num_workers == 0:
        return torch.get_num_threads()
    return max(1, int(config.ray.cpus_per_worker))


def _seed(seed: int, epoch: int, rank: int) -> None:
    """Seeds every global generator from (seed, epoch, rank)."""
    state = np.random.SeedSequence([seed, epoch, rank]).generate_state(3)
    torch.manual_seed(int(state[0]))
    np.random.seed(int(state[1]))
    random.seed(int(state[2]))


def _check_finite(metrics: dict[str, float], epoch: int) -> None:
    bad = sorted(k for k, v in metrics.items() if not np.isfinite(v))
    if "Loss" in bad or (bad and "Loss" not in metrics):
        raise TrainingError(
            f"the loss is not a number in epoch {epoch} ({', '.join(bad)}); lower the learning "
            "rate, clip gradients (train.max_grad_norm), or look for outliers in the data"
        )
