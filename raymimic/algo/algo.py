"""The base of all algorithms: its life cycle, its capabilities, and the registry of all of them.

A new algorithm is a function that maps `config.algo` to a class, registered under the
`ALGO_NAME` of its config, and that class: a subclass of `PolicyAlgo` (it acts),
`ValueAlgo` (it estimates returns) or `PlannerAlgo`, with at least
`_create_networks`, `updates` (or `train_on_batch`) and `get_action`. All else has a default
here. Composite algorithms are in `raymimic.algo.composite`.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import cache, cached_property, wraps
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from raymimic import tensors
from raymimic.algo import optimization
from raymimic.algo.learning import Batch, Learner, Losses, Update
from raymimic.algo.noise import EpisodeNoise
from raymimic.algo.optimization import EMAModel
from raymimic.config.base_config import BaseConfig, sections_named
from raymimic.config.config import Config, leaves
from raymimic.data.reads import Reads, Window, one_step, one_window
from raymimic.errors import CheckpointError, ConfigError, did_you_mean
from raymimic.models.obs_nets import NoLayersError
from raymimic.observations import normalization, shapes
from raymimic.observations.modality import process_obs_dict
from raymimic.observations.shapes import ObsShapes
from raymimic.ranks import GradSync, synchronized
from raymimic.tensors import map_tensor
from raymimic.user_modules import same_definition

ObsDict = Mapping[str, Tensor]
FactoryFunc = Callable[[Config], tuple[type["Algo"], dict[str, Any]]]

_FACTORY_FUNCS: dict[str, FactoryFunc] = {}
_CONFIG_LISTENERS: list[Callable[[BaseConfig], None]] = []

# Methods that a subclass may override, by their names in 0.1.0.
_RENAMED = {
    "fit_config": "correct_config_by_weights",
    "robomimic_lacks": "why_not_exportable",
}


def register_algo_factory_func(algo_name: str) -> Callable[[FactoryFunc], FactoryFunc]:
    """Registers the decorated function, which chooses an algorithm's class.

    The function takes `config.algo` and returns the class and further keyword arguments for
    its constructor.

    Args:
        algo_name: the `ALGO_NAME` of the algorithm's config.

    Raises:
        ConfigError: if another function has that name already.
    """

    def decorator(factory_func: FactoryFunc) -> FactoryFunc:
        known = _FACTORY_FUNCS.get(algo_name, factory_func)
        if not same_definition(known, factory_func):
            raise ConfigError(
                f"an algorithm '{algo_name}' is registered already, by {known.__module__}: "
                "choose another name"
            )
        _FACTORY_FUNCS[algo_name] = factory_func
        return factory_func

    return decorator


def register_config_listener(listener: Callable[[BaseConfig], None]) -> None:
    """Has a function called with the config of each algorithm, before `algo_factory` makes it."""
    _CONFIG_LISTENERS.append(listener)


def registered_algos() -> list[str]:
    """Returns the names of all algorithms."""
    return sorted(_FACTORY_FUNCS)


def algo_name_to_factory_func(algo_name: str) -> FactoryFunc:
    """Returns the function registered under a name.

    Raises:
        ConfigError: if there is none.
    """
    if algo_name not in _FACTORY_FUNCS:
        hint = did_you_mean(algo_name, _FACTORY_FUNCS)
        raise ConfigError(f"unknown algorithm '{algo_name}'{hint}")
    return _FACTORY_FUNCS[algo_name]


def algo_class(algo_name: str, config: BaseConfig) -> type[Algo]:
    """Returns the class that a config chooses, without making the algorithm."""
    return algo_name_to_factory_func(algo_name)(config.algo)[0]


def algo_factory(
    algo_name: str,
    config: BaseConfig,
    obs_key_shapes: Mapping[str, Any],
    ac_dim: int,
    device: torch.device | str,
) -> Algo:
    """Makes the algorithm that a config describes.

    Args:
        algo_name: name of the algorithm, the config's own.
        config: the whole config.
        obs_key_shapes: shape of each observation key, in the order in which networks
            concatenate them.
        ac_dim: number of action dimensions.
        device: where networks live.

    Raises:
        ConfigError: for an unknown name, or one that is not the config's, and for networks that
            do not fit into memory.
    """
    factory_func = algo_name_to_factory_func(algo_name)
    if config.algo_name != algo_name:
        raise ConfigError(
            f"the config is for '{config.algo_name}', not for '{algo_name}': "
            "pass a config of that algorithm"
        )
    for listener in _CONFIG_LISTENERS:
        listener(config)
    cls, kwargs = factory_func(config.algo)
    try:
        return cls(
            algo_config=config.algo,
            obs_config=config.observation,
            global_config=config,
            obs_key_shapes=ObsShapes(obs_key_shapes),  # whose shapes equal those of its groups
            ac_dim=ac_dim,
            device=torch.device(device),
            **kwargs,
        )
    except (MemoryError, RuntimeError) as error:
        # Torch has a class for a full GPU alone.
        reason = str(error).splitlines()[0] if str(error) else "out of memory"
        words = ("allocate memory", "Storage size calculation overflowed", "out of memory")
        if not any(word in reason for word in words):
            raise
        raise ConfigError(
            f"the networks of {algo_name} do not fit into memory ({reason[:200]}): make the layers "
            "in 'algo' smaller"
        ) from error


@cache
def _log_name(key: str) -> tuple[str, bool]:
    """Writes `critic/q_targets` as `Critic/Q_Targets`, the way robomimic names metrics.

    Returns:
        The name, and whether the metric is a loss.
    """
    name = re.sub(r"(?:^|(?<=[/_]))[a-z]", lambda letter: letter[0].upper(), key)
    return name, re.search(r"(^|[/_])loss$", key) is not None


class Algo:
    """Base of all algorithms.

    Attributes:
        nets: every network of the algorithm, by name. A name that ends in `_target` is a
            target network: it stays in evaluation mode.
        optimizers: for each network named in `algo_config.optim_params` its optimizer, or a
            list of them, one for each element, where the network is a `ModuleList`.
        lr_schedulers: learning-rate schedules (or None), nested like `optimizers`.
        obs_shapes: shapes and modalities of the observation keys that the policy sees.
        goal_shapes: shapes and modalities of the goal's keys; empty without goals.
        subgoal_shapes: shapes and modalities of the keys of a planner's subgoals.
        needs: for an algorithm without `reads`: the groups that the dataset must hold
            besides observations and actions, of `"next_obs"`, `"rewards"`, `"dones"` and the
            names of further datasets; `"next_actions"` and `"pad_mask"`: batches carry them;
            `"bounded_actions"`: actions in [-1, 1], normalised ones.
        grad_sync: the other workers that train the same networks, if there are any.
        metric_reductions: how a metric of `log_info` is reduced over steps and ranks where
            that is not the mean over samples.
        episode_noise: in rollouts with seeds, the source of each episode's own random numbers;
            `RolloutPolicy` sets it.
        actor_update_counter: for algorithms that update their actor less often.

    Args:
        algo_config: `config.algo`.
        obs_config: `config.observation`.
        global_config: the whole config.
        obs_key_shapes: shape of each observation key, in the order in which networks
            concatenate them.
        ac_dim: number of action dimensions.
        device: where networks live.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    metric_reductions: Mapping[str, Literal["mean", "sum", "max"]] = {}
    episode_noise: EpisodeNoise | None = None
    grad_sync: GradSync | None = None
    _obs_stats: tuple[Any, dict[str, dict[str, Tensor]]] | None = None

    def __init__(
        self,
        algo_config: Config,
        obs_config: Config,
        global_config: BaseConfig,
        obs_key_shapes: Mapping[str, Any],
        ac_dim: int,
        device: torch.device,
    ) -> None:
        self.algo_config = algo_config
        self.obs_config = obs_config
        self.global_config = global_config
        self.obs_key_shapes = obs_key_shapes
        self.ac_dim = ac_dim
        self.device = device
        self._create()

    def _create(self) -> None:
        """Makes shapes, networks and optimizers, in this order."""
        self.optim_params = deepcopy(self.algo_config.get("optim_params", {}))
        self.actor_update_counter = 0
        self.nets = nn.ModuleDict()
        self._create_shapes(self.obs_config.get("modalities", {}), self.obs_key_shapes)
        try:
            self._create_networks()
        except NoLayersError as error:
            raise self._without_layers(error) from error
        self.nets.to(device=self.device, dtype=self.dtype)
        self._create_optimizers()

    def _without_layers(self, error: NoLayersError) -> ConfigError:
        """The error of a network without hidden layers, with the keys that may be meant."""
        empty = [
            f"'{self.algo_config.dotted(key)}'"
            for key, value in self.algo_config.leaves()
            if key.endswith("layer_dims") and isinstance(value, list | tuple) and not value
        ]
        if not empty:
            return error
        verb = "is" if len(empty) == 1 else "are"
        return ConfigError(
            f"{' and '.join(empty)} {verb} empty, and a network needs at least one hidden "
            "layer: list the sizes of its layers, such as [256, 256]"
        )

    # ------------------------------------------------------------------ construction

    @cached_property
    def dtype(self) -> torch.dtype:
        """The floating-point type of networks and batches, `config.train.dtype`."""
        name = self.global_config.train.dtype
        return {"float32": torch.float32, "float64": torch.float64}[name]

    @property
    def bounded_actions(self) -> bool:
        """Whether the actions that it learns lie in [-1, 1], even if the data's do not.

        Training then warns of data that leave this range. By default: whether a network has an
        attribute `bounded_actions` that is true, as those of `raymimic.models.policy_nets`
        have. An algorithm with networks of its own may say so itself, as a class attribute.
        """
        return any(getattr(net, "bounded_actions", False) for net in self.nets.modules())

    def _create_shapes(
        self, modalities: Mapping[str, Mapping[str, Any]], obs_key_shapes: Mapping[str, Any]
    ) -> None:
        """Fills `obs_shapes`, `goal_shapes` and `subgoal_shapes`.

        Raises:
            ConfigError: if the config names a key that has no shape.
        """

        def shapes_of(group: str) -> ObsShapes:
            of_key = shapes.modalities_of(modalities.get(group, {}))
            for key in of_key:
                if key not in obs_key_shapes:
                    raise ConfigError(
                        f"observation key '{key}' of observation.modalities.{group} is not in the "
                        f"data{did_you_mean(key, obs_key_shapes)}"
                    )
            return ObsShapes({k: s for k, s in obs_key_shapes.items() if k in of_key}, of_key)

        self.obs_shapes = shapes_of("obs")
        self.goal_shapes = shapes_of("goal")
        self.subgoal_shapes = shapes_of("subgoal")

    def _create_networks(self) -> None:
        """Puts the networks into `self.nets`, a `ModuleDict`."""
        raise NotImplementedError

    def _create_optimizers(self) -> None:
        """Makes an optimizer and a schedule for each network that `optim_params` names."""

        def make(name: str, net: nn.Module) -> tuple[Optimizer, LRScheduler | None]:
            params = self.optim_params[name]
            optimizer = optimization.optimizer_from_optim_params(params, net)
            return optimizer, optimization.lr_scheduler_from_optim_params(params, optimizer)

        self.optimizers: dict[str, Any] = {}
        self.lr_schedulers: dict[str, Any] = {}
        for name in self.optim_params:
            if name not in self.nets:
                continue  # settings of a network that this variant does not have
            net = self.nets[name]
            if isinstance(net, nn.ModuleList):
                made = [make(name, element) for element in net]
                self.optimizers[name] = [optimizer for optimizer, _ in made]
                self.lr_schedulers[name] = [scheduler for _, scheduler in made]
            else:
                self.optimizers[name], self.lr_schedulers[name] = make(name, net)

    # ---------------------------------------------------------------------- training

    @classmethod
    def reads(cls, config: BaseConfig) -> Reads:
        """Declares the steps of each group that batches carry.

        By default robomimic's one window, `train.seq_length` and `train.frame_stack`, of all
        that the data hold; those of `needs` must be there.

        Args:
            config: the whole config; of a part of a composite, with the part's section as `algo`.
        """
        return one_window(config.train, cls.needs)

    def _cut(self, batch: Batch, wanted: Reads, given: Reads | None = None) -> Batch:
        """Cuts windows out of a batch.

        Args:
            batch: with the windows of `given`, as the loader gathers them, or with robomimic's
                one window, as a `SequenceDataset` without `reads` does.
            wanted: the windows to cut out.
            given: None: the same.

        Returns:
            The groups of `wanted` that the batch has, and `goal_obs` if there is a goal. A
            batch that is too short leaves them shorter.
        """
        starts = (wanted if given is None else given).windows
        whole = Window(1 - self.global_config.train.frame_stack, 1)

        def cut(x: Tensor, name: str, window: Window) -> Tensor:
            has = starts.get(name)
            if has is not None and x.shape[1] == len(has):
                return x if has == window else x[:, window.within(has)]
            return x[:, window.within(whole)]

        windows: Batch = {"goal_obs": batch["goal_obs"]} if "goal_obs" in batch else {}
        for name, window in wanted.windows.items():
            if name in batch:
                value = batch[name]
                windows[name] = (
                    {key: cut(x, name, window) for key, x in value.items()}
                    if isinstance(value, Mapping)
                    else cut(value, name, window)
                )
        return windows

    def process_batch_for_training(self, batch: Batch) -> Batch:
        """Takes the inputs of a one-step algorithm from a batch of the loader.

        With `algo.n_step` = n the reward is the discounted sum of n rewards, the next
        observation is the one n steps later, and done is whether any of the n steps was. With
        `algo.infinite_horizon` the reward of a done step counts as if it came for ever:
        1 / (1 - discount^n) times as much. As in `robomimic/algo/bcq.py`.

        Args:
            batch: `obs` and `next_obs` `{key: [B, T, *shape]}`, `actions` and
                `next_actions` `[B, T, A]`, `rewards` and `dones` `[B, T]`, `goal_obs`
                `{key: [B, *shape]}`; all but `obs` and `actions` only if present. The windows
                are those of `raymimic.data.reads.one_step`, or robomimic's one window.

        Returns:
            The same names on the algorithm's device in its dtype: `[B, *shape]`, `[B, A]` and
            `[B, 1]`; `goal_obs` None if there is no goal.

        Raises:
            ConfigError: if `algo.n_step` is longer than the batch's sequences, or observations
                are stacked.
        """
        self._refuse_stacks(batch)
        n_step = self.algo_config.get("n_step", 1)
        batch = self._cut(batch, one_step(n_step))
        for name in ("rewards", "dones"):
            if name in batch and batch[name].shape[1] < n_step:
                raise ConfigError(
                    f"algo.n_step={n_step} needs sequences as long: set train.seq_length={n_step} "
                    f"(it is {batch[name].shape[1]})"
                )

        def only_step(obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {k: self._cast(x[:, 0]) for k, x in obs.items()}

        processed: Batch = {
            "obs": only_step(batch["obs"]),
            "goal_obs": map_tensor(batch.get("goal_obs"), self._cast),
            "actions": self._cast(batch["actions"][:, 0]),
        }
        if "next_obs" in batch:
            processed["next_obs"] = only_step(batch["next_obs"])
        if "next_actions" in batch:
            processed["next_actions"] = self._cast(batch["next_actions"][:, 0])
        if "dones" in batch:
            dones = self._cast(batch["dones"])
            processed["dones"] = dones if n_step == 1 else dones.amax(dim=1, keepdim=True)
        if "rewards" in batch:
            rewards = self._cast(batch["rewards"])
            discount = self.algo_config.get("discount", 1.0)
            if n_step > 1:
                powers = torch.arange(n_step, device=self.device, dtype=self.dtype)
                rewards = (rewards * discount**powers).sum(dim=1, keepdim=True)
            if self.algo_config.get("infinite_horizon", False):
                for_ever = rewards / (1.0 - discount**n_step)
                rewards = torch.where(processed["dones"] > 0, for_ever, rewards)
            processed["rewards"] = rewards
        return processed

    def _refuse_stacks(self, batch: Batch) -> None:
        """Makes sure that a batch begins at the current step, not at the oldest of a stack.

        For algorithms that see one observation at a time: the policy would be given stacks.

        Raises:
            ConfigError: if it does not.
        """
        train = self.global_config.train
        if train.frame_stack == 1:
            return
        if next(iter(batch["obs"].values())).shape[1] > train.seq_length:
            raise ConfigError(
                f"'train.frame_stack' is {train.frame_stack}, but {type(self).__name__} sees one "
                "observation at a time: set it to 1"
            )

    def _cast(self, x: Tensor) -> Tensor:
        """Brings a tensor of the loader onto the algorithm's device and into its dtype."""
        if x.dtype == self.dtype and x.device == self.device:
            return x
        return x.to(self.device).to(self.dtype)  # the device first: images travel as bytes

    def postprocess_batch_for_training(
        self, batch: Batch, obs_normalization_stats: Mapping[str, Mapping[str, Any]] | None
    ) -> Batch:
        """Prepares a batch's observations for networks, on the device.

        Images become `[..., C, H, W]` in 0 to 1; observations are normalised.

        Args:
            batch: as `process_batch_for_training` returned it.
            obs_normalization_stats: `offset` and `scale` `[1, *shape]` by key, or None.

        Returns:
            The batch, with new dicts under `obs`, `next_obs` and `goal_obs` wherever they
            are nested.
        """
        groups = {"obs": self.obs_shapes, "next_obs": self.obs_shapes, "goal_obs": self.goal_shapes}

        def prepare(part: Batch) -> Batch:
            prepared = {}
            for name, value in part.items():
                if name in groups and value is not None:
                    value = self._prepare_obs(value, groups[name], obs_normalization_stats)
                elif isinstance(value, dict):
                    value = prepare(value)
                prepared[name] = value
            return prepared

        return prepare(batch)

    def _prepare_obs(
        self,
        obs: Mapping[str, Tensor],
        shapes: ObsShapes,
        obs_normalization_stats: Mapping[str, Mapping[str, Any]] | None,
    ) -> dict[str, Tensor]:
        """Prepares one group of a batch's observations; `shapes` knows their modalities."""
        obs = process_obs_dict(obs, shapes, self.global_config.cuts_depth)
        stats = self._stats_on_device(obs_normalization_stats)
        return obs if stats is None else normalization.normalize_dict(obs, stats)

    def _stats_on_device(
        self, stats: Mapping[str, Mapping[str, Any]] | None
    ) -> dict[str, dict[str, Tensor]] | None:
        """Returns statistics as tensors; those of the last call are remembered."""
        if stats is None:
            return None
        if self._obs_stats is None or self._obs_stats[0] is not stats:
            self._obs_stats = stats, normalization.stats_to_tensors(stats, self.device, self.dtype)
        return self._obs_stats[1]

    def updates(self) -> Sequence[Update]:
        """Names the gradient steps of one training step, in their order.

        Settings are read at each call, so that they may change while training goes on.
        """
        return ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Completes a class that was written for robomimic, or for raymimic 0.1.0.

        A class that defines `updates` gets a `train_on_batch` of its own; one without `reads` gets
        robomimic's windows; one with several bases gets the needs of all. If its `deserialize`
        loads no optimizers, as robomimic's before 0.5, that is added.

        A method of its own: a subclass that takes its steps itself may call `train_on_batch` of its
        base class, as code for robomimic does, without taking a step twice.

        Raises:
            ConfigError: the class overrides a method by its name of 0.1.0.
        """
        super().__init_subclass__(**kwargs)
        for old, new in _RENAMED.items():
            if old in cls.__dict__:
                raise ConfigError(f"{cls.__qualname__}.{old} is called {new} now: rename it")
        if "updates" in cls.__dict__ and cls.train_on_batch in (
            Algo.train_on_batch,
            Algo._train_by_updates,
        ):
            cls.train_on_batch = Algo._train_by_updates  # type: ignore[method-assign]
        if "reads" not in cls.__dict__:
            cls._read_as_before()
        load = cls.__dict__.get("deserialize")
        if load is not None and not _takes(load, cls, {}, load_optimizers=True):
            cls.deserialize = _loading_optimizers_too(load)  # type: ignore[method-assign]
        bases = [base.needs for base in cls.__bases__ if issubclass(base, Algo)]
        if "needs" not in cls.__dict__ and len(bases) > 1:
            cls.needs = frozenset().union(*bases)

    @classmethod
    def _read_as_before(cls) -> None:
        """Gives robomimic's one window to a class that says `needs`, or overrides its batches.

        For code that was written before algorithms declared their windows.
        """
        inherited = cls.reads
        if "needs" in cls.__dict__:
            cls.reads = classmethod(Algo.reads.__func__)  # type: ignore[assignment,attr-defined]
        elif "process_batch_for_training" in cls.__dict__:

            def reads(cls: type[Algo], config: BaseConfig) -> Reads:
                return one_window(config.train, cls.needs | inherited(config).required)

            cls.reads = classmethod(reads)  # type: ignore[assignment]

    def train_on_batch(self, batch: Batch, epoch: int, validate: bool = False) -> dict[str, Any]:
        """Takes one gradient step, or only computes losses.

        An algorithm defines `updates`, which this follows, or extends this.

        Args:
            batch: a processed batch.
            epoch: the number of the epoch, from 1.
            validate: learn nothing.

        Returns:
            The input of `log_info`: tensors that are left on the device.
        """
        if not validate and not self.nets.training:
            raise RuntimeError("call set_train() before training")
        return {}

    def _train_by_updates(self, batch: Batch, epoch: int, validate: bool = False) -> dict[str, Any]:
        """Takes the steps that `updates` names, or only computes losses."""
        info = Algo.train_on_batch(self, batch, epoch, validate)
        with synchronized(self.grad_sync):
            for update in self.updates():
                learners = [] if validate else self._due_learners(update, epoch)
                with tensors.maybe_no_grad(not learners):
                    losses = update.losses(batch, epoch)
                info |= losses.info
                if learners:
                    info |= self._step(learners, losses)
        return info

    def _due_learners(self, update: Update, epoch: int) -> list[Learner]:
        """Returns the learners of an update that take a step now."""
        if update.when is not None and not update.when():
            return []
        first = update.learners[0].name

        def is_due(learner: Learner) -> bool:
            gate = learner.name if learner.name in self.optim_params else first
            return gate not in self.optim_params or self._check_epoch(gate, epoch)

        return [learner for learner in update.learners if is_due(learner)]

    def _step(self, learners: Sequence[Learner], losses: Losses) -> dict[str, Tensor]:
        """Takes one gradient step with each learner, by one backward pass and one exchange.

        Returns:
            The squared norms (0-d) of the gradients that were applied, by the metric's name.
        """
        names: list[str] = []
        values: list[Tensor] = []
        optimizers: list[Optimizer] = []
        limits: list[float | None] = []
        for learner in learners:
            loss, optimizer = losses.of[learner.name], self.optimizers[learner.name]
            own_losses = [loss] if isinstance(loss, Tensor) else loss
            values += own_losses
            optimizers += [optimizer] if isinstance(optimizer, Optimizer) else optimizer
            limits += [self._longest_gradient(learner)] * len(own_losses)
            names += [learner.grad_norms.format(i + 1) for i in range(len(own_losses))]
        norms = optimization.backprop_for_losses(optimizers, values, limits, self.grad_sync)
        for learner in learners:
            if learner.then is not None:
                learner.then()
        return dict(zip(names, norms, strict=True))

    def _longest_gradient(self, learner: Learner) -> float | None:
        """Returns the learner's own limit of its gradient's norm, else `train.max_grad_norm`.

        robomimic reads `train.max_grad_norm` for BC only.
        """
        if learner.max_grad_norm is None and learner.name in self.optim_params:
            limit: float | None = self.global_config.train.max_grad_norm
            return limit
        return learner.max_grad_norm

    def _check_epoch(self, net_name: str, epoch: int) -> bool:
        """Tells whether a network is trained in an epoch.

        `start_epoch` and `end_epoch` of its `optim_params` say so; -1 is no limit, and
        the end is exclusive.
        """
        start = self.optim_params[net_name].get("start_epoch", -1)
        end = self.optim_params[net_name].get("end_epoch", -1)
        return bool((start == -1 or epoch >= start) and (end == -1 or epoch < end))

    def dist_mean(self, x: Tensor) -> Tensor:
        """Returns the mean over the global batch, detached (0-d).

        A statistic of the batch that enters a loss goes through here: taken over one worker's
        samples alone it would make the result depend on the number of workers.

        Args:
            x: one value or more for each of this worker's samples.
        """
        return x.detach().mean() if self.grad_sync is None else self.grad_sync.mean(x)

    def on_gradient_step(self) -> None:
        """Steps the schedules that count gradient steps; called after each."""
        self._step_schedulers(every_batch=True)

    def on_epoch_end(self, epoch: int) -> None:
        """Steps the schedules that count epochs; called after each."""
        self._step_schedulers(every_batch=False)

    def _step_schedulers(self, every_batch: bool) -> None:
        for name, schedulers in self.lr_schedulers.items():
            settings = self.optim_params[name]["learning_rate"]
            if settings.get("step_every_batch", False) == every_batch:
                for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
                    if scheduler is not None:
                        scheduler.step()

    def log_info(self, info: Mapping[str, Any]) -> dict[str, Tensor | float]:
        """Turns the result of `train_on_batch` into metrics.

        Each tensor or number becomes its mean, named as robomimic names metrics:
        `critic/q_targets` is logged as `Critic/Q_Targets`. `Loss` is the sum of all that
        are named `loss` or `…_loss`, unless there is a `loss` itself. Learning rates come
        first.

        Returns:
            0-d tensors, detached and left on the device, and numbers.
        """
        log: dict[str, Tensor | float] = {}
        for name, optimizer in self.named_optimizers():
            for i, group in enumerate(optimizer.param_groups):
                log[f"Optimizer/{name}{i}_lr"] = group["lr"]
        losses: list[Tensor | float] = []
        for key, value in leaves(info, "/"):
            name, is_loss = _log_name(key)
            if isinstance(value, Tensor):
                value = value.detach() if value.requires_grad else value
                log[name] = value if value.dim() == 0 else value.to(self.dtype).mean()
            elif isinstance(value, int | float):
                log[name] = value
            else:
                continue
            if is_loss:
                losses.append(log[name])
        if "Loss" not in log:
            log["Loss"] = sum(losses[1:], start=losses[0]) if losses else 0.0
        return log

    def named_optimizers(self) -> Iterator[tuple[str, Optimizer]]:
        """Yields all optimizers; those of a list are numbered: `critic0`, `critic1`."""
        for name, optimizer in self.optimizers.items():
            if isinstance(optimizer, list):
                yield from ((f"{name}{i}", element) for i, element in enumerate(optimizer))
            else:
                yield name, optimizer

    def set_train(self) -> None:
        """Puts networks into training mode, except target networks."""
        self.nets.train()
        for name, net in self.nets.items():
            if name.endswith("_target"):
                net.eval()

    def set_eval(self) -> None:
        """Puts networks into evaluation mode."""
        self.nets.eval()

    # ------------------------------------------------------------------- checkpoints

    @classmethod
    def correct_config_by_weights(cls, config: BaseConfig, model: Mapping[str, Any]) -> None:
        """Corrects the config of a checkpoint of robomimic by its weights.

        For settings that robomimic writes down and ignores. By default: its VAEs' decoders see the
        observation, even if `vae.decoder.is_conditioned` is false.

        Args:
            config: the config, not locked; changed in place.
            model: the state of robomimic's algorithm.
        """
        for _, vae in sections_named(config.algo, "vae"):
            vae.decoder.is_conditioned = True

    @classmethod
    def why_not_exportable(cls, config: BaseConfig) -> str | None:
        """Names the part of this config's policy that robomimic lacks; None: it lacks nothing.

        Such a checkpoint cannot be exported.
        """
        for path, vae in sections_named(config.algo, "vae"):
            if vae.enabled and not vae.decoder.is_conditioned:
                return f"decoders that do not see the observation (algo.{path}.decoder)"
        return None

    def serialize(self) -> dict[str, Any]:
        """Returns the state of networks, optimizers and schedules, as robomimic 0.5 saves it."""
        return {
            "nets": self.nets.state_dict(),
            "optimizers": optimization.get_state_dict(self.optimizers),
            "lr_schedulers": optimization.get_state_dict(self.lr_schedulers),
        }

    def deserialize(self, model_dict: Mapping[str, Any], load_optimizers: bool = False) -> None:
        """Loads the result of `serialize`.

        Args:
            model_dict: that, or the networks' state dict alone (robomimic before 0.4).
            load_optimizers: load optimizers and schedules too, to go on training. Schedules go on
                where they were, but from the config's initial learning rates (in robomimic, from
                the checkpoint's).

        Raises:
            CheckpointError: if it does not fit this config.
        """
        try:
            self.nets.load_state_dict(model_dict.get("nets", model_dict))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"the checkpoint does not fit the config: {reason}") from error
        if load_optimizers:
            self._load_optimizers(model_dict)

    def _load_optimizers(self, model_dict: Mapping[str, Any]) -> None:
        """Loads optimizers and schedules, see `deserialize`."""
        if "optimizers" not in model_dict:
            raise CheckpointError(
                "the checkpoint holds no optimizers: it can act, but training cannot resume"
            )
        pairs = list(self._optimizers_and_schedulers())
        initial = [optimization.initial_learning_rates(optimizer) for optimizer, _ in pairs]
        optimization.load_state_dict(self.optimizers, model_dict["optimizers"])
        optimization.load_state_dict(self.lr_schedulers, model_dict["lr_schedulers"])
        for (optimizer, scheduler), rates in zip(pairs, initial, strict=True):
            optimization.set_initial_learning_rates(optimizer, scheduler, rates)

    def _optimizers_and_schedulers(self) -> Iterator[tuple[Optimizer, LRScheduler | None]]:
        for name, optimizers in self.optimizers.items():
            schedulers = self.lr_schedulers.get(name)  # not every optimizer has any
            if isinstance(optimizers, list):
                yield from zip(optimizers, schedulers or [None] * len(optimizers), strict=True)
            else:
                yield optimizers, schedulers

    def training_state(self) -> dict[str, Any]:
        """Returns the state that an exact resume needs besides `serialize`.

        It holds every attribute of the algorithm that is a number, a string or a tensor:
        counters, a discount that was set, a moving average. It also holds the step of an
        `EMAModel`, which robomimic does not save.
        """
        plain = bool | int | float | str | Tensor
        own = vars(self).items()
        averages = {k: x.optimization_step for k, x in own if isinstance(x, EMAModel)}
        return {name: value for name, value in own if isinstance(value, plain)} | averages

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Loads the result of `training_state`.

        Raises:
            ValueError: it would replace an attribute that is no part of such a state.
        """
        known = self.training_state()
        for name, value in state.items():
            own = getattr(self, name, None)
            if own is not None and name not in known:
                raise ValueError(f"'{name}' is no part of an algorithm's state")
            if isinstance(own, EMAModel):
                own.optimization_step = int(value)
            elif isinstance(own, Tensor) and isinstance(value, Tensor) and own.shape == value.shape:
                own.data.copy_(value)  # an optimizer may hold it
            else:
                setattr(self, name, value.to(self.device) if isinstance(value, Tensor) else value)

    # ----------------------------------------------------------------------- acting

    @property
    def acts_in_batches(self) -> bool:
        """Whether it can act in several episodes of a batch.

        An algorithm whose `reset` takes no mask, as in robomimic, cannot: it plays one environment
        at a time.
        """
        return _takes(self.reset, None)

    def reset(self, mask: Tensor | None = None) -> None:
        """Forgets the episode; for algorithms that remember something of it.

        Args:
            mask: `[B]` bool, the rows of a batch that start a new episode; None: all.
        """

    @staticmethod
    def _check_episodes(remembered: int, given: int) -> None:
        """Makes sure that the remembered episodes are those to act in.

        Raises:
            RuntimeError: if there are more or fewer episodes than at the step before.
        """
        if remembered != given:
            raise RuntimeError(
                f"{given} observations for {remembered} episodes: call reset() before a batch of "
                "other episodes"
            )

    def _noise_only(self, mask: Tensor) -> AbstractContextManager[None]:
        """Marks draws that only some episodes of a batch need.

        A policy that draws a new plan or queue for some rows computes all rows and keeps these;
        the random streams of the other rows do not advance.

        Args:
            mask: `[B]` bool, the rows that the draws are for.
        """
        return nullcontext() if self.episode_noise is None else self.episode_noise.only(mask)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(\n{textwrap.indent(repr(self.nets), '  ')}\n)"


def _takes(function: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    """Whether a function can be called with these arguments."""
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _loading_optimizers_too(load: Callable[..., None]) -> Callable[..., None]:
    """A `deserialize` that loads optimizers, made of one that does not."""

    @wraps(load)
    def deserialize(
        self: Algo, model_dict: Mapping[str, Any], load_optimizers: bool = False
    ) -> None:
        load(self, model_dict)
        if load_optimizers:
            self._load_optimizers(model_dict)

    return deserialize


class PolicyAlgo(Algo):
    """An algorithm that can act."""

    def get_action(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:
        """Chooses actions.

        Args:
            obs_dict: `{key: [B, *shape]}`, prepared as for training.
            goal_dict: `{key: [B, *shape]}` of the goal; None: no goal.

        Returns:
            Actions `[B, A]`.
        """
        raise NotImplementedError


class ValueAlgo(Algo):
    """An algorithm that learns how good states or actions are."""

    needs: ClassVar[frozenset[str]] = frozenset({"next_obs", "rewards", "dones"})
    _discount: float | None = None

    @property
    def discount(self) -> float:
        """Discount of the value after the (n-step) reward, discount^n.

        Read from the config whenever it is used, unless a value was assigned.
        """
        if self._discount is not None:
            return self._discount
        return float(self.algo_config.discount ** self.algo_config.get("n_step", 1))

    @discount.setter
    def discount(self, value: float) -> None:
        self._discount = value

    def get_state_value(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:
        """Estimates the values `[B, 1]` of states `{key: [B, *shape]}`."""
        raise NotImplementedError

    def get_state_action_value(
        self, obs_dict: ObsDict, actions: Tensor, goal_dict: ObsDict | None = None
    ) -> Tensor:
        """Estimates the values `[B, 1]` of actions `[B, A]` in states."""
        raise NotImplementedError


class PlannerAlgo(Algo):
    """An algorithm that proposes subgoals."""

    needs: ClassVar[frozenset[str]] = frozenset({"next_obs"})

    def get_subgoal_predictions(
        self, obs_dict: ObsDict, goal_dict: ObsDict | None = None
    ) -> dict[str, Tensor]:
        """Predicts one subgoal `{key: [B, *shape]}` for each state."""
        raise NotImplementedError

    def sample_subgoals(
        self, obs_dict: ObsDict, goal_dict: ObsDict | None = None, num_samples: int = 1
    ) -> dict[str, Tensor]:
        """Samples subgoals `{key: [B, num_samples, *shape]}` for each state."""
        raise NotImplementedError
