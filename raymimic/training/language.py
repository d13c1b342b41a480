"""The embeddings of a training's instructions, which are computed once, before it begins.

Workers, actors and policies of checkpoints get the embeddings: none of them needs the text encoder.
"""

import contextlib
from collections.abc import Mapping

import numpy as np

from raymimic.checkpoints.store import CheckpointStore
from raymimic.config import BaseConfig
from raymimic.data.language import Language, embedding_in_file, language_key
from raymimic.data.training_data import instruction_sources
from raymimic.errors import ConfigError, RaymimicError
from raymimic.models.text import embeddings_of

# Two embeddings of one instruction may differ by as much [relative], by rounding.
_ROUNDING = 1e-3


def embeddings_for(config: BaseConfig, known: Mapping[str, list[float]] | None = None) -> Language:
    """Finds the embedding of each instruction, where networks see one.

    The order is: the embedding in the dataset's file, the one in `known`, that of
    `train.text_encoder`.

    Args:
        config: sections `train`, `experiment` and `observation` are read.
        known: embeddings that were computed before.

    Raises:
        ConfigError: there is no text encoder although one is needed, or it cannot be used, or the
            embeddings differ in their sizes.
        DatasetError: a file that holds embeddings has more than one.
    """
    sources = instruction_sources(config)
    key = language_key(config) if sources else None
    if key is None:
        return {}
    in_files: dict[str, list[float]] = {}
    wanted = []
    for sentence, source in sources:
        found = embedding_in_file(source, key)
        if found is None:
            wanted.append(sentence)
        elif not _alike(found, in_files.setdefault(sentence, found)):
            raise ConfigError(
                f"the files of train.data hold two embeddings of '{sentence}' ('obs/{key}'): write "
                "both by one text encoder"
            )
    # Another instruction to evaluate with.
    asked = config.experiment.env_meta_update_dict.get("lang")
    language = {**{s: x for s, x in (known or {}).items() if s in [*wanted, asked]}, **in_files}
    missing = [s for s in dict.fromkeys([*wanted, asked]) if s and s not in language]
    if missing:
        if config.train.text_encoder is None:
            raise ConfigError(
                f"the instruction '{missing[0]}' (train.data[].lang) has no embedding: set "
                "train.text_encoder to the folder of a CLIP text model, or write the embedding "
                f"into each demo as 'obs/{key}', one row for each step"
            )
        language |= embeddings_of(missing, config.train.text_encoder)
    sizes = {len(x): sentence for sentence, x in language.items()}
    if len(sizes) > 1:
        (one, first), (other, second), *_ = sizes.items()
        raise ConfigError(
            f"the embedding of '{first}' has {one} numbers, and that of '{second}' {other}: "
            f"embed all instructions of train.data by one text encoder (files hold them as "
            f"'obs/{key}')"
        )
    return language


def embeddings_of_run(uri: str, config: BaseConfig) -> dict[str, list[float]]:
    """The embeddings in the newest checkpoint of a run; empty where it has none."""
    if not instruction_sources(config) or not language_key(config):
        return {}
    with contextlib.suppress(RaymimicError):  # they are complained of when the run is resumed
        content = CheckpointStore(uri, config.experiment.save).load_last()
        return dict(content.language) if content is not None else {}
    return {}


def _alike(one: list[float], other: list[float]) -> bool:
    return len(one) == len(other) and np.allclose(one, other, rtol=_ROUNDING, atol=1e-5)
