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

# Parts of encoders that are not in robomimic.
_OWN_CLASSES = ("ImpalaConv", "RandomShift")


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

    name = config.algo_name
    lacks: str | None = f"the algorithm '{name}'"
    if config.IN_ROBOMIMIC:
        lacks = algo_class(name, config).why_not_exportable(config) or _own_encoder(config)
    if lacks is not None:
        raise CheckpointError(f"robomimic has not got {lacks}")
    content = CheckpointContent.from_dict(ckpt)
    algo = algo_from_content(content, config, torch.device("cpu"))
    trainable = _holds_optimizers(content.model)
    algo.deserialize(content.model, load_optimizers=trainable)
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


def _own_encoder(config: BaseConfig) -> str | None:
    """Names the part of a config's encoders that robomimic lacks; None: it lacks nothing."""
    for path, groups in sections_named(config.observation, "modalities"):
        if any(keys.get("lang") for keys in groups.values()):
            return f"the modality 'lang' (observation.{path})"
    for path, encoders in sections_named(config.observation, "encoder"):
        for modality, encoder in encoders.items():
            place = f"observation.{path}.{modality}"
            if encoder.get("share_net_from"):
                return f"encoders in common ({place}.share_net_from)"
            classes = encoder.get("obs_randomizer_class")
            classes = [*classes] if isinstance(classes, list | tuple) else [classes]
            classes.append((encoder.get("core_kwargs") or {}).get("backbone_class"))
            if own := next((name for name in classes if name in _OWN_CLASSES), None):
                return f"the class '{own}' ({place})"
    return None


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
    dic: dict[str, Any] = json.loads(config.dump())
    for path in config.OWN_KEYS:
        *sections, key = path.split(".")
        section = dic
        for name in sections:
            section = section.get(name, {})
        section.pop(key, None)
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
    if isinstance(train["data"], str):
        train["data"] = [{"path": train["data"]}]
    for optim_params in _optim_params(dic["algo"]):
        # robomimic's training script sets them, and its optimizers read them in any case.
        optim_params.setdefault("num_train_batches", dic["experiment"]["epoch_every_n_steps"] or 1)
        optim_params.setdefault("num_epochs", train["num_epochs"])
    return dic


def _optim_params(section: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the settings of all optimizers, those of nested algorithms included."""
    for key, value in section.items():
        if key == "optim_params":
            yield from value.values()
        elif isinstance(value, Mapping):
            yield from _optim_params(value)
