"""Tries environments before a training: here, or in a process that may crash or hang."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from raymimic.config import import_modules
from raymimic.envs.fit import PolicyInterface, TriedEnv, check_fit
from raymimic.envs.kinds import UnknownEnvError
from raymimic.errors import EnvError
from raymimic.rollout.child import ChildProcess

LEAST_S = 120.0
"""Simulators may take long to start, however soon a cluster places a process."""

_POLL_S = 0.02


@dataclass(frozen=True)
class Tryout:
    """A trial of environments.

    Attributes:
        envs: metadata of environments, by the name that results are logged under.
        policy: the side that the policy shows to each.
        remedy: ends the sentence about an environment that does not fit.
        placement_timeout_s: longest wait for a place on the cluster, and for the answer of the
            trial (there at least `LEAST_S`) [s].
    """

    envs: Mapping[str, Mapping[str, Any]]
    policy: PolicyInterface
    remedy: str
    placement_timeout_s: float

    @property
    def timeout_s(self) -> float:
        """How long the trial may take once it has begun [s]."""
        return max(LEAST_S, self.placement_timeout_s)

    def run(self) -> dict[str, TriedEnv]:
        """Tries the environments in this process.

        Returns:
            the actions that each takes.

        Raises:
            EnvError: one cannot be made, or does not fit.
        """
        bounds = {}
        for name, env_meta in self.envs.items():
            try:
                bounds[name] = check_fit(env_meta, self.policy)
            except UnknownEnvError as error:
                raise UnknownEnvError(f"{error}; {self.remedy}") from error
            except EnvError as error:
                raise EnvError(f"{error}; {self.remedy}") from error
        return bounds

    def ended(self, how: str) -> EnvError:
        """The error for environments that gave no answer.

        Args:
            how: completes the sentence after their names.
        """
        names = ", ".join(f"'{meta.get('env_name')}'" for meta in self.envs.values())
        return EnvError(f"environment {names} {how} while it was tried; {self.remedy}")

    def hung(self) -> EnvError:
        """The error for environments that gave no answer in time."""
        return self.ended(
            f"did not answer within {self.timeout_s:g} s (ray.placement_timeout_s gives it more)"
        )


class TryoutProcess:
    """Tries environments in another process, beside this one.

    Args:
        tryout: the environments to try.
        imports: modules to import first.
        child: the other process, which somebody else ends; a new one unless given.

    Attributes:
        only_here: whether this process alone knows one of the environments.
    """

    def __init__(
        self, tryout: Tryout, imports: tuple[str, ...], child: ChildProcess | None = None
    ) -> None:
        self.only_here = False
        self._tryout = tryout
        self._bounds: dict[str, TriedEnv] | None = None
        self._deadline = time.monotonic() + tryout.timeout_s
        self._child = child or ChildProcess()
        self._child.call(_tried, tryout, imports)

    def poll(self) -> dict[str, TriedEnv] | None:
        """Returns the actions that each environment takes; None while they are being tried.

        Raises:
            RaymimicError: one cannot be made, does not fit, or ended or held up the process.
        """
        if self._bounds is not None:
            return self._bounds
        try:
            if not self._child.finished():
                if time.monotonic() < self._deadline:
                    return None
                raise self._tryout.hung()
        except UnknownEnvError:
            self._bounds = self._tryout.run()  # this process may have registered it
            self.only_here = True
            return self._bounds
        if self._child.crashed:
            raise self._tryout.ended(f"ended its process ({self._child.story()})")
        (self._bounds,) = self._child.records
        return self._bounds

    def wait(self) -> dict[str, TriedEnv]:
        """Waits for the answer of `poll`."""
        while (bounds := self.poll()) is None:
            time.sleep(_POLL_S)
        return bounds

    def close(self) -> None:
        """Ends the process, if it still runs."""
        self._child.close()


def _tried(tryout: Tryout, imports: tuple[str, ...]) -> Iterator[dict[str, TriedEnv]]:
    import_modules(imports)
    yield tryout.run()
