"""A folder of JSON configs, such as robomimic's generator writes, as a sweep."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raymimic.config.base_config import BaseConfig, config_from_file
from raymimic.errors import ConfigError
from raymimic.sweep.spec import SweepSpec

# The configs' own names and places for results; a sweep has its own.
_IGNORED = ("experiment.name", "train.seed", "train.output_dir", "meta.", "mlflow.", "ray.")
_LOGGING = "experiment.logging."
_GROUP = "config"


def configs_in(folder: str | Path, overrides: Sequence[tuple[str, Any]] = ()) -> SweepSpec:
    """Makes a sweep of a folder's configs: each is a setting, with a name of its own.

    Configs that differ in `train.seed` alone are one setting with several seeds. The one that the
    others name as theirs (`meta.hp_base_config_file`) is none of the settings.

    Args:
        folder: with the ``*.json``.
        overrides: see `SweepSpec.from_dict`; they hold for all configs.

    Raises:
        ConfigError: there are none, they are of several algorithms, they do not differ, or some
            have other seeds than the rest.
    """
    configs = _read(Path(folder).expanduser())
    first = next(iter(configs.values()))
    for path, config in configs.items():
        if config.algo_name != first.algo_name:
            raise ConfigError(
                f"{path} is for {config.algo_name}, and {next(iter(configs))} for "
                f"{first.algo_name}: a sweep is over one algorithm, so put them into two folders"
            )
    contents = {path: json.loads(config.dump()) for path, config in configs.items()}
    varied = _varied_paths(list(contents.values()))
    seeds: dict[str, dict[int, Path]] = {}
    for path, content in contents.items():
        setting = seeds.setdefault(json.dumps([_value(content, key) for key in varied]), {})
        seed = content["train"]["seed"]
        if seed in setting:
            raise ConfigError(f"{path} and {setting[seed]} train the same: remove one")
        setting[seed] = path
    if not varied:
        raise ConfigError(
            f"the configs in {folder} differ in nothing that a sweep compares: vary at least one "
            "setting besides the seed"
        )
    _check_seeds(list(seeds.values()))
    members = [next(iter(by_seed.values())) for by_seed in seeds.values()]
    base = copy.deepcopy(contents[members[0]])
    for key in varied:
        if isinstance(_value(base, key), dict):
            _section(base, key)[key.rsplit(".", 1)[-1]] = {}  # else its keys would stay
    names = [_name(configs[path]) for path in members]
    space = {
        key: {
            "grid": [_value(contents[member], key) for member in members],
            "together": _GROUP,
            **({"label": "", "value_names": names} if i == 0 else {"hidden": True}),
        }
        for i, key in enumerate(varied)
    }
    sweep = {
        "name": Path(folder).expanduser().absolute().name,
        "config": base,
        "space": space,
        "seeds": sorted(next(iter(seeds.values()))),
    }
    try:
        return SweepSpec.from_dict(sweep, overrides)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from error


def _read(folder: Path) -> dict[Path, BaseConfig]:
    if not folder.is_dir():
        raise ConfigError(f"--configs {folder}: there is no such folder")
    configs = {path: config_from_file(path) for path in sorted(folder.glob("*.json"))}
    bases = {
        Path(config.meta.hp_base_config_file).name
        for config in configs.values()
        if config.meta.hp_base_config_file
    }
    configs = {
        path: config
        for path, config in configs.items()
        if path.name not in bases or config.meta.hp_base_config_file
    }
    if not configs:
        raise ConfigError(f"--configs {folder}: there are no JSON configs (*.json) in it")
    return configs


def _varied_paths(contents: list[dict[str, Any]]) -> list[str]:
    """The paths whose values differ; of a key that some lack, the section above it."""
    paths: dict[str, None] = {}
    for path in dict.fromkeys(p for content in contents for p in _leaves(content)):
        while not all(_has(content, path) for content in contents):
            path = path.rpartition(".")[0]
        if path.startswith((*_IGNORED, _LOGGING)):
            continue
        first = _value(contents[0], path)
        if any(_value(content, path) != first for content in contents):
            paths[path] = None
    # A section stands for all that lies in it.
    return [p for p in paths if not any(p.startswith(f"{other}.") for other in paths)]


def _leaves(content: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in content.items():
        path = f"{prefix}{key}"
        found += _leaves(value, f"{path}.") if isinstance(value, dict) and value else [path]
    return found


def _section(content: dict[str, Any], path: str) -> dict[str, Any]:
    for key in path.split(".")[:-1]:
        content = content[key]
    return content


def _has(content: Mapping[str, Any], path: str) -> bool:
    value: Any = content
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            return False
        value = value[key]
    return True


def _value(content: dict[str, Any], path: str) -> Any:
    return _section(content, path)[path.rsplit(".", 1)[-1]]


def _name(config: BaseConfig) -> str:
    """The setting's name: the experiment's, without the seed where the generator put it there."""
    keys, values = list(config.meta.hp_keys), list(config.meta.hp_values)
    name: str = config.experiment.name
    for key, value in zip(keys, values, strict=False):
        if key == "seed" and value == config.train.seed:
            name = name.replace(f"_seed_{value}", "")
    return name


def _check_seeds(settings: list[dict[int, Path]]) -> None:
    """Refuses settings with seeds of their own, whose scores could not be compared."""
    for by_seed in settings[1:]:
        if by_seed.keys() != settings[0].keys():
            here, there = next(iter(by_seed.values())), next(iter(settings[0].values()))
            raise ConfigError(
                f"{here} is there with 'train.seed' {sorted(by_seed)}, and {there} with "
                f"{sorted(settings[0])}: give all settings the same seeds"
            )
