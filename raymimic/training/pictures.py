"""Pictures of the images that a training reads, for a person to look at when it begins."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from raymimic.config import BaseConfig
from raymimic.data.hdf5 import DatasetFile
from raymimic.data.images import is_picture
from raymimic.data.training_data import DataInfo
from raymimic.errors import RaymimicError, reason
from raymimic.storage import file_names

logger = logging.getLogger(__name__)

_PATIENCE_S = 20.0  # for the frames of one file
_MOST_FILES = 4


@dataclass
class DrawnImages:
    """Contact sheets of a training's data.

    Attributes:
        files: the pictures.
        warnings: what is wrong with the images, or why there is no picture.
    """

    files: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def draw_images(config: BaseConfig, data: DataInfo, folder: Path) -> DrawnImages:
    """Draws frames of all images that a training reads, raw and after its randomizers.

    Whatever goes wrong is a warning.

    Args:
        config: of the training.
        data: its data; a few frames of the demos to train on are read.
        folder: local, gets `images.png`, or one picture for each of several files or cameras.

    Returns:
        The pictures; none where the training reads no images.
    """
    drawn = DrawnImages()
    columns = data.train.columns
    keys = {
        key: modality
        for key, modality in config.all_modalities.items()
        if f"obs/{key}" in columns and is_picture(columns[f"obs/{key}"].shape, modality)
    }
    demos: dict[DatasetFile, list[str]] = {}
    for demo in data.train.demos if keys else ():
        demos.setdefault(demo.file, []).append(demo.name)
    names = file_names(str(file.path) for file in demos)
    for file in list(demos)[:_MOST_FILES]:
        of = f"_{Path(names[str(file.path)]).stem}" if len(demos) > 1 else ""
        try:
            # Importing matplotlib takes a second, which a training without images saves.
            from raymimic.recording.contact_sheet import contact_sheets

            sheets = contact_sheets(file, demos[file], keys, config, _PATIENCE_S)
            drawn.files += map(Path, sheets.write(str(folder / f"images{of}.png")))
            drawn.warnings += [f"dataset '{file.path}': {text}" for text in sheets.warnings]
        except Exception as error:  # whatever a picture needs, a training does not
            logger.debug("drawing the images of '%s'", file.path, exc_info=True)
            why = str(error) if isinstance(error, RaymimicError) else reason(error)
            drawn.warnings.append(f"the images of '{file.path}' are not drawn: {why}")
    return drawn
