"""robomimic's `obs_utils`: modalities, shapes and normalisation of observations."""

from raymimic.observations.modality import process_obs, process_obs_dict
from raymimic.observations.normalization import normalize_dict, stats_to_tensors, unnormalize_dict
from raymimic.observations.shapes import ObsShapes, modalities_of

__all__ = [
    "ObsShapes",
    "modalities_of",
    "normalize_dict",
    "process_obs",
    "process_obs_dict",
    "stats_to_tensors",
    "unnormalize_dict",
]
