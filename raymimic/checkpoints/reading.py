"""Reads checkpoints safely, of raymimic and of robomimic.

Every reader of a checkpoint passes through `load_dict_from_checkpoint`. It makes tensors, numbers,
texts, lists and dicts of the file. It refuses a file that holds anything else
(`raymimic.torch_file`), that was altered (`digests`), or that has not the structure of a checkpoint
(`content`).
"""

import contextlib
import io
import logging
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from raymimic import storage
from raymimic.checkpoints.content import CheckpointContent, check_content
from raymimic.checkpoints.digests import check_listed
from raymimic.checkpoints.sources import fetched
from raymimic.checkpoints.upgrade import upgrade_checkpoint
from raymimic.errors import CheckpointError
from raymimic.torch_file import DamagedError, TorchFileError, read_torch_file
from raymimic.tracking.model_files import is_model_uri

logger = logging.getLogger(__name__)


def load_dict_from_checkpoint(ckpt_path: str) -> dict[str, Any]:
    """Reads a checkpoint of raymimic or robomimic (0.2 to 0.5) onto the CPU.

    Nothing that the file chooses is called, imported or constructed, and each record is checked
    against the checksum that the file holds of it.

    Args:
        ckpt_path: local path, a URI that fsspec reads, or a model of MLflow (see
            `raymimic.checkpoints.sources`).

    Returns:
        the checkpoint's dictionary, in the form of robomimic 0.5.

    Raises:
        CheckpointError: it is missing, truncated, altered, no checkpoint, or holds objects.
    """
    path = str(ckpt_path)
    if is_model_uri(path):
        with fetched(path) as file:
            return load_dict_from_checkpoint(file)
    if storage.starts_as_lfs_pointer(path):
        raise CheckpointError(f"'{path}' is not a checkpoint but {storage.LFS_POINTER}")
    check_listed(path)
    try:
        with _opened(path) as file:
            ckpt = read_torch_file(file)
        check_content(ckpt)
        return upgrade_checkpoint(ckpt)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise CheckpointError(
            f"no checkpoint at '{path}'; a run's checkpoints lie in its folder models/"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"cannot read checkpoint '{path}': {storage.unread(error)}"
        ) from error
    except DamagedError as error:
        raise CheckpointError(
            f"checkpoint '{path}' is truncated or damaged: {error}; use another checkpoint of the "
            "run"
        ) from error
    except TorchFileError as error:
        raise CheckpointError(
            f"checkpoint '{path}' is refused, as it holds more than tensors, numbers and text, "
            f"which could run code when loaded: {error}; save it again without that"
        ) from error
    except CheckpointError as error:
        raise CheckpointError(f"cannot use '{path}': {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the config or the statistics in '{path}' are not as raymimic or robomimic (0.2 or "
            f"later) write them: {error!r}"
        ) from error


@contextlib.contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """A file's content, seekable; a local file's stays on the disk until it is read."""
    if storage.is_uri(path):
        yield io.BytesIO(storage.read_bytes(path))
        return
    # A pipe or a device might never end.
    mode = Path(path).stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise CheckpointError("it is no regular file")
    with Path(path).open("rb") as file:
        yield file


def read_checkpoint(path: str) -> CheckpointContent:
    """Reads a checkpoint, see `load_dict_from_checkpoint`.

    Raises:
        CheckpointError: it is missing, truncated, altered, no checkpoint, or holds objects.
    """
    return CheckpointContent.from_dict(load_dict_from_checkpoint(path))


def maybe_dict_from_checkpoint(
    ckpt_path: str | None = None, ckpt_dict: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Gives the checkpoint's dictionary, read from its path unless it is already there."""
    if ckpt_dict is not None:
        return upgrade_checkpoint(ckpt_dict)
    if ckpt_path is None:
        raise CheckpointError("neither ckpt_path nor ckpt_dict is given; pass one of them")
    return load_dict_from_checkpoint(ckpt_path)


def algo_name_from_checkpoint(
    ckpt_path: str | None = None, ckpt_dict: dict[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """Gives the name of the algorithm that a checkpoint was trained with, and its dictionary."""
    ckpt = maybe_dict_from_checkpoint(ckpt_path, ckpt_dict)
    return CheckpointContent.from_dict(ckpt).algo_name, ckpt
