"""raymimic: robomimic at cluster scale.

Importing the package is cheap; torch, Ray and MLflow load when something needs them.
"""

from raymimic.start import leave_current_folder

leave_current_folder()  # before anything else is imported

from typing import TYPE_CHECKING, Any  # noqa: E402

__version__ = "0.2.0.dev0"

__all__ = ["TrainResult", "__version__", "train"]

if TYPE_CHECKING:
    from raymimic.training.trainer import TrainResult, train


def __getattr__(name: str) -> Any:
    if name in ("train", "TrainResult"):
        from raymimic.training import trainer

        return getattr(trainer, name)
    if name in ("DATASET_REGISTRY", "MOMART_DATASET_REGISTRY", "HF_REPO_ID"):  # as in robomimic
        from raymimic.data import robomimic_datasets

        return getattr(robomimic_datasets, name)
    raise AttributeError(f"module 'raymimic' has no attribute '{name}'")
