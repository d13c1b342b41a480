"""The command line's entry point: runs a command, explains its errors, ends on signals in order."""

import argparse
import contextlib
import errno
import io
import logging
import os
import shlex
import signal
import sys
import termios
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from raymimic.cli.commands import parse
from raymimic.cli.shared import leave
from raymimic.credentials import FULL_URI, ServerUri, holds_login, masked
from raymimic.errors import (
    ConfigError,
    ModuleNotImportedError,
    RaymimicError,
    full_disk,
)
from raymimic.terminal import Once, write_to_nowhere
from raymimic.user_modules import join_current_folder, with_own_place

_PAUSE_S = 0.05


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and exits: 0 when it succeeded, 2 for an error that the user can fix.

    Args:
        argv: arguments, those of the process unless given.
    """
    _open_closed_streams()
    if argv is None:
        _hide_password()
    args = parse(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    with _own_stderr():
        _run(args, argv)


def run_script(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Runs a script with arguments of its own, and exits as a command does.

    Args:
        parser: of its arguments.
        run: the script.
        argv: arguments, those of the process unless given.
    """
    # A script has no `--traceback`: errors of its own code keep theirs.
    parser.set_defaults(run_command=run, traceback=None, verbose=False)
    _open_closed_streams()
    args = parser.parse_args(argv)
    with _own_stderr():
        _run(args, argv)


def _open_closed_streams() -> None:
    """Opens to nowhere those of stdin, stdout and stderr that are closed, as a daemon's may be.

    Else the next file that is opened, such as a dataset, would get the number of a stream, and all
    that is written to it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, the stream's
            os.set_inheritable(nowhere, True)
            setattr(sys, name, os.fdopen(nowhere, mode))


def _run(args: argparse.Namespace, argv: Sequence[str] | None) -> NoReturn:
    handler = logging.StreamHandler()
    handler.setFormatter(_MaskingFormatter("%(levelname)s: %(message)s"))
    handler.addFilter(Once())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("raymimic").setLevel(logging.INFO if args.verbose else logging.WARNING)
    received = _end_in_order()
    try:
        Path.cwd()
    except FileNotFoundError:  # MKL would end the process with another reason
        _explain("error: the current folder has been deleted: go to another one", args.traceback)
    if getattr(args, "imports", ()):
        join_current_folder()
    try:
        args.run_command(args)
        leave(0)
    except BaseException as error:
        if received:  # a library may have replaced the signal's exception by its own
            resumable = hasattr(args, "resume")
            hint = "; --resume goes on from the last checkpoint" if resumable else ""
            _end_now(128 + received[0], _ENDED[received[0]] + hint, args.traceback)
        if isinstance(error, BrokenPipeError):
            write_to_nowhere(sys.stdout.fileno())  # Python would flush to it at exit
            leave(1)
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            _explain(f"error: the name is too long: '{error.filename}'", args.traceback)
        explained = full_disk(error) if isinstance(error, OSError) else error
        if not isinstance(explained, RaymimicError):
            line = with_own_place(error) if isinstance(error, Exception) else None
            if line is None or args.traceback is None:
                raise
            _explain(
                f"error: {line}: fix it there; --traceback shows the call stack", args.traceback
            )
        _explain(f"error: {explained}{_remedy(explained, argv)}", args.traceback)


_ENDED = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "terminated by a hangup (nohup prevents that)",
}


@contextlib.contextmanager
def _own_stderr() -> Iterator[None]:
    """Gives Python a stderr apart from that of Ray's core (see `ray_session`)."""
    before = sys.stderr
    # Stays open, as loggers keep it.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    try:
        yield
    finally:
        sys.stderr = before


def _end_in_order() -> list[signal.Signals]:
    """Lets signals end the process through the `finally` clauses that close records.

    A signal that is ignored when the process starts stays ignored: SIGHUP under `nohup`, SIGINT in
    the background of a script. Signals after the first are ignored while records are closed, as
    terminals and job schedulers send several; the third Ctrl-C ends the process at once.

    Returns:
        a list to which each signal is added when it arrives.
    """
    received: list[signal.Signals] = []
    terminals = [fd for fd in (1, sys.stderr.fileno()) if os.isatty(fd)]

    def end(signum: int, frame: Any) -> None:
        received.append(signal.Signals(signum))
        if received.count(signal.SIGINT) > 2:
            os._exit(128 + signum)
        if len(received) == 1:
            if signum == signal.SIGHUP:
                _leave_closed(terminals)
            raise _ending(signum, lambda: ask_again(signum))

    def ask_again(signum: int) -> None:
        """Sends the signal once more, as nothing holds its exception: something caught it."""
        signal.signal(signum, end_again)
        # At once it would be raised where the exception goes, which takes no other.
        threading.Timer(_PAUSE_S, os.kill, [os.getpid(), signum]).start()

    def end_again(signum: int, frame: Any) -> None:
        signal.signal(signum, end)
        # Ray raises a SystemExit of its own in the place of ours where it is waiting.
        if not isinstance(sys.exc_info()[1], SystemExit | KeyboardInterrupt):
            raise _ending(signum, lambda: ask_again(signum))

    for signum in _ENDED:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, end)
    return received


class _Interrupted(KeyboardInterrupt):
    """Ctrl-C, as an exception that weak references can watch."""


class _Ended(SystemExit):
    """Another signal ended the command."""


def _ending(signum: int, when_dropped: Callable[[], None]) -> BaseException:
    """The exception of a signal.

    A library may catch everything while it is imported or called, and go on. The exception is gone
    then, and `when_dropped` is called.
    """
    made = _Interrupted() if signum == signal.SIGINT else _Ended(128 + signum)
    weakref.finalize(made, when_dropped).atexit = False
    return made


def _leave_closed(terminals: Sequence[int]) -> None:
    """Redirects closed terminals to nowhere: writing to them would be an error."""
    for fd in terminals:
        try:
            termios.tcgetattr(fd)
        except termios.error:
            write_to_nowhere(fd)


def _remedy(error: BaseException, argv: Sequence[str] | None) -> str:
    """The command that works, if a file names modules that are not imported."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ModuleNotImportedError):
        cause = cause.__cause__
    if cause is None:
        return ""
    words = ["raymimic", *(sys.argv[1:] if argv is None else argv)]
    return f": {shlex.join([*words, '--import', *cause.modules])}"


def _hide_password() -> None:
    """Starts this process again without a tracking server's password on its command line.

    There `ps` and the records of a Ray cluster would show it.
    """
    arguments = [_without_password(argument) for argument in sys.orig_argv]
    if arguments != sys.orig_argv:
        os.execv(sys.executable, arguments)


def _without_password(argument: str) -> str:
    key, equals, uri = argument.partition("mlflow.tracking_uri=")
    if key.strip("\"' ") or not equals or not holds_login(uri):
        return argument
    try:
        address = ServerUri.of(uri.strip("\"' "))
    except ConfigError:
        return argument  # the config's checks refuse it in a moment
    os.environ[FULL_URI] = uri.strip("\"' ")
    return f"{key}{equals}{address}"


class _MaskingFormatter(logging.Formatter):
    """Keeps credentials of URIs out of log messages."""

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


def _explain(message: str, with_traceback: bool | None) -> NoReturn:
    if with_traceback:
        print(masked(traceback.format_exc()), file=sys.stderr)
    leave(2, message)


def _end_now(status: int, message: str, with_traceback: bool | None) -> NoReturn:
    """Ends the process at once; a signal within Ray's core would make that abort it later."""
    try:
        _explain(message, with_traceback)
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(status)
