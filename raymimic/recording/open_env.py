"""An environment that a player makes when it needs it, and again after it was closed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from raymimic.envs.env_base import EnvBase


class OpenEnv:
    """An environment that is made when it is called for, and again after it was closed.

    Args:
        make: makes it; pickled with the player.
    """

    def __init__(self, make: Callable[[], EnvBase]) -> None:
        self._make = make
        self._env: EnvBase | None = None

    def __call__(self) -> EnvBase:
        """Returns the environment.

        Raises:
            EnvError: it cannot be made.
        """
        if self._env is None:
            self._env = self._make()
        return self._env

    def close(self) -> None:
        """Closes it, if it is open."""
        env, self._env = self._env, None
        if env is not None:
            with contextlib.suppress(Exception):  # it may have failed already
                env.close()
