"""What an algorithm is: its life cycle, its capabilities, and the registry of all of them.

A new algorithm is a function that maps ``config.algo`` to a class, registered under the
``ALGO_NAME`` of its config, and that class: a subclass of :class:`PolicyAlgo` (it acts),
:class:`ValueAlgo` (it estimates returns) or :class:`PlannerAlgo`, with at least
``_create_networks``, ``train_on_batch`` and ``get_action``. All else has a default here. Those that
are made of others are in :mod:`raymimic.algo.composite`.
"""

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from raymimic.config.base_config import BaseConfig, sections_named
from raymimic.config.config import Config
from raymimic.errors import CheckpointError, ConfigError, did_you_mean
from raymimic.utils import obs_utils, torch_utils
from raymimic.utils.noise import EpisodeNoise
from raymimic.utils.obs_utils import ObsShapes
from raymimic.utils.tensor_utils import map_tensor
from raymimic.utils.torch_utils import GradSync

Batch = dict[str, Any]
ObsDict = Mapping[str, Tensor]
FactoryFunc = Callable[[Config], tuple[type["Algo"], dict[str, Any]]]

_FACTORY_FUNCS: dict[str, FactoryFunc] = {}


def register_algo_factory_func(algo_name: str) -> Callable[[FactoryFunc], FactoryFunc]:
    """Registers the decorated function as what chooses an algorithm's class.

    The function takes ``config.algo`` and returns the class and further keyword arguments for
    its constructor.

    Args:
        algo_name: the ``ALGO_NAME`` of the algorithm's config.

    Raises:
        ConfigError: if another function has that name already.
    """

    def decorator(factory_func: FactoryFunc) -> FactoryFunc:
        known = _FACTORY_FUNCS.get(algo_name, factory_func)
        if (known.__module__, known.__qualname__) != (
            factory_func.__module__,
            factory_func.__qualname__,
        ):
            raise ConfigError(
                f"an algorithm '{algo_name}' is registered already, by {known.__module__}: "
                "choose another name"
            )
        _FACTORY_FUNCS[algo_name] = factory_func
        return factory_func

    return decorator


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


def algo_class(algo_name: str, config: BaseConfig) -> type["Algo"]:
    """Returns the class that a config chooses, without making the algorithm."""
    return algo_name_to_factory_func(algo_name)(config.algo)[0]


def algo_factory(
    algo_name: str,
    config: BaseConfig,
    obs_key_shapes: Mapping[str, Any],
    ac_dim: int,
    device: torch.device | str,
) -> "Algo":
    """Makes the algorithm that a config describes.

    Args:
        algo_name: name of the algorithm, the config's own.
        config: the whole config.
        obs_key_shapes: shape of each observation key, in the order in which networks
            concatenate them.
        ac_dim: number of action dimensions.
        device: where networks live.

    Raises:
        ConfigError: for an unknown name, or one that is not the config's.
    """
    factory_func = algo_name_to_factory_func(algo_name)
    if config.algo_name != algo_name:
        raise ConfigError(f"the config is one of '{config.algo_name}', not of '{algo_name}'")
    cls, kwargs = factory_func(config.algo)
    return cls(
        algo_config=config.algo,
        obs_config=config.observation,
        global_config=config,
        obs_key_shapes=obs_key_shapes,
        ac_dim=ac_dim,
        device=torch.device(device),
        **kwargs,
    )


@cache
def _log_name(key: str) -> tuple[str, bool]:
    """Writes ``critic/q_targets`` as ``Critic/Q_Targets``, the way robomimic names metrics.

    Returns:
        The name, and whether what it names is a loss.
    """
    name = re.sub(r"(?:^|(?<=[/_]))[a-z]", lambda letter: letter[0].upper(), key)
    return name, re.search(r"(^|[/_])loss$", key) is not None


def _flatten(info: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the entries of nested dicts under keys joined by ``/``."""
    for key, value in info.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


class Algo:
    """Base of all algorithms.

    Attributes:
        nets: every network of the algorithm, by name. A name that ends in ``_target`` is a
            target network: it stays in evaluation mode.
        optimizers: for each network named in ``algo_config.optim_params`` its optimizer, or a
            list of them, one for each element, where the network is a ``ModuleList``.
        lr_schedulers: learning-rate schedules (or None), nested like ``optimizers``.
        obs_shapes: shapes and modalities of the observation keys that the policy sees.
        goal_shapes: likewise of the goal; empty without goals.
        subgoal_shapes: likewise of a planner's subgoals.
        dtype: the floating-point type of networks and batches, ``config.train.dtype``.
        needs: what the dataset must hold besides observations and actions, of ``"next_obs"``,
            ``"rewards"``, ``"dones"``; ``"bounded_actions"``: actions in [-1, 1], normalised ones.
        metric_reductions: how a metric of ``log_info`` is reduced over steps and ranks where
            that is not the mean over samples.
        episode_noise: in rollouts with seeds, what gives each episode of the batch random numbers
            of its own; :class:`~raymimic.algo.RolloutPolicy` sets it.
        actor_update_counter: for algorithms that update their actor less often.

    Args:
        algo_config: ``config.algo``.
        obs_config: ``config.observation``.
        global_config: the whole config.
        obs_key_shapes: shape of each observation key, in the order in which networks
            concatenate them.
        ac_dim: number of action dimensions.
        device: where networks live.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    metric_reductions: Mapping[str, Literal["mean", "sum", "max"]] = {}
    episode_noise: EpisodeNoise | None = None
    _grad_sync: GradSync | None = None

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
        self.dtype = {"float32": torch.float32, "float64": torch.float64}[global_config.train.dtype]
        # An algorithm that is made of others leaves these, and the modalities below, to its parts.
        self.optim_params = deepcopy(algo_config.get("optim_params", {}))
        self.actor_update_counter = 0
        self._obs_stats: tuple[Any, dict[str, dict[str, Tensor]]] | None = None

        self.nets = nn.ModuleDict()
        self._create_shapes(obs_config.get("modalities", {}), obs_key_shapes)
        self._create_networks()
        self.nets.to(device=self.device, dtype=self.dtype)
        self._create_optimizers()

    # ------------------------------------------------------------------ construction

    def _create_shapes(
        self, modalities: Mapping[str, Mapping[str, Any]], obs_key_shapes: Mapping[str, Any]
    ) -> None:
        """Fills ``obs_shapes``, ``goal_shapes`` and ``subgoal_shapes``.

        Raises:
            ConfigError: if the config names a key that has no shape.
        """

        def shapes_of(group: str) -> ObsShapes:
            of_key = obs_utils.modalities_of(modalities.get(group, {}))
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
        """Puts the networks into ``self.nets``, a ``ModuleDict``."""
        raise NotImplementedError

    def _create_optimizers(self) -> None:
        """Makes an optimizer and a schedule for each network that ``optim_params`` names."""

        def make(name: str, net: nn.Module) -> tuple[Optimizer, LRScheduler | None]:
            params = self.optim_params[name]
            optimizer = torch_utils.optimizer_from_optim_params(params, net)
            return optimizer, torch_utils.lr_scheduler_from_optim_params(params, optimizer)

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

    def process_batch_for_training(self, batch: Batch) -> Batch:
        """Takes from a batch of the loader what a one-step algorithm trains on.

        With ``algo.n_step`` = n the reward is the discounted sum of n rewards, the next
        observation is the one n steps later, and done is whether any of the n steps was. With
        ``algo.infinite_horizon`` the reward of a done step is what it would be worth for ever,
        1 / (1 - discount^n) times as much. As in ``robomimic/algo/bcq.py``.

        Args:
            batch: ``obs`` and ``next_obs`` ``{key: [B, T, *shape]}``, ``actions`` ``[B, T, A]``,
                ``rewards`` and ``dones`` ``[B, T]``, ``goal_obs`` ``{key: [B, *shape]}``; all but
                ``obs`` and ``actions`` only if present.

        Returns:
            The same names on the algorithm's device in its dtype: ``[B, *shape]``, ``[B, A]`` and
            ``[B, 1]``; ``goal_obs`` None if there is no goal.

        Raises:
            ConfigError: if ``algo.n_step`` is longer than the batch's sequences.
        """
        n_step = self.algo_config.get("n_step", 1)
        if batch["actions"].shape[1] < n_step:
            raise ConfigError(
                f"algo.n_step={n_step} needs sequences as long: set train.seq_length={n_step} "
                f"(it is {batch['actions'].shape[1]})"
            )

        def step_of(obs: Mapping[str, Tensor], t: int) -> dict[str, Tensor]:
            return {k: self._cast(x[:, t]) for k, x in obs.items()}

        processed: Batch = {
            "obs": step_of(batch["obs"], 0),
            "goal_obs": map_tensor(batch.get("goal_obs"), self._cast),
            "actions": self._cast(batch["actions"][:, 0]),
        }
        if "next_obs" in batch:
            processed["next_obs"] = step_of(batch["next_obs"], n_step - 1)
        if "dones" in batch:
            processed["dones"] = self._cast(batch["dones"][:, :n_step]).amax(dim=1, keepdim=True)
        if "rewards" in batch:
            rewards = self._cast(batch["rewards"][:, :n_step])
            discount = self.algo_config.get("discount", 1.0)
            if n_step > 1:
                powers = torch.arange(n_step, device=self.device, dtype=self.dtype)
                rewards = (rewards * discount**powers).sum(dim=1, keepdim=True)
            if self.algo_config.get("infinite_horizon", False):
                for_ever = rewards / (1.0 - discount**n_step)
                rewards = torch.where(processed["dones"] > 0, for_ever, rewards)
            processed["rewards"] = rewards
        return processed

    def _cast(self, x: Tensor) -> Tensor:
        """Brings a tensor of the loader onto the algorithm's device and into its dtype."""
        return x.to(self.device).to(self.dtype)  # the device first: images travel as bytes

    def postprocess_batch_for_training(
        self, batch: Batch, obs_normalization_stats: Mapping[str, Mapping[str, Any]] | None
    ) -> Batch:
        """Prepares a batch's observations for networks, on the device.

        Images become ``[..., C, H, W]`` in 0 to 1; observations are normalised.

        Args:
            batch: what :meth:`process_batch_for_training` returned.
            obs_normalization_stats: ``offset`` and ``scale`` ``[1, *shape]`` by key, or None.

        Returns:
            The batch, with new dicts under ``obs``, ``next_obs`` and ``goal_obs`` wherever they
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
        """Prepares one group of a batch's observations, whose modalities ``shapes`` knows."""
        obs = obs_utils.process_obs_dict(obs, shapes)
        stats = self._stats_on_device(obs_normalization_stats)
        return obs if stats is None else obs_utils.normalize_dict(obs, stats)

    def _stats_on_device(
        self, stats: Mapping[str, Mapping[str, Any]] | None
    ) -> dict[str, dict[str, Tensor]] | None:
        """Returns statistics as tensors; those of the last call are remembered."""
        if stats is None:
            return None
        if self._obs_stats is None or self._obs_stats[0] is not stats:
            self._obs_stats = stats, obs_utils.stats_to_tensors(stats, self.device, self.dtype)
        return self._obs_stats[1]

    def train_on_batch(self, batch: Batch, epoch: int, validate: bool = False) -> dict[str, Any]:
        """Takes one gradient step, or only computes losses.

        Subclasses extend this.

        Args:
            batch: a processed batch.
            epoch: the number of the epoch, from 1.
            validate: learn nothing.

        Returns:
            What :meth:`log_info` makes metrics of: tensors that are left on the device.
        """
        if not validate and not self.nets.training:
            raise RuntimeError("call set_train() before training")
        return {}

    def _learns(self, net_name: str, epoch: int, validate: bool) -> bool:
        """Tells whether a network takes gradient steps: in training, in its epochs."""
        return not validate and self._check_epoch(net_name, epoch)

    def _check_epoch(self, net_name: str, epoch: int) -> bool:
        """Tells whether a network is trained in an epoch.

        ``start_epoch`` and ``end_epoch`` of its ``optim_params`` say so; -1 is no limit, and
        the end is exclusive.
        """
        start = self.optim_params[net_name].get("start_epoch", -1)
        end = self.optim_params[net_name].get("end_epoch", -1)
        return bool((start == -1 or epoch >= start) and (end == -1 or epoch < end))

    def _learn(self, name: str, loss: Tensor, max_grad_norm: float | None = None) -> Tensor:
        """Takes one gradient step of a network on a loss.

        Args:
            name: of the network and its optimizer.
            loss: 0-d, the mean over this rank's samples.
            max_grad_norm: the longest that the gradient may be; None: ``train.max_grad_norm``,
                which robomimic reads for BC only.

        Returns:
            The squared norm (0-d) of the gradient that was applied.
        """
        return torch_utils.backprop_for_loss(
            net=self.nets[name],
            optim=self.optimizers[name],
            loss=loss,
            max_grad_norm=self._max_grad_norm(max_grad_norm),
        )

    def _max_grad_norm(self, own: float | None) -> float | None:
        """Returns the algorithm's own limit of a gradient's norm, else ``train.max_grad_norm``."""
        return self.global_config.train.max_grad_norm if own is None else own

    @property
    def grad_sync(self) -> GradSync | None:
        """The other workers, if there are any; training sets it, for all optimizers too."""
        return self._grad_sync

    @grad_sync.setter
    def grad_sync(self, sync: GradSync | None) -> None:
        self._grad_sync = sync
        for _, optimizer in self.named_optimizers():
            optimizer.grad_sync = sync  # type: ignore[attr-defined]

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
        """Turns what :meth:`train_on_batch` returned into metrics.

        Each tensor or number becomes its mean, named as robomimic names metrics:
        ``critic/q_targets`` is logged as ``Critic/Q_Targets``. ``Loss`` is the sum of all that
        are named ``loss`` or ``…_loss``, unless there is a ``loss`` itself. Learning rates come
        first.

        Returns:
            0-d tensors, detached and left on the device, and numbers.
        """
        log: dict[str, Tensor | float] = {}
        for name, optimizer in self.named_optimizers():
            for i, group in enumerate(optimizer.param_groups):
                log[f"Optimizer/{name}{i}_lr"] = group["lr"]
        loss: Tensor | float = 0.0
        for key, value in _flatten(info):
            name, is_loss = _log_name(key)
            if isinstance(value, Tensor):
                value = value.detach()
                log[name] = value if value.dim() == 0 else value.to(self.dtype).mean()
            elif isinstance(value, int | float):
                log[name] = value
            else:
                continue
            if is_loss:
                loss = log[name] + loss
        log.setdefault("Loss", loss)
        return log

    def named_optimizers(self) -> Iterator[tuple[str, Optimizer]]:
        """Yields all optimizers; those of a list are numbered: ``critic0``, ``critic1``."""
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
    def fit_config(cls, config: BaseConfig, ckpt: Mapping[str, Any]) -> None:
        """Corrects the config that a checkpoint holds by its weights.

        For settings that robomimic writes down and ignores. By default: its VAEs' decoders see the
        observation, whatever ``vae.decoder.is_conditioned`` says.

        Args:
            config: the config, not locked; changed in place.
            ckpt: the whole checkpoint; one of raymimic's has the entry ``raymimic``.
        """
        if "raymimic" not in ckpt:
            for _, vae in sections_named(config.algo, "vae"):
                vae.decoder.is_conditioned = True

    @classmethod
    def robomimic_lacks(cls, config: BaseConfig) -> str | None:
        """Names what a policy of this config needs and robomimic has not got; None: nothing.

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
            "optimizers": torch_utils.get_state_dict(self.optimizers),
            "lr_schedulers": torch_utils.get_state_dict(self.lr_schedulers),
        }

    def deserialize(self, model_dict: Mapping[str, Any], load_optimizers: bool = False) -> None:
        """Loads what :meth:`serialize` returned.

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
            if "optimizers" not in model_dict:
                raise CheckpointError(
                    "the checkpoint holds no optimizers: it can act, but training cannot resume"
                )
            pairs = list(self._optimizers_and_schedulers())
            initial = [torch_utils.initial_learning_rates(optimizer) for optimizer, _ in pairs]
            torch_utils.load_state_dict(self.optimizers, model_dict["optimizers"])
            torch_utils.load_state_dict(self.lr_schedulers, model_dict["lr_schedulers"])
            for (optimizer, scheduler), rates in zip(pairs, initial, strict=True):
                torch_utils.set_initial_learning_rates(optimizer, scheduler, rates)

    def _optimizers_and_schedulers(self) -> Iterator[tuple[Optimizer, LRScheduler | None]]:
        for name, optimizers in self.optimizers.items():
            schedulers = self.lr_schedulers.get(name)  # not every optimizer has any
            if isinstance(optimizers, list):
                yield from zip(optimizers, schedulers or [None] * len(optimizers), strict=True)
            else:
                yield optimizers, schedulers

    def training_state(self) -> dict[str, Any]:
        """Returns what an exact resume needs besides :meth:`serialize`.

        That is every attribute of the algorithm that is a number, a string or a tensor:
        counters, a discount that was set, a moving average.
        """
        plain = bool | int | float | str | Tensor
        return {name: value for name, value in vars(self).items() if isinstance(value, plain)}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Loads what :meth:`training_state` returned."""
        for name, value in state.items():
            own = getattr(self, name, None)
            if isinstance(own, Tensor) and isinstance(value, Tensor) and own.shape == value.shape:
                own.data.copy_(value)  # an optimizer may hold it
            else:
                setattr(self, name, value.to(self.device) if isinstance(value, Tensor) else value)

    # ----------------------------------------------------------------------- acting

    def reset(self, mask: Tensor | None = None) -> None:
        """Forgets the episode; for algorithms that remember something of it.

        Args:
            mask: ``[B]`` bool, those of a batch of episodes that start anew; None: all.
        """

    @staticmethod
    def _check_episodes(remembered: int, given: int) -> None:
        """Makes sure that what is remembered is of the episodes that are to be acted in.

        Raises:
            RuntimeError: if there are more or fewer episodes than at the step before.
        """
        if remembered != given:
            raise RuntimeError(
                f"{given} observations for {remembered} episodes: call reset() before a batch of "
                "other episodes"
            )

    def _noise_only(self, mask: Tensor) -> AbstractContextManager[None]:
        """Marks draws of which only some episodes of a batch have need.

        A policy that draws a new plan or queue for some rows, computes all rows and keeps those:
        the others' streams of random numbers stay where they are.

        Args:
            mask: ``[B]`` bool, the rows that the draws are for.
        """
        return nullcontext() if self.episode_noise is None else self.episode_noise.only(mask)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(\n{textwrap.indent(repr(self.nets), '  ')}\n)"


class PolicyAlgo(Algo):
    """An algorithm that can act."""

    def get_action(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:
        """Chooses actions.

        Args:
            obs_dict: ``{key: [B, *shape]}``, prepared as for training.
            goal_dict: likewise, if there is a goal.

        Returns:
            Actions ``[B, A]``.
        """
        raise NotImplementedError


class ValueAlgo(Algo):
    """An algorithm that learns how good states or actions are."""

    needs: ClassVar[frozenset[str]] = frozenset({"next_obs", "rewards", "dones"})
    _discount: float | None = None

    @property
    def discount(self) -> float:
        """Discount of the value after the (n-step) reward, discount^n.

        Read from the config whenever it is used; a value that is assigned takes its place.
        """
        if self._discount is not None:
            return self._discount
        return float(self.algo_config.discount ** self.algo_config.get("n_step", 1))

    @discount.setter
    def discount(self, value: float) -> None:
        self._discount = value

    def get_state_value(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:
        """Estimates the values ``[B, 1]`` of states ``{key: [B, *shape]}``."""
        raise NotImplementedError

    def get_state_action_value(
        self, obs_dict: ObsDict, actions: Tensor, goal_dict: ObsDict | None = None
    ) -> Tensor:
        """Estimates the values ``[B, 1]`` of actions ``[B, A]`` in states."""
        raise NotImplementedError


class PlannerAlgo(Algo):
    """An algorithm that proposes subgoals."""

    def get_subgoal_predictions(
        self, obs_dict: ObsDict, goal_dict: ObsDict | None = None
    ) -> dict[str, Tensor]:
        """Predicts one subgoal ``{key: [B, *shape]}`` for each state."""
        raise NotImplementedError

    def sample_subgoals(
        self, obs_dict: ObsDict, goal_dict: ObsDict | None = None, num_samples: int = 1
    ) -> dict[str, Tensor]:
        """Samples subgoals ``{key: [B, num_samples, *shape]}`` for each state."""
        raise NotImplementedError
