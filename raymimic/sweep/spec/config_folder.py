"""Makes a sweep of a folder of JSON configs, such as robomimic's generator writes."""

import copy
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from raymimic import storage
from raymimic.config.base_config import BaseConfig, config_from_file
from raymimic.errors import ConfigError
from raymimic.sweep.spec.sweep_file import sweep_from_dict
from raymimic.sweep.spec.sweep_spec import SweepSpec

# Names and places for results, which the sweep sets itself.
_IGNORED = (
    *("experiment.name", "experiment.logging.", "train.seed", "train.output_dir"),
    *("meta.", "mlflow.", "ray."),
)
_ABSENT = object()


def configs_in(folder: str | Path, overrides: Sequence[tuple[str, Any]] = ()) -> SweepSpec:
    """Makes a sweep of a folder's configs, each of which is a setting.

    Configs that differ in `train.seed` alone are one setting with several seeds. The base config
    of the others (`meta.hp_base_config_file`) is no setting.

    Args:
        folder: folder of the `*.json`.
        overrides: see `sweep_file.sweep_from_dict`; they hold for all configs.

    Raises:
        ConfigError: the folder has no configs, they are of several algorithms or do not differ,
            or settings have different seeds.
    """
    configs = _read(storage.expanded(folder))
    first = next(iter(configs.values()))
    for path, config in configs.items():
        if config.algo_name != first.algo_name:
            raise ConfigError(
                f"{path} is for {config.algo_name}, and {next(iter(configs))} for "
                f"{first.algo_name}: a sweep is over one algorithm, so put them into two folders"
            )
    contents = {path: json.loads(config.dump()) for path, config in configs.items()}
    leaves = dict.fromkeys(path for config in configs.values() for path, _ in config.leaves())
    varied = _varied_paths(leaves, list(contents.values()))
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
            _value(base, key).clear()  # else its keys would stay
    names = [_name(configs[path]) for path in members]
    space = {
        key: {
            "grid": [_value(contents[member], key) for member in members],
            "together": "config",
            **({"label": "", "value_names": names} if i == 0 else {"hidden": True}),
        }
        for i, key in enumerate(varied)
    }
    sweep = {
        "name": storage.expanded(folder).absolute().name,
        "config": base,
        "space": space,
        "seeds": sorted(next(iter(seeds.values()))),
    }
    try:
        return sweep_from_dict(sweep, overrides)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from error


def _read(folder: Path) -> dict[Path, BaseConfig]:
    if not folder.is_dir():
        raise ConfigError(f"--configs {folder}: there is no such folder; check the path")
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


def _varied_paths(leaves: Iterable[str], contents: Sequence[dict[str, Any]]) -> list[str]:
    """The paths whose values differ; where some configs lack a key, the section above it."""
    paths: dict[str, None] = {}
    for path in leaves:
        while any(_value(content, path) is _ABSENT for content in contents):
            path = path.rpartition(".")[0]
        if path.startswith(_IGNORED):
            continue
        first = _value(contents[0], path)
        if any(_value(content, path) != first for content in contents):
            paths[path] = None
    # A section stands for all its keys.
    return [p for p in paths if not any(p.startswith(f"{other}.") for other in paths)]


def _value(content: Any, path: str) -> Any:
    for key in path.split("."):
        if not isinstance(content, dict) or key not in content:
            return _ABSENT
        content = content[key]
    return content


def _name(config: BaseConfig) -> str:
    """The setting's name: the experiment's, without the seed that the generator added."""
    keys, values = list(config.meta.hp_keys), list(config.meta.hp_values)
    name: str = config.experiment.name
    for key, value in zip(keys, values, strict=False):
        if key == "seed" and value == config.train.seed:
            name = name.replace(f"_seed_{value}", "")
    return name


def _check_seeds(settings: list[dict[int, Path]]) -> None:
    """Refuses settings with different seeds, because their scores could not be compared."""
    for by_seed in settings[1:]:
        if by_seed.keys() != settings[0].keys():
            here, there = next(iter(by_seed.values())), next(iter(settings[0].values()))
            raise ConfigError(
                f"{here} is there with 'train.seed' {sorted(by_seed)}, and {there} with "
                f"{sorted(settings[0])}: give all settings the same seeds"
            )
