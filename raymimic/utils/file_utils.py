"""From a checkpoint to a policy: robomimic's `FileUtils` names, over safe loading.

A checkpoint is a `.pth` that `torch.load(weights_only=True)` reads: tensors, numbers, strings,
lists and dicts. One that holds any other pickled object is refused, never executed.
"""

import io
import json
import logging
import pickle
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from raymimic.config import BaseConfig, config_factory
from raymimic.config.base_config import import_modules
from raymimic.errors import CheckpointError
from raymimic.utils import storage
from raymimic.utils.upgrade import upgrade_checkpoint

if TYPE_CHECKING:
    from raymimic.algo import RolloutPolicy

logger = logging.getLogger(__name__)

# robomimic before 0.4 stored normalisation statistics as numpy arrays; these are what it takes to
# read arrays of numbers, and nothing that runs code.
_NUMPY_GLOBALS: list[Any] = [
    np.ndarray,
    np.dtype,
    np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
]


def load_dict_from_checkpoint(ckpt_path: str) -> dict[str, Any]:
    """Reads a checkpoint of raymimic or robomimic (0.2 to 0.5) onto the CPU.

    Args:
        ckpt_path: local path, or a URI that fsspec reads.

    Returns:
        the checkpoint's dictionary, in the form of robomimic 0.5.

    Raises:
        CheckpointError: it is missing, truncated, no checkpoint, or holds pickled objects.
    """
    path = str(ckpt_path)
    try:
        data = storage.read_bytes(path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise CheckpointError(
            f"no checkpoint at '{path}'; a run's checkpoints lie in its folder models/"
        ) from error
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint '{path}': {error}") from error
    try:
        with torch.serialization.safe_globals(_NUMPY_GLOBALS):
            ckpt: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(io.BytesIO(data)):
            raise CheckpointError(
                f"checkpoint '{path}' holds a pickled Python object beside tensors and numbers, "
                "which could run code when loaded, and is refused; save it again without the object"
            ) from error
        raise CheckpointError(
            f"'{path}' is not a checkpoint, or a damaged one ({len(data)} bytes); "
            "use another checkpoint of the run"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"checkpoint '{path}' is truncated or damaged ({len(data)} bytes); "
            "use another checkpoint of the run"
        ) from error
    needed = ("model", "algo_name", "config", "shape_metadata")
    lacking = [k for k in needed if not isinstance(ckpt, dict) or k not in ckpt]
    if lacking or not isinstance(ckpt, dict):
        raise CheckpointError(
            f"'{path}' is a torch file but no checkpoint of raymimic or robomimic: "
            f"it has no '{lacking[0]}'"
        )
    try:
        return upgrade_checkpoint(ckpt)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the config or the statistics in '{path}' are not as raymimic or robomimic (0.2 or "
            f"later) write them: {error!r}"
        ) from error


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
    return str(ckpt["algo_name"]), ckpt


def config_from_checkpoint(
    algo_name: str | None = None,
    ckpt_path: str | None = None,
    ckpt_dict: dict[str, Any] | None = None,
    verbose: bool = False,
) -> tuple[BaseConfig, dict[str, Any]]:
    """Restores the config that a checkpoint was trained with.

    Where robomimic's networks ignored their config, it is corrected by their weights
    (``Algo.fit_config``). User modules that the checkpoint names are imported first, as far as they
    are on the path.

    Args:
        algo_name: the algorithm, if it is already known.
        ckpt_path: path or URI of the checkpoint.
        ckpt_dict: the checkpoint, if it is already loaded.
        verbose: log the config.

    Returns:
        the locked config and the checkpoint's dictionary.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ConfigError: its config has a key that this version does not know, or it needs a module
            that is not on the path.
    """
    from raymimic.algo import algo_class

    ckpt = maybe_dict_from_checkpoint(ckpt_path, ckpt_dict)
    name = algo_name or str(ckpt["algo_name"])
    modules = ckpt.get("raymimic", {}).get("imports", ())
    if modules:
        logger.info("importing %s, which the checkpoint names", ", ".join(modules))
        import_modules(modules)
    config = config_factory(name, dic=json.loads(ckpt["config"]))
    algo_class(config.algo_name, config).fit_config(config, ckpt)
    if verbose:
        logger.info("config of the checkpoint:\n%s", config)
    config.lock()
    return config, ckpt


def policy_from_checkpoint(
    ckpt_path: str | None = None,
    ckpt_dict: dict[str, Any] | None = None,
    device: torch.device | None = None,
    verbose: bool = False,
) -> tuple["RolloutPolicy", dict[str, Any]]:
    """Restores a trained policy, ready to act.

    robomimic's function of this name takes `device` first; by keyword both are called alike.

    Args:
        ckpt_path: path or URI of a checkpoint of raymimic or robomimic.
        ckpt_dict: the checkpoint, if it is already loaded.
        device: where it runs; the CPU unless given.
        verbose: log the config and the algorithm.

    Returns:
        the policy and the checkpoint's dictionary.

    Raises:
        CheckpointError: the checkpoint cannot be read or its weights do not fit its config.
    """
    from raymimic.algo import RolloutPolicy, algo_factory

    ckpt = maybe_dict_from_checkpoint(ckpt_path, ckpt_dict)
    config, _ = config_from_checkpoint(ckpt_dict=ckpt, verbose=verbose)
    algo = algo_factory(
        config.algo_name,
        config,
        obs_key_shapes=ckpt["shape_metadata"]["all_shapes"],
        ac_dim=ckpt["shape_metadata"]["ac_dim"],
        device=device or torch.device("cpu"),
    )
    try:
        algo.deserialize(ckpt["model"])
    except CheckpointError as error:
        if ckpt_path is None:
            raise
        raise CheckpointError(f"cannot use '{ckpt_path}': {str(error)[:300]}") from error
    algo.set_eval()
    if verbose:
        logger.info("policy of the checkpoint:\n%s", algo)
    policy = RolloutPolicy(
        algo,
        obs_normalization_stats=_as_arrays(ckpt.get("obs_normalization_stats")),
        action_normalization_stats=_as_arrays(ckpt.get("action_normalization_stats")),
    )
    return policy, ckpt


def _as_arrays(stats: dict[str, Any] | None) -> dict[str, dict[str, np.ndarray]] | None:
    """Statistics as float32 arrays; they are stored as nested lists."""
    if stats is None:
        return None
    return {
        key: {name: np.asarray(value, dtype=np.float32) for name, value in entry.items()}
        for key, entry in stats.items()
    }
