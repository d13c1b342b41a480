"""Writes a checkpoint for robomimic: `raymimic export`."""

import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from raymimic import storage
from raymimic.checkpoints.content import CheckpointContent
from raymimic.checkpoints.policy import algo_from_content, config_from_checkpoint
from raymimic.checkpoints.reading import load_dict_from_checkpoint
from raymimic.config.base_config import BaseConfig, sections_named
from raymimic.envs.env_base import EnvType
from raymimic.envs.render_settings import settings_of
from raymimic.errors import CheckpointError, OutputError

logger = logging.getLogger(__name__)

# All parts of encoders that robomimic 0.5 has (`models/obs_core.py`, `models/base_nets.py`). It
# ignores arguments that it lacks: `pretrained_path`, for one, whose weights a checkpoint holds.
_ITS_CLASSES = {
    "core_class": ("VisualCore", "VisualCoreLanguageConditioned", "ScanCore"),
    "backbone_class": (
        *("ResNet18Conv", "ResNet50Conv", "ResNet18ConvFiLM", "R3MConv", "MVPConv", "ShallowConv"),
    ),
    "pool_class": ("SpatialSoftmax", "SpatialMeanPool"),
    "obs_randomizer_class": ("CropRandomizer", "ColorRandomizer", "GaussianNoiseRandomizer"),
}
_ITS_MODALITIES = ("low_dim", "rgb", "depth", "scan")
# Numbers of an embedding by its text encoder, which it takes for every instruction.
_ITS_EMBEDDING = 768


def export_checkpoint(
    source: str, target: str, force: bool = False, imports: Sequence[str] = ()
) -> None:
    """Writes a checkpoint that robomimic 0.5 loads, plays and trains further.

    It has the same weights and optimizers, the config without the keys that robomimic does not
    know (`BaseConfig.OWN_KEYS`), and nothing of the run. The file appears when it is complete.

    Args:
        source: checkpoint of raymimic, or one of an older robomimic; path or URI.
        target: where the new one goes.
        force: replace a file that is there.
        imports: modules of the user's own, which are imported already.

    Raises:
        CheckpointError: the source cannot be read, or robomimic lacks a part of its policy.
        ModuleNotImportedError: it names a module that is not imported.
        OutputError: the target exists or cannot be written.
    """
    if not force and storage.exists(target):
        raise OutputError(f"'{target}' exists already; choose another name, or replace it: --force")
    storage.check_writable(target, reads=[source])
    ckpt = load_dict_from_checkpoint(source)
    config, _ = config_from_checkpoint(ckpt_path=source, ckpt_dict=ckpt, imports=imports)
    try:
        exported = robomimic_checkpoint(ckpt, config)
    except CheckpointError as error:
        raise CheckpointError(f"cannot export '{source}': {error}") from error
    data = io.BytesIO()
    torch.save(exported, data)
    storage.write_bytes(target, data.getbuffer())


def robomimic_checkpoint(ckpt: Mapping[str, Any], config: BaseConfig) -> dict[str, Any]:
    """Returns a checkpoint as robomimic 0.5 would have written it.

    Args:
        ckpt: a checkpoint of raymimic or robomimic.
        config: its config.

    Raises:
        CheckpointError: robomimic lacks a part of the policy, or weights and config do not fit.
    """
    from raymimic.algo import algo_class

    name, content = config.algo_name, CheckpointContent.from_dict(ckpt)
    lacks: str | None = f"the algorithm '{name}'"
    if config.IN_ROBOMIMIC:
        lacks = algo_class(name, config).why_not_exportable(config)
        lacks = lacks or _own_encoder(config, content)
    if lacks is not None:
        raise CheckpointError(f"robomimic lacks {lacks}")
    algo = algo_from_content(content, config, torch.device("cpu"))
    trainable = _holds_optimizers(content.model)
    algo.deserialize(content.model, load_optimizers=trainable)
    _warn_of_depth(config, content.env_metadata)
    state = content.variable_state or {}
    no_scores = {"best_valid_loss": None, "best_return": None, "best_success_rate": None}
    exported = replace(
        content,
        model=_as_float32(algo.serialize()),
        algo_name=name,
        config=json.dumps(_robomimic_config(config), indent=4),
        env_metadata=_robomimic_env(content.env_metadata),
        variable_state={k: state.get(k, v) for k, v in {"epoch": 0, **no_scores}.items()},
        raymimic=None,
    ).to_dict()
    # robomimic writes statistics only where it normalises.
    return {k: v for k, v in exported.items() if v is not None or not k.endswith("_stats")}


def _robomimic_env(env_meta: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns an environment without `render`, which robomimic does not know.

    Cameras and size of robosuite go into its arguments.
    """
    if env_meta is None or "render" not in env_meta:
        return env_meta if env_meta is None else dict(env_meta)
    exported = {key: value for key, value in env_meta.items() if key != "render"}
    settings = settings_of(env_meta)
    if env_meta.get("type") == EnvType.ROBOSUITE_TYPE and settings.cameras:
        exported["env_kwargs"] = {**(env_meta.get("env_kwargs") or {}), **settings.arguments}
        lost = settings.quality
    else:
        lost = settings.serialize()
    if lost:
        logger.warning(
            "robomimic has no render settings: %s of the environment are left out, and it may show "
            "the policy other images",
            ", ".join(f"{key} {json.dumps(value)}" for key, value in lost.items()),
        )
    return exported


def _own_encoder(config: BaseConfig, content: CheckpointContent) -> str | None:
    """Names the part of a policy's encoders that robomimic lacks; None: it lacks nothing."""
    sizes = {len(embedding) for embedding in content.language.values()} - {_ITS_EMBEDDING}
    if sizes:
        return f"embeddings of {sizes.pop()} numbers (train.data[].lang)"
    shapes = content.shape_metadata.get("all_shapes", {})
    for path, groups in sections_named(config.observation, "modalities"):
        encoders = config.observation.get_path(f"{path.removesuffix('modalities')}encoder")
        used: dict[str, list[str]] = {}
        for group in groups.values():
            for modality, keys in group.items():
                used.setdefault(modality, []).extend(keys)
        for modality, keys in used.items():
            if keys and modality not in _ITS_MODALITIES:
                return f"the modality '{modality}' (observation.{path})"
        for modality, encoder in encoders.items():
            place = f"observation.{path.removesuffix('modalities')}encoder.{modality}"
            images = [shapes[key] for key in used.get(modality, ()) if key in shapes]
            if lacks := _own_part(encoder, images, place):
                return lacks
    return None


def _own_part(
    encoder: Mapping[str, Any], images: Sequence[Sequence[int]], place: str
) -> str | None:
    """As `_own_encoder`, for the encoder of one modality.

    Args:
        encoder: its section.
        images: shapes `[C, H, W]` of the keys that it encodes.
        place: of the section.
    """
    if encoder.get("share_net_from"):
        return f"encoders in common ({place}.share_net_from)"
    core = encoder.get("core_kwargs") or {}
    chain = _as_list(encoder.get("obs_randomizer_class"))
    named = [("core_class", encoder.get("core_class"))]
    named += [(key, core.get(key)) for key in ("backbone_class", "pool_class")]
    named += [("obs_randomizer_class", name) for name in chain]
    for key, name in named:
        if name is not None and name not in _ITS_CLASSES[key]:
            return f"the class '{name}' ({place}.{key})"
    if (core.get("pool_kwargs") or {}).get("output_variance"):
        return f"variances of keypoints ({place}.core_kwargs.pool_kwargs.output_variance)"
    conditioned = encoder.get("core_class") == "VisualCoreLanguageConditioned"
    for name, given in zip(chain, _as_list(encoder.get("obs_randomizer_kwargs")), strict=False):
        own = given or {}
        if conditioned and max(own.get("num_crops", 1), own.get("num_samples", 1)) > 1:
            return f"several crops or samples of images that language changes ({place})"
        if name != "CropRandomizer":
            continue
        if own.get("pos_enc"):
            return f"places of pixels in evaluation ({place}.obs_randomizer_kwargs.pos_enc)"
        height, width = own.get("crop_height", 76), own.get("crop_width", 76)
        if any(height >= shape[1] or width >= shape[2] for shape in images):
            return f"crops as high or wide as the image ({place}.obs_randomizer_kwargs)"
        images = [(shape[0], height, width) for shape in images]
    return None


def _as_list(value: Any) -> list[Any]:
    return [*value] if isinstance(value, list | tuple) else [value]


def _holds_optimizers(model: Mapping[str, Any]) -> bool:
    """Returns whether all parts of a model have their optimizers."""
    if "nets" in model:
        return bool(model.get("optimizers"))
    parts = [part for part in model.values() if isinstance(part, Mapping)]
    return bool(parts) and all(_holds_optimizers(part) for part in parts)


def _as_float32(state: Any) -> Any:
    """Casts double precision to single; switches off optimizers' fused kernels.

    A robomimic with an older torch has none on the CPU, and would not take a step.
    """
    if isinstance(state, torch.Tensor):
        return state.float() if state.is_floating_point() else state
    if isinstance(state, Mapping):
        return {k: None if k == "fused" else _as_float32(v) for k, v in state.items()}
    if isinstance(state, list):
        return [_as_float32(v) for v in state]
    return state


def _robomimic_config(config: BaseConfig) -> dict[str, Any]:
    """Returns the config without raymimic's own keys, in robomimic's form."""
    dic = config.without_own_keys()
    train = dic["train"]
    if config.train.validation_fraction is not None:
        # Without it, robomimic would ask for masks.
        dic["experiment"]["validate"] = False
        logger.warning(
            "robomimic has no 'train.validation_fraction' (%g): the exported config has "
            "'experiment.validate' false; set masks (train.hdf5_validation_filter_key) to validate "
            "there",
            config.train.validation_fraction,
        )
    if train["hdf5_cache_mode"] == "auto":
        # Its place for images is the file, as of robomimic's own configs for them.
        images = {"rgb", "depth"} & set(config.all_modalities.values())
        train["hdf5_cache_mode"] = "low_dim" if images else "all"
    if isinstance(train["data"], str):
        train["data"] = [{"path": train["data"]}]
    for optim_params in _optim_params(dic["algo"]):
        # robomimic's training script sets them, and its optimizers read them in any case.
        optim_params.setdefault("num_train_batches", dic["experiment"]["epoch_every_n_steps"] or 1)
        optim_params.setdefault("num_epochs", train["num_epochs"])
    return dic


def _warn_of_depth(config: BaseConfig, env_meta: Mapping[str, Any] | None) -> None:
    """Warns where robomimic may show a policy other depth than it has learned from."""
    if "depth" not in config.all_modalities.values():
        return
    if not config.cuts_depth:
        logger.warning(
            "robomimic clips depth to [0, 1], but this policy was trained without clipping: call "
            "robomimic.utils.env_utils.set_env_specific_obs_processing(env_type=1) before it acts"
        )
    elif (env_meta or {}).get("type") == EnvType.ROBOSUITE_TYPE:
        logger.warning(
            "this policy was trained on depth that is clipped to [0, 1] (train.cut_depth), and "
            "robomimic does not clip it once it has opened a dataset of robosuite: call "
            "robomimic.utils.obs_utils.DepthModality.set_obs_processor(None) after that"
        )


def _optim_params(section: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the settings of all optimizers, those of nested algorithms included."""
    for key, value in section.items():
        if key == "optim_params":
            yield from value.values()
        elif isinstance(value, Mapping):
            yield from _optim_params(value)
