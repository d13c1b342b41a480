"""Hierarchical behavioural cloning: a planner proposes subgoals, an actor pursues them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from raymimic.algo.algo import (
    Algo,
    ObsDict,
    PolicyAlgo,
    register_algo_factory_func,
)
from raymimic.algo.composite import HierarchicalAlgo, reads_of_part
from raymimic.algo.gl import GL, ValuePlanner
from raymimic.algo.learning import Batch
from raymimic.config.base_config import BaseConfig
from raymimic.config.config import Config
from raymimic.config.hbc_config import LATENT_SUBGOAL
from raymimic.data.reads import Reads, Window
from raymimic.models.vae_nets import VAE


@register_algo_factory_func("hbc")
def algo_config_to_class(algo_config: Config) -> tuple[type[Algo], dict[str, Any]]:
    """HBC has one class; planner and actor choose theirs."""
    return HBC, {}


@dataclass
class _Plan:
    """The subgoals of a batch of episodes.

    Attributes:
        subgoal: `{key: [B, *shape]}`.
        age: `[B]`, steps since an episode's subgoal was planned; on the CPU.
    """

    subgoal: dict[str, Tensor]
    age: Tensor


class HBC(HierarchicalAlgo):
    """Hierarchical behavioural cloning (https://arxiv.org/abs/2003.06085).

    The planner (GL) learns p(s_{t+H} | s_t), where subgoals lie H = `subgoal_horizon` steps
    ahead; the actor (BC) learns π(a_t | s_t, s_{t+H}). The actor is trained towards states that
    were reached (`mode="separate"`), or towards the planner's predictions (`"cascade"`). To
    act, a subgoal is planned every `subgoal_update_interval` steps, for each episode of a
    batch by its own clock. After `robomimic/algo/hbc.py`.

    With `latent_subgoal` a subgoal is a latent of the planner's VAE: in training the encoder's, or
    with `prior_correction` the nearest sample of the prior; when acting, a sample of the prior.

    Deviations: the modes `"planner_only"` and `"actor_only"`, which robomimic documents, work;
    so do random subgoals, prior correction and acting towards latents, with which robomimic's HBC
    stops with an error. The planner of an actor that sees stacked frames sees the current one,
    not the oldest. Subgoals are normalised like observations, for planner and actor alike.

    `observation.actor.modalities.goal` lists the keys of a subgoal that the actor sees. robomimic
    reads this list too, but writes its default to another place: so by default an actor sees
    nothing of its subgoals, here as well.

    Attributes:
        planner: proposes subgoals.
        actor: pursues them.

    Args:
        planner_algo_class: class of the planner; None: that of its algorithm.
        policy_algo_class: class of the actor; None: that of its algorithm.
        args: see `Algo`.
        kwargs: see `Algo`.
    """

    log_names: ClassVar[Mapping[str, str]] = {"planner": "Planner", "actor": "Actor"}

    planner: GL | ValuePlanner
    actor: PolicyAlgo
    _plan: _Plan | None = None

    def __init__(
        self,
        *args: Any,
        planner_algo_class: type[Algo] | None = None,
        policy_algo_class: type[Algo] | None = None,
        **kwargs: Any,
    ) -> None:
        self._classes = {"planner": planner_algo_class, "actor": policy_algo_class}
        super().__init__(*args, **kwargs)

    @classmethod
    def part_reads(cls, config: BaseConfig) -> dict[str, Reads]:
        """Reads the steps of planner and actor, and those that `random` subgoals are drawn from."""
        reads = {
            "planner": cls._planner_reads(config),
            "actor": reads_of_part("bc", config, config.algo.actor),
        }
        if config.algo.actor_use_random_subgoals:
            reads["random"] = Reads(next_obs=Window(0, config.train.seq_length))
        return reads

    @classmethod
    def _planner_reads(cls, config: BaseConfig) -> Reads:
        return reads_of_part("gl", config, config.algo.planner)

    def _create_networks(self) -> None:
        self.planner = self._create_planner()
        shapes = dict(self.obs_key_shapes)
        if self.algo_config.latent_subgoal.enabled:
            shapes[LATENT_SUBGOAL] = (self._vae.latent_size,)
        config, obs_config = self.algo_config.actor, self.obs_config.actor
        actor = self._make_part("bc", config, obs_config, shapes, self._classes["actor"])
        self.actor = cast("PolicyAlgo", actor)

    def _create_planner(self) -> GL | ValuePlanner:
        config, obs_config = self.algo_config.planner, self.obs_config.planner
        planner = self._make_part("gl", config, obs_config, algo_class=self._classes["planner"])
        return cast("GL", planner)

    @property
    def _goal_learner(self) -> GL:
        """The algorithm that predicts subgoals."""
        planner = self.planner
        return planner.planner if isinstance(planner, ValuePlanner) else planner

    @classmethod
    def why_not_exportable(cls, config: BaseConfig) -> str | None:
        """Modes that train one part, latents to act by, and planners beside stacked frames."""
        if config.algo.mode not in ("separate", "cascade"):
            return f"the mode '{config.algo.mode}' (set algo.mode to 'separate' to train the rest)"
        if config.algo.latent_subgoal.enabled:
            return "latent subgoals when it acts: its planner fails to sample them"
        if config.train.frame_stack > 1:
            return "planners of policies that see several observations (train.frame_stack)"
        return super().why_not_exportable(config)

    # ---------------------------------------------------------------------- training

    @property
    def _trained_parts(self) -> Mapping[str, Algo]:
        only = {"planner_only": "planner", "actor_only": "actor"}.get(self.algo_config.mode)
        return {name: part for name, part in self.parts.items() if only in (None, name)}

    def process_batch_for_training(self, batch: Batch) -> Batch:
        """Takes the planner's and the actor's batch, and random subgoals if they are asked for.

        Stacked observations are the actor's; the planner sees the current one.
        """
        actors = self._batch_of("actor", batch)
        actors.pop("goal_obs", None)  # its goals are subgoals
        processed = {
            "planner": self.planner.process_batch_for_training(self._batch_of("planner", batch)),
            "actor": self.actor.process_batch_for_training(actors),
        }
        if self.algo_config.actor_use_random_subgoals:
            next_obs = self._batch_of("random", batch)["next_obs"]
            size, length = next(iter(next_obs.values())).shape[:2]
            step = torch.randint(0, length, (size,), device=batch["actions"].device)
            row = torch.arange(size, device=step.device)
            subgoals = {k: self._cast(next_obs[k][row, step]) for k in self.subgoal_shapes}
            processed["random"] = {**self._planner_batch(processed), "target_subgoals": subgoals}
        return processed

    def postprocess_batch_for_training(
        self, batch: Batch, obs_normalization_stats: Mapping[str, Mapping[str, Any]] | None
    ) -> Batch:
        """Prepares the observations of both parts, and random subgoals like the planner's."""
        processed = super().postprocess_batch_for_training(batch, obs_normalization_stats)
        if "random" in batch:
            processed["random"] = self._goal_learner.postprocess_batch_for_training(
                batch["random"], obs_normalization_stats
            )
        return processed

    def train_on_batch(self, batch: Batch, epoch: int, validate: bool = False) -> dict[str, Any]:
        """Trains the planner, then the actor towards the subgoals that `mode` says.

        Returns:
            `planner` and `actor`, the `info` of the trained ones.
        """
        info = {}
        if "planner" in self._trained_parts:
            info["planner"] = self.planner.train_on_batch(batch["planner"], epoch, validate)
        if "actor" in self._trained_parts:
            actor_batch = {**batch["actor"], "goal_obs": self._actor_goal(batch)}
            info["actor"] = self.actor.train_on_batch(actor_batch, epoch, validate)
        return info

    @torch.no_grad()
    def _actor_goal(self, batch: Batch) -> dict[str, Tensor] | None:
        """Returns the actor's goals in training, None if it sees nothing of subgoals."""
        if not self.actor.goal_shapes:
            return None
        seen = self._planner_batch(batch)
        if self.algo_config.mode == "cascade":
            return self.get_subgoal_predictions(seen["obs"], seen["goal_obs"])
        chosen: dict[str, Tensor] | None = batch["actor"].get("goal_obs")
        if chosen is not None:  # by `process_batch_for_training` of a class in robomimic's form
            return chosen
        latent = self.algo_config.latent_subgoal
        return self._goal_learner.get_actor_goal_for_training_from_processed_batch(
            batch.get("random", seen),
            use_latent_subgoals=latent.enabled,
            use_prior_correction=latent.prior_correction.enabled,
            num_prior_samples=latent.prior_correction.num_samples,
        )

    def _planner_batch(self, batch: Batch) -> Batch:
        """Returns the batch of the algorithm that predicts subgoals."""
        own: Batch = batch["planner"].get("planner", batch["planner"])
        return own

    @property
    def _vae(self) -> VAE:
        vae = self._goal_learner.nets["goal_network"]
        assert isinstance(vae, VAE)
        return vae

    # ------------------------------------------------------------------------ acting

    def get_subgoal_predictions(
        self, obs_dict: ObsDict, goal_dict: ObsDict | None = None
    ) -> dict[str, Tensor]:
        """Plans a subgoal `{key: [B, *shape]}` for each state; a latent if those are subgoals."""
        if self.algo_config.latent_subgoal.enabled:
            return {LATENT_SUBGOAL: self._vae.sample_prior(obs_dict, goal_dict)}
        return self.planner.get_subgoal_predictions(obs_dict, goal_dict)

    def get_action(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:
        """Chooses actions `[B, A]` towards each episode's subgoal, which it plans when due.

        Raises:
            RuntimeError: if there are more or fewer episodes than at the step before.
        """
        self._plan = self._followed_plan(obs_dict, goal_dict)
        return self.actor.get_action(
            obs_dict, self._plan.subgoal if self.actor.goal_shapes else None
        )

    def _followed_plan(self, obs_dict: ObsDict, goal_dict: ObsDict | None) -> _Plan:
        size = len(next(iter(obs_dict.values())))
        age = torch.zeros(size, dtype=torch.int64) if self._plan is None else self._plan.age
        self._check_episodes(len(age), size)
        due = age % self.algo_config.subgoal_update_interval == 0
        if not due.any():
            assert self._plan is not None
            return _Plan(self._plan.subgoal, age + 1)
        if self.global_config.train.frame_stack > 1:
            obs_dict = {k: x[:, -1] for k, x in obs_dict.items()}
        with self._noise_only(due):
            subgoal = self.get_subgoal_predictions(obs_dict, goal_dict)
        if self._plan is not None:
            new, old = due.to(self.device), self._plan.subgoal
            subgoal = {
                k: torch.where(new.view(-1, *(1,) * (x.dim() - 1)), x, old[k])
                for k, x in subgoal.items()
            }
        return _Plan(subgoal, age + 1)

    @property
    def current_subgoal(self) -> dict[str, Tensor]:
        """The subgoal `{key: [B, *shape]}` that each episode pursues.

        Raises:
            RuntimeError: before the first action.
        """
        if self._plan is None:
            raise RuntimeError("there is no subgoal before the first action of an episode")
        return {k: x.clone() for k, x in self._plan.subgoal.items()}

    def reset(self, mask: Tensor | None = None) -> None:
        """Forgets the episode; those of a mask `[B]` plan again at their next action."""
        super().reset(mask)
        if mask is None:
            self._plan = None
        elif self._plan is not None:
            self._plan.age.masked_fill_(mask.cpu(), 0)
