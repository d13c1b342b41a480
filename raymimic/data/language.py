"""The instructions of datasets (`train.data[].lang`), and the observation of their embedding.

An embedding is of the whole dataset, as in robomimic: each of its rows has the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raymimic.config.base_config import BaseConfig
from raymimic.data.columns import ColumnRequest, DemoSource
from raymimic.data.hdf5 import open_dataset
from raymimic.data.layout import scan
from raymimic.errors import ConfigError, DatasetError, printable
from raymimic.observations.shapes import language_keys

Language = Mapping[str, Sequence[float]]
"""The embedding of each instruction, all of one size."""


def language_key(config: BaseConfig) -> str | None:
    """The observation that holds the embedding of `train.data[].lang`; None: there is none.

    Raises:
        ConfigError: there are several.
    """
    keys = language_keys(config.all_modalities)
    if len(keys) > 1:
        raise ConfigError(
            "'train.data[].lang' is one instruction, but observation.modalities lists "
            f"{len(keys)} embeddings ({', '.join(keys)}): list one, or leave 'lang' out"
        )
    return keys[0] if keys else None


def given_by(config: BaseConfig, entry: Mapping[str, Any], language: Language) -> Language:
    """The observations of a dataset that follow from its instruction, see `DemoSource`.

    Args:
        config: section `observation` is read.
        entry: of `train.data`.
        language: embeddings by instruction.
    """
    sentence = entry.get("lang")
    key = language_key(config) if sentence else None
    embedding = language.get(sentence) if sentence else None
    return {} if key is None or embedding is None else {key: embedding}


def embedding_in_file(source: DemoSource, key: str) -> list[float] | None:
    """The embedding of a dataset's instruction, where its file holds it.

    Args:
        source: the demos.
        key: of the observation.

    Returns:
        None where the first demo has no such observation.

    Raises:
        DatasetError: the demos have several embeddings, or cannot be read.
    """
    layout = scan([source], ColumnRequest(obs_keys=(), dataset_keys=(), load_next_obs=False))
    first: np.ndarray | None = None
    with open_dataset(layout.demos[0].file) as reader:
        for ref in layout.demos:
            demo = reader.demo(ref.name)
            if demo is None or (first is None and not demo.has(f"obs/{key}")):
                return None
            item = demo.numbers(f"obs/{key}")
            values = np.empty(item.shape, np.float32)
            demo.read(f"obs/{key}", values)
            first = values[0] if first is None else first
            if values.shape[1:] != first.shape or not np.array_equal(
                values, np.broadcast_to(first, values.shape)
            ):
                raise DatasetError(
                    printable(
                        f"{demo}: 'obs/{key}' holds another embedding than the demos before, so "
                        "that the file has more than one instruction: leave its 'lang' in "
                        "train.data out"
                    )
                )
    return None if first is None else first.ravel().tolist()
