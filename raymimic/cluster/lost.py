"""The exceptions of a call whose actor is lost."""

from ray.exceptions import OutOfMemoryError, RayActorError

LOST_ACTOR = (RayActorError, OutOfMemoryError)
"""Its process or node has ended. Ray itself ends an actor where a node runs low on memory."""
