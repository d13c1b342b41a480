"""A checkpoint for robomimic: what `raymimic export` writes."""

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from raymimic.config.base_config import BaseConfig
from raymimic.errors import CheckpointError, OutputError
from raymimic.utils import storage
from raymimic.utils.file_utils import config_from_checkpoint, load_dict_from_checkpoint

ROBOMIMIC_ALGOS = frozenset(
    ("bc", "bcq", "cql", "diffusion_policy", "gl", "hbc", "iql", "iris", "td3_bc")
)


def export_checkpoint(source: str, target: str, force: bool = False) -> None:
    """Writes a checkpoint that robomimic 0.5 loads, plays and trains further.

    It has the same weights and optimizers, the config without the keys that robomimic does not
    know (``BaseConfig.OWN_KEYS``), and nothing of the run. The file appears when it is complete.

    Args:
        source: checkpoint of raymimic, or one of an older robomimic; path or URI.
        target: where the new one goes.
        force: replace a file that is there.

    Raises:
        CheckpointError: the source cannot be read, or robomimic lacks what its policy needs.
        OutputError: the target exists or cannot be written.
    """
    if not force and storage.exists(target):
        raise OutputError(f"'{target}' exists already; choose another name, or replace it: --force")
    ckpt = load_dict_from_checkpoint(source)
    config, _ = config_from_checkpoint(ckpt_dict=ckpt)
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
        CheckpointError: robomimic lacks what the policy needs, or weights and config do not fit.
    """
    from raymimic.algo import algo_class, algo_factory

    name = config.algo_name
    lacks: str | None = f"the algorithm '{name}'"
    if name in ROBOMIMIC_ALGOS:
        lacks = algo_class(name, config).robomimic_lacks(config)
    if lacks is not None:
        raise CheckpointError(f"robomimic has not got {lacks}")
    shapes = ckpt["shape_metadata"]
    algo = algo_factory(name, config, shapes["all_shapes"], shapes["ac_dim"], "cpu")
    trainable = _holds_optimizers(ckpt["model"])
    algo.deserialize(ckpt["model"], load_optimizers=trainable)
    model = algo.serialize()
    scores = {"best_valid_loss": None, "best_return": None, "best_success_rate": None}
    state = ckpt.get("variable_state", {})
    exported = {
        "model": _as_float32(model),
        "config": json.dumps(_robomimic_config(config), indent=4),
        "algo_name": name,
        "env_metadata": ckpt.get("env_metadata"),
        "shape_metadata": shapes,
        "variable_state": {k: state.get(k, v) for k, v in {"epoch": 0, **scores}.items()},
    }
    for key in ("obs_normalization_stats", "action_normalization_stats"):
        if ckpt.get(key) is not None:
            exported[key] = ckpt[key]
    return exported


def _holds_optimizers(model: Mapping[str, Any]) -> bool:
    """Whether all parts of a model have their optimizers."""
    if "nets" in model:
        return bool(model.get("optimizers"))
    parts = [part for part in model.values() if isinstance(part, Mapping)]
    return bool(parts) and all(_holds_optimizers(part) for part in parts)


def _as_float32(state: Any) -> Any:
    """Casts what was trained in double precision; switches off optimizers' fused kernels.

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
    """Returns the config without raymimic's own keys, as its own kind of dict."""
    dic: dict[str, Any] = json.loads(config.dump())
    for path in config.OWN_KEYS:
        *sections, key = path.split(".")
        section = dic
        for name in sections:
            section = section.get(name, {})
        section.pop(key, None)
    train = dic["train"]
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
