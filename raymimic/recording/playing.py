"""Plays many episodes, in Ray actors or in a process beside this one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from raymimic.config import config_factory
from raymimic.recording.beside import ProcessPlayers
from raymimic.recording.players import Player, Players


@contextmanager
def playing(
    player: Player, num_actors: int | None, imports: Sequence[str] = ()
) -> Iterator[Players]:
    """Scope in which processes play.

    Args:
        player: each process has a copy.
        num_actors: Ray actors; 0: one process beside this one, without Ray; None: one actor for
            each CPU of the cluster.
        imports: modules that each process imports first.

    Raises:
        ClusterError: the cluster does not answer.
    """
    if num_actors == 0:
        with closing(ProcessPlayers(player, tuple(imports))) as beside:
            yield beside
        return
    from raymimic.cluster.session import ray_session
    from raymimic.recording.actors import ActorPlayers

    with (
        ray_session(config_factory("bc")) as cluster,
        closing(ActorPlayers(player, num_actors, tuple(imports), cluster)) as actors,
    ):
        yield actors
