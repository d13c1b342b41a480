"""Makes configs, algorithms and policies of checkpoints, under robomimic's names."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from raymimic.checkpoints.content import CheckpointContent, as_numbers
from raymimic.checkpoints.reading import maybe_dict_from_checkpoint
from raymimic.config import BaseConfig, config_factory
from raymimic.config.limits import range_problems, type_problems
from raymimic.errors import CheckpointError, RaymimicError
from raymimic.models.vision.weights import weights_follow
from raymimic.observations.shapes import language_keys
from raymimic.storage import parse_json
from raymimic.tensors import get_torch_device
from raymimic.user_modules import check_imported

if TYPE_CHECKING:
    from raymimic.algo import Algo, RolloutPolicy

logger = logging.getLogger(__name__)

# Numbers that networks may have beyond those in a checkpoint: they are made again at each start.
_FREE_NUMBERS = 1_000_000


def config_from_checkpoint(
    algo_name: str | None = None,
    ckpt_path: str | None = None,
    ckpt_dict: dict[str, Any] | None = None,
    verbose: bool = False,
    imports: Sequence[str] = (),
) -> tuple[BaseConfig, dict[str, Any]]:
    """Restores the config that a checkpoint was trained with.

    Where robomimic's networks ignored their config, their weights correct it
    (`Algo.correct_config_by_weights`). Modules that the checkpoint names are never imported.

    Args:
        algo_name: the algorithm, if it is already known.
        ckpt_path: path or URI of the checkpoint.
        ckpt_dict: the checkpoint, if it is already loaded.
        verbose: log the config.
        imports: the modules that the caller has imported for this checkpoint; without any, those
            that it names must be imported already.

    Returns:
        the locked config and the checkpoint's dictionary.

    Raises:
        CheckpointError: the checkpoint cannot be read, or its config is not one of this version.
        ModuleNotImportedError: it names a module that is not imported.
    """
    from raymimic.algo import algo_class

    ckpt = maybe_dict_from_checkpoint(ckpt_path, ckpt_dict)
    where, content = _name(ckpt_path), CheckpointContent.from_dict(ckpt)
    check_imported(content.imports, where, imports)
    with _explained(f"cannot use the config of {where}"):
        config = config_factory(algo_name or content.algo_name, dic=parse_json(content.config))
        problems = chain(type_problems(config), range_problems(config))
        if problem := next(problems, None):
            raise CheckpointError(problem)
        for path, value in config.leaves():
            if isinstance(value, int | float) and abs(value) > torch.finfo(torch.float32).max:
                raise CheckpointError(f"'{path}' is {value:g}, which no network can compute with")
        if not content.of_raymimic:
            algo_class(config.algo_name, config).correct_config_by_weights(config, content.model)
    if verbose:
        logger.info("config of the checkpoint:\n%s", config)
    config.lock()
    return config, ckpt


def policy_from_checkpoint(
    device: torch.device | str | None = None,
    ckpt_path: str | Path | None = None,
    ckpt_dict: dict[str, Any] | None = None,
    verbose: bool = False,
    imports: Sequence[str] = (),
) -> tuple[RolloutPolicy, dict[str, Any]]:
    """Restores a trained policy, ready to act.

    Args:
        device: where it runs; None: on a GPU if there is one and `train.cuda` of its config is
            true. If it is the only argument and a text or a path, it is `ckpt_path`.
        ckpt_path: path or URI of a checkpoint of raymimic or robomimic.
        ckpt_dict: the checkpoint, if it is already loaded.
        verbose: log the config and the algorithm.
        imports: see `config_from_checkpoint`.

    Returns:
        the policy and the checkpoint's dictionary.

    Raises:
        CheckpointError: the checkpoint cannot be read or its weights do not fit its config.
        ModuleNotImportedError: it names a module that is not imported.
    """
    from raymimic.algo import RolloutPolicy

    if ckpt_path is None and ckpt_dict is None and isinstance(device, str | Path):
        device, ckpt_path = None, device
    ckpt_path = None if ckpt_path is None else str(ckpt_path)
    ckpt = maybe_dict_from_checkpoint(ckpt_path, ckpt_dict)
    config, _ = config_from_checkpoint(
        ckpt_path=ckpt_path, ckpt_dict=ckpt, verbose=verbose, imports=imports
    )
    content = CheckpointContent.from_dict(ckpt)
    with _explained(f"cannot use {_name(ckpt_path)}"):
        place = get_torch_device(config.train.cuda) if device is None else torch.device(device)
        algo = algo_from_content(content, config, place)
        algo.deserialize(content.model)
        algo.set_eval()
        _check_stats_fit(algo, content)
        policy = RolloutPolicy(
            algo,
            obs_normalization_stats=_as_arrays(content.obs_normalization_stats),
            action_normalization_stats=_as_arrays(content.action_normalization_stats),
            language=content.language,
        )
    if verbose:
        logger.info("policy of the checkpoint:\n%s", algo)
    return policy, ckpt


def algo_from_checkpoint(ckpt: Mapping[str, Any], config: BaseConfig, device: torch.device) -> Algo:
    """Makes the algorithm of a checkpoint's dictionary, see `algo_from_content`."""
    return algo_from_content(CheckpointContent.from_dict(ckpt), config, device)


def algo_from_content(content: CheckpointContent, config: BaseConfig, device: torch.device) -> Algo:
    """Makes the algorithm of a checkpoint, whose networks are no larger than those in it.

    Args:
        content: the checkpoint.
        config: its config.
        device: where the networks live.

    Raises:
        CheckpointError: its config describes larger networks than it holds.
        RaymimicError: config and shapes do not fit.
    """
    from raymimic.algo import algo_factory

    shapes = content.shape_metadata

    def make(device: torch.device) -> Algo:
        with weights_follow():
            return algo_factory(
                config.algo_name, config, shapes["all_shapes"], shapes["ac_dim"], device
            )

    limit = 2 * _count_numbers(content.model) + _FREE_NUMBERS
    # First without memory: a config of a few bytes may describe networks of any size.
    try:
        with _at_most(limit), torch.device("meta"):
            make(torch.device("meta"))
    except CheckpointError:
        raise
    except Exception as error:  # an algorithm that cannot be made so, or not at all
        logger.debug("the networks are made without a trial: %r", error)
    with _at_most(limit):
        return make(device)


@dataclass
class _Allowance:
    """The numbers that networks may still have."""

    left: int


_ALLOWANCE: ContextVar[_Allowance | None] = ContextVar("_ALLOWANCE", default=None)


def _count(module: torch.nn.Module, name: str, tensor: torch.Tensor | None) -> None:
    allowance = _ALLOWANCE.get()
    if allowance is not None and tensor is not None:
        allowance.left -= 1 + tensor.numel()
        if allowance.left < 0:
            raise CheckpointError("its config describes larger networks than it holds")


# Once and for all threads: torch's table must not change while another thread makes networks.
register_module_parameter_registration_hook(_count)
register_module_buffer_registration_hook(_count)


@contextlib.contextmanager
def _at_most(numbers: int) -> Iterator[None]:
    """Limits how many numbers the networks have that this thread makes within.

    Raises:
        CheckpointError: they have more.
    """
    token = _ALLOWANCE.set(_Allowance(numbers))
    try:
        yield
    finally:
        _ALLOWANCE.reset(token)


def _count_numbers(state: Any) -> int:
    if isinstance(state, torch.Tensor):
        return state.numel()
    if isinstance(state, Mapping):
        return sum(map(_count_numbers, state.values()))
    return sum(map(_count_numbers, state)) if isinstance(state, list | tuple) else 0


def _check_stats_fit(algo: Algo, content: CheckpointContent) -> None:
    """Makes sure that there are statistics of all that the policy normalises.

    Raises:
        CheckpointError: some are missing.
    """
    for key in language_keys({k: algo.obs_shapes.modality(k) for k in algo.obs_shapes}):
        size = math.prod(algo.obs_shapes[key])
        if any(len(embedding) != size for embedding in content.language.values()):
            raise CheckpointError(
                f"its 'raymimic.language' is not of the {size} numbers of '{key}'"
            )
    obs, actions = content.obs_normalization_stats, content.action_normalization_stats
    for key in (*algo.obs_shapes, *algo.goal_shapes):
        if obs is not None and key not in obs:
            raise CheckpointError(f"its 'obs_normalization_stats' lack '{key}'")
    if actions is not None:
        keys = algo.global_config.train.action_keys
        sizes = [np.size(entry["offset"]) for key, entry in actions.items() if key in keys]
        if len(sizes) != len(keys) or sum(sizes) != algo.ac_dim:
            raise CheckpointError(
                f"its 'action_normalization_stats' are not those of {algo.ac_dim} actions"
            )


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns any exception within into one sentence: a file's content may lead to any.

    Raises:
        CheckpointError: in the place of any other exception.
    """
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, RaymimicError) else f"{type(error).__name__}: "
        reason = " ".join(f"{kind}{error}".split())
        raise CheckpointError(f"{what}: {reason[:300]}") from error


def _name(ckpt_path: str | None) -> str:
    return "the checkpoint" if ckpt_path is None else f"'{ckpt_path}'"


def _as_arrays(stats: Mapping[str, Any] | None) -> dict[str, dict[str, Any]] | None:
    if stats is None:
        return None
    return {
        key: {name: as_numbers(value) for name, value in entry.items()}
        for key, entry in stats.items()
    }
