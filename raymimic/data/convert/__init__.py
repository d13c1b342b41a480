"""Dataset formats: a reader for each, which yields episodes, and the way into robomimic's HDF5.

A format is one file in this folder with a subclass of `FormatReader`, registered by
`register_format`, and one line below. A user's own stands in a module that `--import` names.
"""

from raymimic.data.convert.conversion import (
    ConvertedDataset,
    convert_dataset,
    export_dataset,
    reader_of,
)
from raymimic.data.convert.registry import (
    FormatReader,
    FormatWriter,
    absolute_dataset,
    recognised_format,
    register_format,
    register_writer,
    registered_formats,
    registered_writers,
)

# isort: split
# Importing a format registers it.
from raymimic.data.convert.d4rl import D4rlReader
from raymimic.data.convert.isaac_lab import IsaacLabReader
from raymimic.data.convert.lerobot import LeRobotReader
from raymimic.data.convert.lerobot_writer import LeRobotVideoWriter, LeRobotWriter
from raymimic.data.convert.libero import LiberoReader
from raymimic.data.convert.mimicgen import MimicgenReader
from raymimic.data.convert.minari import MinariReader, MinariWriter
from raymimic.data.convert.npz_folder import NpzFolderReader
from raymimic.data.convert.ogbench import OgbenchReader
from raymimic.data.convert.robomimic import RobomimicReader
from raymimic.data.convert.robosuite_raw import RobosuiteRawReader
from raymimic.data.convert.zarr_buffer import ZarrReader

__all__ = [
    "ConvertedDataset",
    "D4rlReader",
    "FormatReader",
    "FormatWriter",
    "IsaacLabReader",
    "LeRobotReader",
    "LeRobotVideoWriter",
    "LeRobotWriter",
    "LiberoReader",
    "MimicgenReader",
    "MinariReader",
    "MinariWriter",
    "NpzFolderReader",
    "OgbenchReader",
    "RobomimicReader",
    "RobosuiteRawReader",
    "ZarrReader",
    "absolute_dataset",
    "convert_dataset",
    "export_dataset",
    "reader_of",
    "recognised_format",
    "register_format",
    "register_writer",
    "registered_formats",
    "registered_writers",
]
