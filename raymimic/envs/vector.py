"""Several environments of one process, for one batched forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from raymimic.envs.env_base import EnvBase, env_from_metadata


class VectorEnv:
    """``num_envs`` copies of one environment, closed together.

    They are stepped one after the other: MuJoCo's steps are far shorter than what handing them to
    threads or processes costs, and Ray actors multiply the processes.

    Args:
        env_meta: see :func:`~raymimic.envs.env_base.env_from_metadata`.
        num_envs: at least 1.
        render: whether frames will be asked for.
    """

    def __init__(self, env_meta: Mapping[str, Any], num_envs: int, render: bool = False) -> None:
        self.envs = [env_from_metadata(env_meta, render=render) for _ in range(num_envs)]

    def __len__(self) -> int:
        return len(self.envs)

    def __getitem__(self, index: int) -> EnvBase:
        return self.envs[index]

    def close(self) -> None:
        """Closes all environments."""
        for env in self.envs:
            env.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
