"""robomimic's `file_utils`: datasets, checkpoints, downloads."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raymimic import storage
from raymimic.checkpoints.policy import (
    algo_from_checkpoint,
    config_from_checkpoint,
    policy_from_checkpoint,
)
from raymimic.checkpoints.reading import (
    algo_name_from_checkpoint,
    load_dict_from_checkpoint,
    maybe_dict_from_checkpoint,
)
from raymimic.data.columns import DemoSource
from raymimic.data.curation.masks import write_masks
from raymimic.data.download import download, url_is_alive
from raymimic.data.hdf5 import open_dataset
from raymimic.data.layout import selected_demos, shape_metadata
from raymimic.data.metadata import read_env_meta
from raymimic.data.robomimic_datasets import hugging_face_url
from raymimic.errors import CheckpointError, DatasetError, OutputError
from raymimic.observations.shapes import LANG_EMB_KEY
from raymimic.utils import env_utils, lang_utils, obs_utils

__all__ = [
    "algo_from_checkpoint",
    "algo_name_from_checkpoint",
    "config_from_checkpoint",
    "create_hdf5_filter_key",
    "download_file_from_hf",
    "download_url",
    "env_from_checkpoint",
    "get_demos_for_filter_key",
    "get_env_metadata_from_dataset",
    "get_shape_metadata_from_dataset",
    "load_dict_from_checkpoint",
    "maybe_dict_from_checkpoint",
    "policy_from_checkpoint",
    "url_is_alive",
]


# ---------------------------------------------------------------------------------- datasets


def create_hdf5_filter_key(
    hdf5_path: str | Path, demo_keys: Sequence[str], key_name: str
) -> list[int]:
    """Writes a filter key into a dataset; one that exists is replaced.

    Args:
        hdf5_path: local path of the dataset.
        demo_keys: names of the demos; each must be in the file.
        key_name: name of the filter key.

    Returns:
        The number of steps of each demo, in order of the demos' names.
    """
    return write_masks(hdf5_path, {key_name: list(demo_keys)}).lengths[key_name]


def get_demos_for_filter_key(hdf5_path: str | Path, filter_key: str) -> list[str]:
    """Returns the names of the demos of a filter key, in order of demo number.

    Raises:
        DatasetError: the file has no such filter key.
    """
    with open_dataset(hdf5_path) as reader:
        return selected_demos(reader, DemoSource(str(hdf5_path), filter_key))


def get_env_metadata_from_dataset(
    dataset_path: str | Path, set_env_specific_obs_processors: bool = True
) -> dict[str, Any]:
    """Reads in which environment a dataset was recorded.

    Args:
        dataset_path: local path or URI.
        set_env_specific_obs_processors: see `env_utils.set_env_specific_obs_processing`.

    Returns:
        `env_name`, `type`, `env_kwargs`, and others that the file says.

    Raises:
        DatasetError: the file does not say it.
    """
    env_meta = read_env_meta(dataset_path)
    if not env_meta:
        raise DatasetError(
            f"dataset '{dataset_path}' does not say in which environment it was recorded: write "
            "its env_name, type and env_kwargs as JSON into the attribute 'env_args' of 'data'"
        )
    env_meta["env_kwargs"].pop("env_lang", None)
    if set_env_specific_obs_processors:
        env_utils.set_env_specific_obs_processing(env_meta)
    return env_meta


def get_shape_metadata_from_dataset(
    dataset_config: Mapping[str, Any] | str | Path | None = None,
    action_keys: Sequence[str] = ("actions",),
    all_obs_keys: Sequence[str] | None = None,
    verbose: bool = False,
    dataset_path: str | Path | None = None,
) -> dict[str, Any]:
    """Reads the shapes that networks are built from.

    Args:
        dataset_config: an entry of `train.data`, with `path` and perhaps `lang`; or a path.
        action_keys: datasets that make up the action vector.
        all_obs_keys: observation keys, whose modalities are those of
            `obs_utils.OBS_KEYS_TO_MODALITIES`; None: all of the first demo.
        verbose: print the shapes.
        dataset_path: the path instead, as up to robomimic 0.4.

    Returns:
        `ac_dim`, `all_shapes`, `all_obs_keys`, `use_images` and `use_depths`.

    Raises:
        DatasetError: the file cannot be read or lacks a key.
    """
    entry = dataset_config if isinstance(dataset_config, Mapping) else {"path": dataset_config}
    path = str(dataset_path if dataset_path is not None else entry["path"])
    if all_obs_keys is None:
        with open_dataset(path) as reader:
            first = reader.demo(selected_demos(reader, DemoSource(path))[0])
            in_file = {} if first is None else first.shapes()
        all_obs_keys = [key[4:] for key in in_file if key.startswith("obs/")]
    of_file = [key for key in all_obs_keys if key != LANG_EMB_KEY or not entry.get("lang")]
    modalities = {key: obs_utils.OBS_KEYS_TO_MODALITIES[key] for key in all_obs_keys}
    found = shape_metadata(path, of_file, action_keys, modalities)
    if len(of_file) < len(all_obs_keys):  # the instruction stands in the entry, not in the file
        shapes = dict(found["all_shapes"])
        shapes[LANG_EMB_KEY] = lang_utils.get_lang_emb_shape()
        found["all_shapes"] = {key: shapes[key] for key in sorted(shapes)}
        found["all_obs_keys"] = list(found["all_shapes"])
    if verbose:
        for key, shape in found["all_shapes"].items():
            print(f"obs key {key} with shape {shape}")
    return found


# ------------------------------------------------------------------------------- checkpoints


def env_from_checkpoint(
    ckpt_path: str | Path | None = None,
    ckpt_dict: dict[str, Any] | None = None,
    env_name: str | None = None,
    render: bool = False,
    render_offscreen: bool = False,
    verbose: bool = False,
) -> tuple[env_utils.AnyEnv, dict[str, Any]]:
    """Makes the environment of a checkpoint, which stacks observations if its policy sees stacks.

    Args:
        ckpt_path: path or URI of a checkpoint of raymimic or robomimic.
        ckpt_dict: the checkpoint, if it is already loaded.
        env_name: another environment of the same kind.
        render: see `env_utils.create_env`, as `render_offscreen`.
        render_offscreen: see `env_utils.create_env`.
        verbose: print the environment.

    Returns:
        the environment and the checkpoint's dictionary.

    Raises:
        CheckpointError: the checkpoint cannot be read, or names no environment.
        EnvError: the environment cannot be made.
    """
    ckpt = maybe_dict_from_checkpoint(None if ckpt_path is None else str(ckpt_path), ckpt_dict)
    if not ckpt.get("env_metadata"):
        raise CheckpointError("the checkpoint names no environment, so that none can be made")
    shapes = ckpt["shape_metadata"]
    env = env_utils.create_env_from_metadata(
        ckpt["env_metadata"],
        env_name,
        render,
        render_offscreen,
        use_image_obs=shapes.get("use_images", False),
        use_depth_obs=shapes.get("use_depths", False),
    )
    config, _ = config_from_checkpoint(ckpt_dict=ckpt)
    wrapped = env_utils.wrap_env_from_config(env, config)
    if verbose:
        print(f"environment of the checkpoint:\n{wrapped}")
    return wrapped, ckpt


# --------------------------------------------------------------------------------- downloads


def download_url(url: str, download_dir: str | Path, check_overwrite: bool = True) -> None:
    """Downloads a file, under its name in the URL, with a progress bar.

    The file is whole and checked, or not there, and a download that was cut off goes on: see
    `raymimic.data.download`. (robomimic asks before it replaces a file; here nothing is asked.)

    Args:
        url: of `http` or `https`.
        download_dir: the folder.
        check_overwrite: refuse to replace a file that is there.

    Raises:
        OutputError: it is there, or it cannot be written.
        DatasetError: the server does not answer, or not with the whole file.
    """
    target = storage.expanded(download_dir) / url.split("?")[0].rstrip("/").split("/")[-1]
    if check_overwrite and target.exists():
        raise OutputError(f"'{target}' exists: remove it, or give check_overwrite=False")
    download(url, target)


def download_file_from_hf(
    repo_id: str, filename: str, download_dir: str | Path, check_overwrite: bool = True
) -> None:
    """Downloads a file of a dataset of Hugging Face, see `download_url`.

    Args:
        repo_id: such as `robomimic/robomimic_datasets`.
        filename: path of the file there.
        download_dir: the folder.
        check_overwrite: see `download_url`.
    """
    download_url(hugging_face_url(repo_id, filename), download_dir, check_overwrite)
