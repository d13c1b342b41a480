"""Environments to evaluate in: those of the datasets, as the config changes them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymimic.config.base_config import BaseConfig
from raymimic.data.columns import warn_once
from raymimic.data.metadata import read_env_meta
from raymimic.envs.kinds import DEFAULT_KIND
from raymimic.envs.render_settings import difference
from raymimic.errors import ConfigError, DatasetError
from raymimic.observations.shapes import language_keys

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvalEnv:
    """An environment that comes with the data.

    Attributes:
        key: the name that its metrics are logged under.
        meta: `env_name`, `type`, `env_kwargs`, and `lang`, the instruction, for policies that see
            one.
        evaluate: whether to evaluate in it (`eval` of the dataset's entry).
        sources: numbers of the entries of `train.data` that were recorded in it.
    """

    key: str
    meta: dict[str, Any]
    evaluate: bool
    sources: tuple[int, ...] = ()


def environments(config: BaseConfig, entries: Sequence[dict[str, Any]]) -> list[EvalEnv]:
    """Environments to evaluate in: those of the datasets, as the config changes them.

    `experiment.env_meta_update_dict` is merged into each. `experiment.env` replaces them all by
    one of that name, with the first dataset's settings; `experiment.additional_envs` adds more of
    the same kind.

    Args:
        config: section `experiment` is read.
        entries: of `train.data`; `file` is the file in robomimic's format, if `path` is another.

    Returns:
        One for each dataset that says where it was recorded; entries of one file share it. Its key
        is the entry's `key`, else the environment's name, else (where several datasets share
        one) the file's name, with as many of its folders as tell the files apart. (robomimic
        always takes the file's name, and gives additional environments the same.)

    Raises:
        DatasetError: a file does not say its environment in a way that can be understood.
        ConfigError: two environments have the same key.

    Without rollouts there are no complaints: an environment that cannot be understood is left out.
    """
    experiment = config.experiment
    played = bool(experiment.rollout.enabled)
    metas = [_env_meta(config, entry.get("file", entry["path"])) for entry in entries]
    # As in robomimic, which calls a dataset without an instruction "dummy".
    sees = bool(language_keys(config.all_modalities))
    told = [{"lang": entry.get("lang")} if sees else {} for entry in entries]
    metas = [
        {k: v for k, v in {**meta, **own}.items() if k != "lang" or v} if meta else meta
        for meta, own in zip(metas, told, strict=True)
    ]
    owners = [
        (entry["path"], entry.get("key"), own.get("lang"))
        for entry, own in zip(entries, told, strict=True)
    ]
    sources = [tuple(i for i, other in enumerate(owners) if other == own) for own in owners]
    if experiment.env is not None:
        fitting = (None, experiment.env)  # data that name no environment are the user's to judge
        sources = [tuple(i for i, meta in enumerate(metas) if meta.get("env_name") in fitting)]
        fixed = {**told[0], "env_name": experiment.env}
        first = {"type": DEFAULT_KIND, "env_kwargs": {}, **metas[0], **fixed}
        owners, metas = owners[:1], [first]
        entries = entries[:1]
    recorded = metas
    metas = [_merged(meta, experiment.env_meta_update_dict) if meta else meta for meta in metas]
    if played and {"rgb", "depth"} & {*config.obs_from_env.values()}:
        _say_differences(entries, recorded, metas)
    envs: dict[tuple[str, str | None, str | None], EvalEnv] = {}
    keys = _env_keys(entries, metas)
    for own, entry, meta, key, made in zip(owners, entries, metas, keys, sources, strict=True):
        if not meta:
            continue
        evaluate = bool(entry.get("eval", True)) or (own in envs and envs[own].evaluate)
        envs[own] = EvalEnv(key, meta, evaluate, made)
    found = list(envs.values())
    if metas[0] and found[0].evaluate:
        more = [
            EvalEnv(name, {**metas[0], "env_name": name}, True)
            for name in experiment.additional_envs or ()
        ]
        found[1:1] = more
    played_keys = [env.key for env in found if env.evaluate and played]
    if repeated := sorted({key for key in played_keys if played_keys.count(key) > 1}):
        raise ConfigError(
            f"two evaluation environments are called '{repeated[0]}': give the entries of"
            " train.data a 'key' each, and name no environment twice in experiment.additional_envs"
        )
    if played and not found:
        logger.warning(
            "no dataset names its environment (env_args), so nothing is evaluated; set "
            "experiment.env to evaluate"
        )
    return found


def _env_meta(config: BaseConfig, path: str) -> dict[str, Any]:
    """The environment of a dataset; empty if it says none."""
    try:
        meta = read_env_meta(path, config.train.allow_links)
        name = meta.get("env_name")
        if meta and config.experiment.env is None and not (isinstance(name, str) and name):
            raise DatasetError(
                f"dataset '{path}': data.attrs['env_args'] has no 'env_name'; write the"
                " environment's env_name, type and env_kwargs there, or set experiment.env"
            )
        return meta
    except DatasetError as error:
        if config.experiment.rollout.enabled:
            raise
        warn_once(f"{error} (this training goes on, as it plays no episodes)")
        return {}


def _say_differences(
    entries: Sequence[Mapping[str, Any]],
    recorded: Sequence[Mapping[str, Any]],
    played: Sequence[Mapping[str, Any]],
) -> None:
    """Warns where a policy will see other images than those of its data."""
    for entry, old, new in zip(entries, recorded, played, strict=True):
        if old and (change := difference(old, new)):
            warn_once(
                f"evaluations draw other images than dataset '{entry['path']}' holds, by "
                f"experiment.env_meta_update_dict: {change}"
            )


def _env_keys(entries: Sequence[dict[str, Any]], metas: Sequence[dict[str, Any]]) -> list[str]:
    """Names for the metrics of each entry's environment, see `environments`."""
    names = [str(meta.get("env_name")) for meta in metas]
    ones = {(e["path"], e.get("key")): name for e, name in zip(entries, names, strict=True)}
    shared = [name for name in names if list(ones.values()).count(name) > 1]
    paths = {entry["path"] for entry in entries if not entry.get("key")}
    folders = 0
    while folders < max((len(Path(path).parts) for path in paths), default=0):
        if len({_file_name(path, folders) for path in paths}) == len(paths):
            break
        folders += 1
    return [
        str(entry.get("key") or (_file_name(entry["path"], folders) if name in shared else name))
        for entry, name in zip(entries, names, strict=True)
    ]


def _file_name(path: str, folders: int) -> str:
    """Name of a file without its ending, with some of the folders that it lies in."""
    place = Path(path)
    parts = [part.strip("/:") for part in place.parent.parts[-folders:]] if folders else []
    return "-".join([*filter(None, parts), place.stem])


def _merged(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `update` put over it, dict by dict; neither is changed."""
    merged = dict(base)
    for key, value in update.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = _merged(old, value)
        merged[key] = value
    return merged
