"""Ray actors that play episodes for a dataset."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from raymimic.cluster.lost import LOST_ACTOR
from raymimic.cluster.placement import share_of_cpus
from raymimic.cluster.watch import ClusterWatch, RoomWatch
from raymimic.config import import_modules
from raymimic.errors import EnvError, RaymimicError
from raymimic.recording.players import RETRIES, Crash, Player, attempt
from raymimic.user_modules import ImportPath

logger = logging.getLogger(__name__)

_AHEAD = 4  # episodes for each actor that wait for an earlier one
_WAIT_S = 1.0
_TIMES = f"its process died {RETRIES + 1} times in a row"


class _RecordingActor:
    """A process that plays one episode after the other."""

    def __init__(self, player: Player, imports: Sequence[str], import_path: ImportPath) -> None:
        import_path.join()
        self._player, self._imports = player, imports

    def prepare(self) -> Any:
        import_modules(self._imports)
        return self._player.prepare()

    def play(self, job: Any) -> Any:
        import_modules(self._imports)
        return attempt(self._player, job)


class ActorPlayers:
    """Actors that share the episodes; see `raymimic.recording.players.Players`.

    Ray starts an actor again whose process or node is lost, and its episode is played again. If
    that ends its process too, the episode has crashed.

    Args:
        player: each actor has a copy.
        num_actors: at least 1; None is one for each CPU of the cluster.
        imports: modules that each actor imports first.
        cluster: notices the end of the cluster.
    """

    def __init__(
        self, player: Player, num_actors: int | None, imports: Sequence[str], cluster: ClusterWatch
    ) -> None:
        cpus = ray.cluster_resources().get("CPU", 1.0)  # type: ignore[no-untyped-call]
        number = num_actors or max(1, int(cpus))
        bundle = {"CPU": share_of_cpus(cpus, number)}
        self._cluster = cluster
        self._room = RoomWatch(bundle, "a recording actor", cluster.patience_s, logger.warning)
        actor_class: Any = ray.remote(_RecordingActor)
        actor_class = actor_class.options(
            num_cpus=bundle["CPU"], max_restarts=-1, max_task_retries=RETRIES
        )
        arguments = (player, tuple(imports), ImportPath.of_this_process())
        self._actors = [actor_class.remote(*arguments) for _ in range(number)]

    def prepare(self) -> Any:
        """Returns the answer of `Player.prepare` in the first actor.

        Raises:
            RaymimicError: it raised one, or ended its process.
            ClusterLostError: the cluster has ended, or has had no room for too long.
        """
        ref = self._actors[0].prepare.remote()
        self._wait([ref], until_one=True)
        outcome = self._outcome(ref)
        if isinstance(outcome, Crash):
            raise EnvError(f"the environment cannot be made: {outcome.reason}")
        return outcome

    def play(self, jobs: Sequence[Any]) -> Generator[Any, None, None]:
        """Yields the outcome of each job, or its `Crash`, in the order of the jobs."""
        idle, running, finished = list(self._actors), dict[Any, tuple[int, Any]](), dict[int, Any]()
        begun = given = 0
        while given < len(jobs):
            while idle and begun < min(len(jobs), given + _AHEAD * len(self._actors)):
                actor = idle.pop(0)
                running[actor.play.remote(jobs[begun])] = (begun, actor)
                begun += 1
            if given in finished:
                outcome = finished.pop(given)
                given += 1
                yield outcome
                continue
            for ref in self._wait(list(running)):
                index, actor = running.pop(ref)
                finished[index] = self._outcome(ref)
                idle.append(actor)

    def close(self) -> None:
        """Ends the actors."""
        for actor in self._actors:
            with contextlib.suppress(RayError):  # the cluster may have ended
                ray.kill(actor)
        self._actors.clear()

    def _wait(self, refs: list[Any], until_one: bool = False) -> list[Any]:
        """The tasks that are done, after a while or once one is."""
        while True:
            done, _ = ray.wait(refs, timeout=_WAIT_S)
            self._cluster.check()
            if not done:
                self._room.check()
            if done or not until_one:
                return list(done)

    def _outcome(self, ref: Any) -> Any:
        try:
            return ray.get(ref)
        except LOST_ACTOR:
            self._cluster.check(now=True)  # its end would explain the error
            return Crash(_TIMES)
        except RayTaskError as error:
            if isinstance(error.cause, RaymimicError):
                raise error.cause from error
            raise
