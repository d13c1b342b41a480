"""Dataset formats: a reader for each, which yields episodes, and the way into robomimic's HDF5.

A format is one file in this folder with a subclass of `FormatReader`, registered by
`register_format`, and one line below. A user's own stands in a module that `--import` names.
"""

from raymimic.data.convert.registry import (
    ConvertedDataset,
    FormatReader,
    convert_dataset,
    register_format,
    registered_formats,
)

# isort: split
# Importing a format registers it.
from raymimic.data.convert.robomimic import RobomimicReader

__all__ = [
    "ConvertedDataset",
    "FormatReader",
    "RobomimicReader",
    "convert_dataset",
    "register_format",
    "registered_formats",
]
