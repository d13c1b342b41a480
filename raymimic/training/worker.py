"""The training loop: what every Ray Train worker runs, and what `--workers 0` runs in place."""

import json
import random
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

import raymimic
from raymimic.config import BaseConfig, config_factory
from raymimic.config.base_config import import_modules, sections_named
from raymimic.errors import CheckpointError, ConfigError, RaymimicError, TrainingError
from raymimic.training.checkpoint import CheckpointStore
from raymimic.training.epoch import run_epoch
from raymimic.training.grad_sync import GradientSync
from raymimic.training.link import Committed, EpochRecord, Fatal, Link, Progress, RayLink, Started
from raymimic.utils.file_utils import maybe_dict_from_checkpoint

# At most this many evaluations are under way; then training waits, so that the best checkpoint is
# never decided long after it was trained.
MAX_PENDING = 2


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker needs to know, as plain data that any process can unpickle.

    Attributes:
        algo_name: the algorithm.
        config: the config as JSON.
        run_dir: folder or URI of the run, absolute.
        sys_path: the driver's extra module folders, for a user's modules.
        env_metadata: stored in every checkpoint.
        evaluates: whether there is an environment to evaluate in.
        dataset_digest: content digest of the training data.
    """

    algo_name: str
    config: str
    run_dir: str
    sys_path: tuple[str, ...]
    env_metadata: dict[str, Any]
    evaluates: bool
    dataset_digest: str


def ray_train_loop(loop_config: dict[str, Any]) -> None:
    """Runs on each Ray Train worker.

    Args:
        loop_config: `spec`, a `WorkerSpec`, and `mailbox`, the driver's `Mailbox` actor.
    """
    import ray.train
    import ray.train.torch

    spec: WorkerSpec = loop_config["spec"]
    link = RayLink(loop_config["mailbox"])
    if link.stopped() is not None:
        return  # a restart after an error that would only come again
    context = ray.train.get_context()
    try:
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
        link: to the driver; only the first rank talks.
        rank: this worker's number.
        world_size: how many workers train together.
        device: where the networks and, if it fits, the data live.

    Raises:
        RaymimicError: what the user can cure.
    """
    sys.path[:0] = [p for p in spec.sys_path if p not in sys.path]
    config_dict = json.loads(spec.config)
    import_modules(config_dict["train"]["imports"])
    config = config_factory(spec.algo_name, dic=config_dict)
    _Worker(spec, config, link, rank, world_size, device).run()


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
        from raymimic.algo import algo_class, algo_factory
        from raymimic.data.loader import make_loaders

        self.spec, self.config, self.link, self.rank = spec, config, link, rank
        self.sync = GradientSync(world_size)
        torch.set_num_threads(_threads(config))
        self.data = make_loaders(
            config,
            algo_class(config.algo_name, config).needs,
            device=device,
            rank=rank,
            world_size=world_size,
        )
        fill_in_schedule_lengths(config, self.data.train.num_steps)
        config.lock()
        _seed(config.train.seed, 0, 0)  # initial parameters do not depend on the rank
        self.algo = algo_factory(
            config.algo_name,
            config,
            obs_key_shapes=self.data.shape_meta["all_shapes"],
            ac_dim=self.data.shape_meta["ac_dim"],
            device=device,
        )
        self.store = CheckpointStore(spec.run_dir, config.experiment.save)
        self.epoch = self.step = 0
        self.history: list[EpochRecord] = []
        self.last_time_save = time.time()
        self.warnings: list[str] = []
        self._restore()
        self.sync.check_same_start(self.epoch, spec.run_dir)
        if rank == 0:
            self.store.tidy(spec.evaluates)
        self.sync.broadcast_state(self.algo.nets)
        self.algo.grad_sync = self.sync
        self.unsent: list[EpochRecord] = []
        self.report_s = 0.0
        self.last_commit = self.last_progress = time.monotonic()

    def _restore(self) -> None:
        """Loads the run's last checkpoint, or the weights that `experiment.ckpt_path` names."""
        ckpt, last = self.store.load_last(), self.store.last
        if ckpt is None or last is None:
            path = self.config.experiment.ckpt_path
            if path is not None:
                self._deserialize(maybe_dict_from_checkpoint(ckpt_path=path), path)
            return
        self._deserialize(ckpt, self.store.path(last), load_optimizers=True)
        ours = ckpt["raymimic"]
        self.algo.load_training_state(ours["training_state"])
        self.epoch, self.step = ckpt["variable_state"]["epoch"], ours["step"]
        self.history = [EpochRecord(**r) for r in json.loads(ours["history"])]
        # The list may know a later epoch's loss, which the same epoch must beat again.
        self.store.scores.best_valid_loss = ckpt["variable_state"]["best_valid_loss"]
        timed = [e.epoch for e in self.store.entries if "time" in e.keep]
        self.last_time_save = self.history[max(timed) - 1 if timed else 0].time
        if ours["arithmetic"] != self._arithmetic():
            self.warnings.append(
                f"this run was computed with {ours['arithmetic']} so far and goes on with "
                f"{self._arithmetic()}: the result is as good, but not bit-identical to that of an "
                "uninterrupted run"
            )

    def _arithmetic(self) -> str:
        """What the last bits of the result depend on besides seed and data."""
        workers, threads = self.sync.world_size, torch.get_num_threads()
        return f"{workers} worker(s), {threads} thread(s) each, on {self.algo.device.type}"

    def _deserialize(self, ckpt: dict[str, Any], path: str, load_optimizers: bool = False) -> None:
        try:
            self.algo.deserialize(ckpt["model"], load_optimizers=load_optimizers)
        except (CheckpointError, KeyError, ValueError) as error:
            reason, name = str(error)[:300], ckpt["algo_name"]
            if name != self.config.algo_name:
                reason = f"it is one of {name}, and its networks are not {self.config.algo_name}'s"
            raise CheckpointError(f"cannot start from '{path}': {reason}") from error

    def _try_a_batch(self) -> None:
        """Lets the algorithm see a batch, so that its complaints come before the run begins."""
        if self.epoch < self.config.train.num_epochs:
            batch, _, _ = next(self.data.train.epoch(self.epoch + 1))
            self.algo.process_batch_for_training(batch)

    # -- the loop --

    def run(self) -> None:
        """Trains to the last epoch."""
        self._try_a_batch()
        if self.rank == 0:
            pending = {e.epoch: self.store.path(e) for e in self.store.pending}
            outcomes = list(self.store.outcomes)
            self.link.send(
                Started(self.epoch, self._describe(), list(self.history), outcomes, pending)
            )
        for epoch in range(self.epoch + 1, self.config.train.num_epochs + 1):
            self._train_epoch(epoch)

    def _describe(self) -> dict[str, Any]:
        return {
            "parameters": sum(p.numel() for p in self.algo.nets.parameters()),
            "samples": self.data.train.num_samples,
            "device": str(self.algo.device),
            "warnings": self.warnings,
        }

    def _train_epoch(self, epoch: int) -> None:
        config, begin = self.config, time.perf_counter()
        # Every generator starts anew from (seed, epoch, rank), so a resumed run draws what an
        # uninterrupted one draws.
        _seed(config.train.seed, epoch, self.rank)
        before = self.step
        metrics, seconds = run_epoch(
            self.algo,
            self.data.train,
            epoch,
            sync=self.sync,
            obs_normalization_stats=self.data.obs_normalization_stats,
            on_step=lambda done: self._sign_of_life(epoch, before, done, begin),
        )
        self.step += self.data.train.num_steps
        self.algo.on_epoch_end(epoch)
        self.sync.check_replicas(self.algo.nets, epoch)
        _check_finite(metrics, epoch)
        named = {f"Train/{k}": v for k, v in metrics.items()}
        named["Timing/data_s"], named["Timing/step_s"] = seconds["data"], seconds["step"]
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
        self.history.append(record)
        self.unsent.append(record)
        self._commit_if_due(epoch, keep)

    def _validate(self, epoch: int) -> tuple[dict[str, float], dict[str, float]]:
        if self.data.valid is None:
            raise ConfigError("experiment.validate is on but there is no validation data")
        return run_epoch(
            self.algo,
            self.data.valid,
            epoch,
            sync=self.sync,
            validate=True,
            obs_normalization_stats=self.data.obs_normalization_stats,
        )

    def _sign_of_life(self, epoch: int, before: int, done: int, begin: float) -> None:
        if self.rank == 0:
            now = time.monotonic()
            if now - self.last_progress > 0.5:
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
        """As robomimic: every `rate` epochs, and with each checkpoint saved by the clock."""
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
        self._take_outcomes(wait=evaluate)
        if self.rank == 0:
            start = time.perf_counter()
            entry = self.store.commit(self._checkpoint(), epoch, keep, pending=evaluate)
            self.link.send(Committed(epoch, self.store.path(entry), self.unsent, evaluate))
            # Known only now, so it stands in the next epoch's record.
            self.report_s = time.perf_counter() - start
        self.unsent = []
        self.last_commit = time.monotonic()

    def _take_outcomes(self, wait: bool) -> None:
        """Settles finished evaluations; where another is due, waits until one may begin."""
        while True:
            if self.rank == 0:
                for outcome in self.link.outcomes():
                    self.store.settle(outcome)
            stop = self.rank == 0 and self.link.stopped() is not None
            if self.sync.any(stop):
                raise TrainingError("training was stopped by its driver")
            full = self.rank == 0 and wait and len(self.store.pending) >= MAX_PENDING
            if not self.sync.any(full):
                return
            time.sleep(0.1)

    def _checkpoint(self) -> dict[str, Any]:
        """The whole state of the run, as plain tensors, numbers, strings, lists and dicts."""
        data = self.data
        return {
            "model": self.algo.serialize(),
            "config": self.config.dump(),
            "algo_name": self.config.algo_name,
            "env_metadata": self.spec.env_metadata,
            "shape_metadata": _plain(data.shape_meta),
            "obs_normalization_stats": _plain(data.obs_normalization_stats),
            "action_normalization_stats": _plain(data.action_normalization_stats),
            "raymimic": {
                "version": raymimic.__version__,
                "imports": list(self.config.train.imports),
                "step": self.step,
                "workers": self.sync.world_size,
                "arithmetic": self._arithmetic(),
                "dataset_digest": self.spec.dataset_digest,
                "training_state": self.algo.training_state(),
                "history": json.dumps([asdict(r) for r in self.history]),
            },
        }


def fill_in_schedule_lengths(config: BaseConfig, num_steps: int) -> None:
    """Tells learning-rate schedules how long training is, where robomimic does.

    robomimic counts samples instead of batches when an epoch is a pass over the data, which
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


def _plain(value: Any) -> Any:
    """Nested arrays and tuples as nested lists, which `weights_only` loading accepts."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
