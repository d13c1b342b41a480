"""Several environments of one process, for one batched forward pass."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Self

from raymimic.envs.env_base import EnvBase
from raymimic.envs.kinds import env_from_metadata

logger = logging.getLogger(__name__)


class VectorEnv:
    """`num_envs` copies of one environment, each made when it is needed, closed together.

    They are stepped one after the other: handing MuJoCo's short steps to threads or processes would
    take longer, and Ray actors multiply the processes.

    Args:
        env_meta: see `env_from_metadata`.
        num_envs: at least 1.
        render: whether `render` of the environments will be called.
        reads: the modality of each observation that is read; None: any may be.
    """

    def __init__(
        self,
        env_meta: Mapping[str, Any],
        num_envs: int,
        render: bool = False,
        reads: Mapping[str, str] | None = None,
    ) -> None:
        self._env_meta, self._render, self._reads = env_meta, render, reads
        self._envs: list[EnvBase | None] = [None] * num_envs

    def __len__(self) -> int:
        return len(self._envs)

    def __getitem__(self, index: int) -> EnvBase:
        """Returns one of them.

        Raises:
            EnvError: it cannot be made.
        """
        env = self._envs[index]
        if env is None:
            env = self._envs[index] = env_from_metadata(
                self._env_meta, render=self._render, reads=self._reads
            )
        return env

    def discard(self, index: int) -> None:
        """Closes one of them, such as one that failed; it is made again on its next use."""
        env, self._envs[index] = self._envs[index], None
        if env is not None:
            try:
                env.close()
            except Exception as error:  # a simulator may raise anything
                logger.debug("closing '%s' failed: %s", env.name, error)

    def close(self) -> None:
        """Closes all environments."""
        for index in range(len(self)):
            self.discard(index)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
