"""Algorithms that are made of others: planners with values, hierarchies."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, reduce
from operator import or_
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from raymimic.algo.algo import Algo, ObsDict, algo_name_to_factory_func
from raymimic.algo.learning import Batch
from raymimic.algo.noise import EpisodeNoise
from raymimic.config.base_config import BaseConfig
from raymimic.config.config import Config
from raymimic.data.reads import Reads
from raymimic.errors import CheckpointError
from raymimic.observations.shapes import ObsShapes
from raymimic.ranks import GradSync


class CompositeAlgo(Algo):
    """An algorithm made of others, its parts, which have sections of the config each.

    Its attributes that are algorithms are its parts. `_create_networks` makes them, or, as in
    robomimic, a constructor that does not call that of its base class. Calls that concern networks,
    optimizers, schedules, metrics and checkpoints are passed on to the parts. Batches and `info`
    are dicts over parts.

    Attributes:
        log_names: prefix of the names of each part's metrics.
    """

    log_names: ClassVar[Mapping[str, str]] = {}
    _grad_sync: GradSync | None = None
    _episode_noise: EpisodeNoise | None = None

    @property
    def parts(self) -> dict[str, Algo]:
        """The algorithms that it is made of, by name, in the order in which they are trained."""
        return {name: part for name, part in vars(self).items() if isinstance(part, Algo)}

    @classmethod
    def part_reads(cls, config: BaseConfig) -> dict[str, Reads]:
        """Declares the steps that each part reads, see `reads_of_part`.

        A composite that does not is given robomimic's one window.
        """
        return {}

    @classmethod
    def reads(cls, config: BaseConfig) -> Reads:
        """All that the parts read."""
        parts = cls.part_reads(config).values()
        return reduce(or_, parts) if parts else super().reads(config)

    @classmethod
    def _read_as_before(cls) -> None:
        """Gives a class that takes its batches by itself robomimic's one window.

        Whatever the parts of the class above it read: its own may be others.
        """
        if "part_reads" in cls.__dict__:
            cls.reads = classmethod(CompositeAlgo.reads.__func__)  # type: ignore[assignment,attr-defined]
        elif not cls.__dict__.keys().isdisjoint({"needs", "process_batch_for_training"}):
            cls.reads = classmethod(Algo.reads.__func__)  # type: ignore[assignment,attr-defined]

    @cached_property
    def _own_part_reads(self) -> dict[str, Reads]:
        return self.part_reads(config_of(self.global_config, self.algo_config))

    @cached_property
    def _own_reads(self) -> Reads:
        return reduce(or_, self._own_part_reads.values())

    @property
    def _trained_parts(self) -> Mapping[str, Algo]:
        """Those parts that training changes; by default all."""
        return self.parts

    def _make_part(
        self,
        algo_name: str,
        algo_config: Config,
        obs_config: Config,
        obs_key_shapes: Mapping[str, Any] | None = None,
        algo_class: type[Algo] | None = None,
    ) -> Algo:
        """Makes a part from its sections of the config.

        Args:
            algo_name: its algorithm, as registered.
            algo_config: the section that an algorithm on its own has as `config.algo`.
            obs_config: the section that an algorithm on its own has as `config.observation`.
            obs_key_shapes: where they are not this algorithm's own.
            algo_class: its class; None: that of its algorithm.
        """
        cls, kwargs = algo_name_to_factory_func(algo_name)(algo_config)
        if algo_class is not None:
            cls, kwargs = algo_class, {}
        return cls(
            algo_config=algo_config,
            obs_config=obs_config,
            global_config=self.global_config,
            obs_key_shapes=self.obs_key_shapes if obs_key_shapes is None else obs_key_shapes,
            ac_dim=self.ac_dim,
            device=self.device,
            **kwargs,
        )

    def _create(self) -> None:
        self._create_networks()

    @cached_property
    def nets(self) -> nn.ModuleDict:  # type: ignore[override]
        """The networks of each part, under its name."""
        return nn.ModuleDict({name: part.nets for name, part in self.parts.items()})

    @cached_property
    def optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        """The optimizers of each part, under its name."""
        return {name: part.optimizers for name, part in self.parts.items()}

    @cached_property
    def lr_schedulers(self) -> dict[str, Any]:  # type: ignore[override]
        """The learning-rate schedules of each part, under its name."""
        return {name: part.lr_schedulers for name, part in self.parts.items()}

    @cached_property
    def obs_shapes(self) -> ObsShapes:  # type: ignore[override]
        """The observations of all parts."""
        return _joined(part.obs_shapes for part in self.parts.values())

    @cached_property
    def goal_shapes(self) -> ObsShapes:  # type: ignore[override]
        """The goals of all parts."""
        return _joined(part.goal_shapes for part in self.parts.values())

    @cached_property
    def subgoal_shapes(self) -> ObsShapes:  # type: ignore[override]
        """The subgoals of all parts."""
        return _joined(part.subgoal_shapes for part in self.parts.values())

    @cached_property
    def metric_reductions(self) -> Mapping[str, Literal["mean", "sum", "max"]]:  # type: ignore[override]
        """Those of the parts."""
        return {
            f"{self._log_name(name)}/{key}": reduction
            for name, part in self.parts.items()
            for key, reduction in part.metric_reductions.items()
        }

    @property
    def bounded_actions(self) -> bool:
        """Whether a trained part has bounded actions."""
        return any(part.bounded_actions for part in self._trained_parts.values())

    @property
    def grad_sync(self) -> GradSync | None:
        """The other workers, if there are any; set for all parts."""
        return self._grad_sync

    @grad_sync.setter
    def grad_sync(self, sync: GradSync | None) -> None:
        self._grad_sync = sync
        for part in self.parts.values():
            part.grad_sync = sync

    @property
    def episode_noise(self) -> EpisodeNoise | None:
        """Random numbers of each episode of a batch; set for all parts."""
        return self._episode_noise

    @episode_noise.setter
    def episode_noise(self, noise: EpisodeNoise | None) -> None:
        self._episode_noise = noise
        for part in self.parts.values():
            part.episode_noise = noise

    def process_batch_for_training(self, batch: Batch) -> Batch:
        """Gives each part its own batch: `{part: its processed batch}`."""
        return {
            name: part.process_batch_for_training(self._batch_of(name, batch))
            for name, part in self.parts.items()
        }

    def _batch_of(self, part: str, batch: Batch) -> Batch:
        """Cuts out the steps that a part reads."""
        if not self._own_part_reads:
            return batch
        return self._cut(batch, self._own_part_reads[part], given=self._own_reads)

    def postprocess_batch_for_training(
        self, batch: Batch, obs_normalization_stats: Mapping[str, Mapping[str, Any]] | None
    ) -> Batch:
        """Lets each part prepare its observations."""
        parts = self.parts
        others = {name: own for name, own in batch.items() if name not in parts}
        return super().postprocess_batch_for_training(others, obs_normalization_stats) | {
            name: part.postprocess_batch_for_training(batch[name], obs_normalization_stats)
            for name, part in parts.items()
            if name in batch
        }

    def train_on_batch(self, batch: Batch, epoch: int, validate: bool = False) -> dict[str, Any]:
        """Trains each part on its own batch."""
        return {
            name: part.train_on_batch(batch[name], epoch, validate)
            for name, part in self._trained_parts.items()
        }

    def log_info(self, info: Mapping[str, Any]) -> dict[str, Tensor | float]:
        """Joins the metrics of the parts that have any, each after its name; adds their losses."""
        log: dict[str, Tensor | float] = {}
        loss: Tensor | float = 0.0
        for name, part_info in info.items():
            part_log = self.parts[name].log_info(part_info)
            log |= {f"{self._log_name(name)}/{key}": value for key, value in part_log.items()}
            loss = part_log["Loss"] + loss
        log["Loss"] = loss
        return log

    def _log_name(self, part: str) -> str:
        return self.log_names.get(part, part)

    def named_optimizers(self) -> Iterator[tuple[str, Optimizer]]:
        """Yields all optimizers of all parts, such as `planner/goal_network`."""
        for name, part in self.parts.items():
            yield from ((f"{name}/{key}", optimizer) for key, optimizer in part.named_optimizers())

    def on_gradient_step(self) -> None:
        """Tells each part that is trained."""
        for part in self._trained_parts.values():
            part.on_gradient_step()

    def on_epoch_end(self, epoch: int) -> None:
        """Tells each part that is trained."""
        for part in self._trained_parts.values():
            part.on_epoch_end(epoch)

    def set_train(self) -> None:
        """Puts the parts that are trained into training mode, the others into evaluation mode."""
        super().set_train()
        for name, part in self.parts.items():
            if name in self._trained_parts:
                part.set_train()
            else:
                part.set_eval()

    def set_eval(self) -> None:
        """Puts the parts into evaluation mode."""
        super().set_eval()
        for part in self.parts.values():
            part.set_eval()

    def serialize(self) -> dict[str, Any]:
        """Returns the result of each part's `serialize`, as robomimic 0.5 saves it."""
        return {name: part.serialize() for name, part in self.parts.items()}

    def deserialize(self, model_dict: Mapping[str, Any], load_optimizers: bool = False) -> None:
        """Loads the result of `serialize`.

        Args:
            model_dict: that.
            load_optimizers: load optimizers and schedules too, to go on training (robomimic's
                composites refuse).

        Raises:
            CheckpointError: if it does not fit this config.
        """
        for name, part in self.parts.items():
            if name not in model_dict:
                raise CheckpointError(
                    f"the checkpoint does not fit the config: it has no part '{name}' "
                    f"(it holds {', '.join(model_dict)})"
                )
            part.deserialize(model_dict[name], load_optimizers=load_optimizers)

    def _load_optimizers(self, model_dict: Mapping[str, Any]) -> None:
        for name, part in self.parts.items():
            part._load_optimizers(model_dict[name])

    def training_state(self) -> dict[str, Any]:
        """Returns the state that an exact resume needs besides `serialize`, of each part too."""
        parts = {name: part.training_state() for name, part in self.parts.items()}
        return {**super().training_state(), **parts}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Loads the result of `training_state`."""
        super().load_training_state({k: v for k, v in state.items() if k not in self.parts})
        for name, part in self.parts.items():
            part.load_training_state(state[name])

    @property
    def acts_in_batches(self) -> bool:
        """Whether it and all parts do."""
        return super().acts_in_batches and all(x.acts_in_batches for x in self.parts.values())

    def reset(self, mask: Tensor | None = None) -> None:
        """Lets each part forget the episode, or those of a mask `[B]`."""
        for part in self.parts.values():
            part.reset() if mask is None else part.reset(mask)  # robomimic's takes no mask

    def __repr__(self) -> str:
        parts = "\n".join(f"{name}: {part!r}" for name, part in self.parts.items())
        return f"{type(self).__name__}(\n{textwrap.indent(parts, '  ')}\n)"


def reads_of_part(algo_name: str, config: BaseConfig, algo_config: Config) -> Reads:
    """Steps that a part of another algorithm reads.

    Args:
        algo_name: as registered.
        config: the composite's.
        algo_config: the part's section of it.
    """
    part = algo_name_to_factory_func(algo_name)(algo_config)[0]
    return part.reads(config_of(config, algo_config))


def config_of(config: BaseConfig, algo_config: Config) -> BaseConfig:
    """A copy of a composite's config as a part sees it, whose section is then `algo`."""
    own = config.copy()
    assert isinstance(own, BaseConfig)
    own.unlock()
    own["algo"] = algo_config.copy()
    return own


def _joined(groups: Iterable[ObsShapes]) -> ObsShapes:
    """Returns all keys of several groups, with their modalities."""
    shapes = list(groups)
    keys = {key: shape for group in shapes for key, shape in group.items()}
    return ObsShapes(keys, {k: m for group in shapes for k, m in group.modalities.items()})


class HierarchicalAlgo(CompositeAlgo):
    """An algorithm that plans subgoals and acts towards them."""

    needs: ClassVar[frozenset[str]] = frozenset({"next_obs"})

    @cached_property
    def goal_shapes(self) -> ObsShapes:  # type: ignore[override]
        """Those of the parts that plan: the others' goals are subgoals."""
        return _joined(part.goal_shapes for part in self.parts.values() if part.subgoal_shapes)

    def get_action(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:
        """Chooses actions `[B, A]` towards the current subgoal."""
        raise NotImplementedError

    def get_subgoal_predictions(
        self, obs_dict: ObsDict, goal_dict: ObsDict | None = None
    ) -> dict[str, Tensor]:
        """Predicts one subgoal `{key: [B, *shape]}` for each state."""
        raise NotImplementedError

    @property
    def current_subgoal(self) -> dict[str, Tensor]:
        """The subgoal `{key: [B, *shape]}` that is being followed."""
        raise NotImplementedError
