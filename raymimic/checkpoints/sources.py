"""Checkpoints by path, by URI, or as models of MLflow."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from raymimic import storage
from raymimic.errors import RaymimicError
from raymimic.tracking.model_files import fetch_checkpoint, is_model_uri


def absolute_source(source: str) -> str:
    """A checkpoint's path, made absolute; URIs stay."""
    return source if is_model_uri(source) else storage.absolute(source)


@contextlib.contextmanager
def fetched(source: str, tracking_uri: str | None = None) -> Iterator[str]:
    """A checkpoint where storage has it: itself, or a copy of MLflow's that is deleted afterwards.

    An error within names the source, not the copy.

    Args:
        source: path, URI, or `runs:/` or `models:/` URI of MLflow.
        tracking_uri: see `fetch_checkpoint`.

    Raises:
        CheckpointError: MLflow has no such checkpoint, or does not answer.
    """
    if not is_model_uri(source):
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        file = str(fetch_checkpoint(source, Path(folder), tracking_uri))
        try:
            yield file
        except RaymimicError as error:
            if file not in str(error):
                raise
            raise type(error)(str(error).replace(file, source)) from error
