"""The name of robomimic's iGibson environments, which raymimic does not play."""

from typing import Any

from raymimic.errors import EnvError


class EnvGibsonMOMART:
    """No environment: scripts that import the name go on, and none can be made.

    Raises:
        EnvError: always.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise EnvError(
            "raymimic does not play iGibson (type 3), which runs on Python 3.8 at most: train on "
            "its data with experiment.rollout.enabled=false, or register a class of your own "
            "(raymimic.envs.kinds.register_env_kind)"
        )
