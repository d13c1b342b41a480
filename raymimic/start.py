"""The first step of `python -m raymimic`, before it imports anything else."""

import os
import sys


def leave_current_folder() -> None:
    """Takes the current folder, which `python -m` puts first, off the import path.

    Else a file there, such as `json.py`, would be imported instead of the installed module. For the
    same reason this module imports only modules that Python has loaded already. A checkout that is
    not installed stays on the path, as the last folder. Other commands keep their import path.
    """
    # While Python looks for the module to run, `sys.argv[0]` is `-m` instead of its file.
    if sys.argv[:1] != ["-m"] or sys.flags.safe_path:
        return
    module = sys.orig_argv[len(sys.orig_argv) - len(sys.argv)].removeprefix("-m")
    if module.partition(".")[0] != __package__:
        return
    folder = sys.path.pop(0)
    if folder == os.path.dirname(os.path.dirname(__file__)) and folder not in sys.path:  # noqa: PTH120
        sys.path.append(folder)
