"""A checkpoint's policy and the environment that it is to play in, checked before any process."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymimic import storage
from raymimic.algo import algo_class
from raymimic.algo.rollout_policy import can_act
from raymimic.checkpoints.content import CheckpointContent
from raymimic.checkpoints.policy import config_from_checkpoint
from raymimic.checkpoints.reading import load_dict_from_checkpoint
from raymimic.config import BaseConfig
from raymimic.envs.fit import PolicyInterface
from raymimic.envs.kinds import read_env_meta
from raymimic.errors import CheckpointError, EnvError
from raymimic.user_modules import module_of


@dataclass(frozen=True)
class Playable:
    """A policy and its environment.

    Attributes:
        checkpoint: absolute path or URI, which every process that plays can read.
        config: of the policy.
        env_name: of the environment.
        env_meta: of the environment.
        interface: the side that the policy shows to the environment.
        imports: modules to import first in each process.
    """

    checkpoint: str
    config: BaseConfig
    env_name: str
    env_meta: Mapping[str, Any]
    interface: PolicyInterface
    imports: tuple[str, ...]

    @classmethod
    def read(cls, checkpoint: str, env: str | None, imports: Sequence[str]) -> Playable:
        """Reads a checkpoint that storage has.

        Args:
            checkpoint: path or URI.
            env: another environment of the same kind as the checkpoint's; None: its own.
            imports: the user's own modules, which are imported already.

        Raises:
            CheckpointError: it cannot be read, or is not one of a policy.
            EnvError: it names no environment, or one that cannot be played.
        """
        ckpt = load_dict_from_checkpoint(checkpoint)
        content = CheckpointContent.from_dict(ckpt)
        config, _ = config_from_checkpoint(ckpt_path=checkpoint, ckpt_dict=ckpt, imports=imports)
        if not can_act(algo_class(config.algo_name, config)):
            raise CheckpointError(
                f"checkpoint '{checkpoint}' is one of {config.algo_name}, which plans, but does "
                "not act: choose one of a policy"
            )
        env_meta = dict(content.env_metadata or {})
        if env is not None:
            env_meta["env_name"] = env
        if not env_meta.get("env_name"):
            raise EnvError(f"checkpoint '{checkpoint}' names no environment; give one with --env")
        name, _ = read_env_meta(env_meta)
        named = filter(None, [*config.train.imports, module_of(name)])
        allowed = [*imports, *(module for module in named if module in sys.modules)]
        return cls(
            storage.absolute(checkpoint),
            config,
            name,
            env_meta,
            PolicyInterface.of(config, content.shape_metadata),
            tuple(dict.fromkeys(allowed)),
        )
