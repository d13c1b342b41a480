"""Records the episodes of a checkpoint's policy.

The file is like an expert's (`demos.py`), but with all episodes, solved or not. The
filter key `success` names those that solve the task; the attribute `policy` names the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from raymimic.checkpoints.digests import sha256_of
from raymimic.envs.env_base import Array, EnvBase, Observation
from raymimic.envs.fit import check_fit
from raymimic.envs.kinds import env_from_metadata, render_settings
from raymimic.envs.render_settings import settings_of
from raymimic.errors import ConfigError
from raymimic.recording.demos import ExpertPlayer, PlayedEpisode, Recipe
from raymimic.recording.experts.expert import Expert
from raymimic.recording.playback import Playback, try_film
from raymimic.rollout.episodes import OneRow
from raymimic.rollout.playable import Playable


@dataclass(frozen=True)
class PolicyRecipe(Recipe):
    """The way in which episodes of a policy are recorded.

    Attributes:
        policy: the policy and its environment.
        source: the checkpoint as the user names it.
        stores_obs: whether observations are stored; states always are.
        film: of the recorded states, which is tried before the first episode.
    """

    policy: Playable = field(kw_only=True)
    source: str = field(kw_only=True)
    stores_obs: bool = field(kw_only=True, default=True)
    film: Playback | None = field(kw_only=True, default=None)

    stage: ClassVar[int] = 16  # those of experts and of shipped policies are below

    @classmethod
    def of(cls, policy: Playable, source: str, **settings: Any) -> PolicyRecipe:
        """The recipe of a policy.

        Args:
            policy: the policy and its environment.
            source: the checkpoint as the user names it.
            settings: further attributes. If the policy reads images, `render` adds cameras to
                those of its environment, of the same size and quality.

        Raises:
            ConfigError: the policy reads images, and `render` has another size or quality.
        """
        render = settings.pop("render", None)
        images = policy.interface.images
        if render is not None and images:
            if set(render) - {"cameras"}:
                raise ConfigError(
                    f"the policy of '{source}' reads images of a given size and quality, and all "
                    "cameras are drawn alike: leave out all options for images but --cameras"
                )
            own = settings_of(policy.env_meta).serialize()
            render = {**own, "cameras": list(dict.fromkeys(own["cameras"] + render["cameras"]))}
        return cls(policy.env_name, render, policy=policy, source=source, **settings)

    def expert(self) -> PolicyExpert:
        """Makes the policy's player, which reads the checkpoint before its first episode."""
        return PolicyExpert(self.policy, self.horizon)

    def player(self) -> ExpertPlayer:
        """Makes the player of its episodes."""
        return PolicyPlayer(self)

    def open(self, expert: Expert) -> EnvBase:
        """Makes the environment, which draws its own cameras, or those that the policy reads."""
        reads = None if self._own_cameras else self.policy.interface.reads
        return env_from_metadata(self.env_meta, reads=reads)

    @property
    def env_meta(self) -> dict[str, Any]:
        """The environment, with its cameras."""
        meta = dict(self.policy.env_meta)
        return meta if self.render is None else {**meta, "render": dict(self.render)}

    @property
    def stores_next_obs(self) -> bool:
        """Whether `next_obs` is stored; by default, where there are no images."""
        images = self._own_cameras or self.policy.interface.images
        return not images if self.next_obs is None else self.next_obs

    @property
    def _own_cameras(self) -> bool:
        settings = render_settings(self.env_meta)
        return settings is not None and bool(settings.cameras)

    def attrs(self) -> dict[str, Any]:
        """The attributes of the file that name the policy."""
        return {"policy": self.source}

    def plan(self) -> dict[str, Any]:
        """See `Recipe`; of the policy, the digest of its checkpoint."""
        return {
            **super().plan(),
            "policy": sha256_of(self.policy.checkpoint),
            "env_args": self.env_meta,
            "stores_obs": self.stores_obs,
        }

    def filter_keys(self, solved: bool | None) -> tuple[str, ...]:
        """`success`, of an episode that solves the task."""
        return ("success",) if solved else ()


class PolicyExpert(Expert):
    """A checkpoint's policy, which acts as in an evaluation."""

    def __init__(self, policy: Playable, horizon: int | None) -> None:
        super().__init__(policy.env_name, 0.0)
        rollout = policy.config.experiment.rollout
        self.horizon = horizon or rollout.horizon
        self.hold = 0 if rollout.terminate_on_success else self.horizon
        self.low_dim = self.proprioception = tuple(
            key for key, modality in policy.interface.reads.items() if modality == "low_dim"
        )
        self._policy = policy
        self._row: OneRow | None = None

    @property
    def env_meta(self) -> dict[str, Any]:
        """The environment of the policy."""
        return dict(self._policy.env_meta)

    def env_args(self, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """The environment that the file names, with all that the policy's own tells of it."""
        return {**self._policy.env_meta, **recorded}

    def start(self, env: EnvBase, seed: int, rng: np.random.Generator) -> Observation:
        """Begins an episode, after reading the checkpoint unless it is read."""
        if self._row is None:
            import torch

            from raymimic.checkpoints.policy import policy_from_checkpoint

            policy, _ = policy_from_checkpoint(
                ckpt_path=self._policy.checkpoint,
                device=torch.device("cpu"),
                imports=self._policy.imports,
            )
            lang = self._policy.env_meta.get("lang")
            self._row = OneRow(policy, self._policy.config.use_goals, lang)
        self._row.start(seed)
        return super().start(env, seed, rng)

    def act(self, env: EnvBase, obs: Observation, rng: np.random.Generator) -> Array:
        """The policy's action."""
        assert self._row is not None
        return self._row.act(env, obs)

    def clip(self, env: EnvBase, action: Array) -> Array:
        """The action within the environment's bounds."""
        return env.clip(action)


class PolicyPlayer(ExpertPlayer):
    """Plays a policy; a `raymimic.recording.players.Player` whose jobs are seeds."""

    def __init__(self, recipe: PolicyRecipe) -> None:
        super().__init__(recipe)
        self._of_policy = recipe

    def prepare(self) -> dict[str, Any]:
        """Tries the environment with the policy and the film, and begins an episode."""
        check_fit(self._of_policy.env_meta, self._of_policy.policy.interface)
        env_args = super().prepare()
        if self._of_policy.film is not None:
            try_film(self._of_policy.film, env_args)
        return env_args

    def play(self, job: int) -> PlayedEpisode:
        """Plays the episode of a seed."""
        demo = super().play(job)
        if self._of_policy.stores_obs:
            return demo
        return replace(demo, episode=replace(demo.episode, obs={}, next_obs={}))
