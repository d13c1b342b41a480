"""The errors that a user can cause or fix, each explained in one sentence.

Every such error is a `RaymimicError`: its message names the file, the key and the remedy. The
command line prints the message alone and exits with status 2, also for an exception of the user's
own code. Any other exception is a defect of raymimic and keeps its traceback.
"""

import difflib
import errno
import shlex
from collections.abc import Iterable
from pathlib import Path

_MAX_LENGTH = 4000
_MAX_REASON_LENGTH = 300
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk."""


class RaymimicError(Exception):
    """Base of all errors whose message is enough for the user, without a traceback."""


class ConfigError(RaymimicError, RuntimeError):
    """A configuration that is invalid or contradicts itself.

    A `RuntimeError` too: robomimic raises that for an unknown key, and scripts catch it.
    """


class ModuleNotImportedError(ConfigError):
    """A file names a module that raymimic imports only if the user names it too.

    Attributes:
        modules: the names.
    """

    def __init__(self, message: str, modules: Iterable[str] = ()) -> None:
        super().__init__(printable(message))
        self.modules = list(modules)


class DatasetError(RaymimicError):
    """A dataset that cannot be read or lacks data that the run needs.

    Args:
        message: one sentence. It may hold names that the file chose, see `printable`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class CheckpointError(RaymimicError):
    """A checkpoint that is missing, damaged, unsafe or does not fit.

    Args:
        message: one sentence. It may hold names that the file chose, see `printable`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class EnvError(RaymimicError):
    """An environment that cannot be made, stepped or rendered."""


class ClusterError(RaymimicError):
    """A Ray cluster that cannot be joined, cannot place a run, or was lost."""


class OutputError(RaymimicError):
    """A file or folder for results that cannot be written."""


class TrainingError(RaymimicError):
    """A training that went wrong while it ran."""


class LeaseLostError(TrainingError):
    """A run or sweep that another process has taken over."""


def printable(text: str) -> str:
    r"""Makes a text safe for one line of any terminal or file.

    Line ends, control characters and bytes that are not UTF-8 become escapes such as `\n`; the
    middle of a very long text is left out.
    """
    if len(text) > _MAX_LENGTH:
        text = f"{text[: _MAX_LENGTH // 2]} … {text[-_MAX_LENGTH // 2 :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def reason(error: BaseException) -> str:
    """An error in one line: an `EnvError` as it is, others after the name of their type."""
    lines = str(error).strip().splitlines()
    text = printable(lines[0] if lines else "")[:_MAX_REASON_LENGTH]
    if isinstance(error, EnvError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def full_disk(error: OSError) -> OutputError | None:
    """Explains an error of the operating system that means a full disk.

    Args:
        error: of any file.

    Returns:
        the explanation; `None` for any other error.
    """
    if error.errno not in FULL_DISK:
        return None
    return OutputError(f"the disk is full: {error.filename or error}; free some space")


def pip_install(extra: str) -> str:
    """The command that installs an extra of raymimic, for the end of an error message.

    In a checkout it installs from the folder, with its constraints, as raymimic may be on no index.

    Args:
        extra: such as `metaworld`.
    """
    checkout = Path(__file__).parents[1]
    constraints = checkout / "constraints.txt"
    if not (checkout / "pyproject.toml").is_file() or not constraints.is_file():
        return f"pip install 'raymimic[{extra}]'"
    place = shlex.quote(f"{checkout}[{extra}]")
    return f"pip install -c {shlex.quote(str(constraints))} -e {place}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Names the nearest of the known names, for the end of an error message.

    Args:
        name: the user's word.
        known: the names that exist.

    Returns:
        `"; did you mean 'x'?"`, or `"; known are: a, b, c"` when nothing is near,
        or an empty string when nothing is known.
    """
    options = sorted(set(known))
    if near := nearest(name, options):
        return f"; did you mean '{near}'?"
    return f"; known are: {', '.join(options)}" if options else ""


def perhaps(name: str, known: Iterable[str]) -> str:
    """As `did_you_mean`, for a message that lists the known names itself.

    Returns:
        `" (did you mean 'x'?)"`, or an empty string when nothing is near.
    """
    near = nearest(name, known)
    return "" if near is None else f" (did you mean '{near}'?)"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like another one; None when nothing is near."""
    near = difflib.get_close_matches(name, sorted(set(known)), n=1, cutoff=0.5)
    return near[0] if near else None
