"""What can go wrong for a user, said in one sentence.

Every error that a user can cause or cure is a :class:`RaymimicError`: its
message names the file, the key and the remedy. The command line prints the
message alone and exits with status 2; anything else that escapes is a defect of
raymimic and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class RaymimicError(Exception):
    """Base of all errors that are explained to the user rather than traced."""


class ConfigError(RaymimicError):
    """A configuration that cannot be what the user meant."""


class DatasetError(RaymimicError):
    """A dataset that cannot be read or does not hold what the run needs."""


class CheckpointError(RaymimicError):
    """A checkpoint that is missing, damaged, unsafe or does not fit."""


class EnvError(RaymimicError):
    """An environment that cannot be made, stepped or rendered."""


class ClusterError(RaymimicError):
    """A Ray cluster that cannot place what was asked of it."""


class OutputError(RaymimicError):
    """A place for results that cannot be written."""


class TrainingError(RaymimicError):
    """A training that went wrong while it ran."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Names the nearest of the known names, for the end of an error message.

    Args:
        name: what the user wrote.
        known: what would have been accepted.

    Returns:
        ``"; did you mean 'x'?"``, or ``"; known are: a, b, c"`` when nothing is near,
        or an empty string when nothing is known.
    """
    options = sorted(set(known))
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known are: {', '.join(options)}" if options else ""
