"""Sweep files: YAML as a reader takes it, and what its keys stand for."""

import copy
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from raymimic.config.base_config import (
    BaseConfig,
    config_factory,
    config_from_file,
    import_modules,
)
from raymimic.errors import ConfigError
from raymimic.sweep.checks import METRICS, measure_of, refuse_unknown
from raymimic.sweep.space import Choice, Dimension, parse_space
from raymimic.utils import storage

KEYS = (
    *("name", "algo", "config", "dataset", "set", "space", "seeds", "search", "search_seed"),
    *("scheduler", "metric", "mode", "budget", "resources", "max_concurrent", "final_episodes"),
)
_CONFIG_SECTIONS = ("experiment", "train", "algo", "observation", "meta", "ray", "mlflow")


class _Loader(yaml.SafeLoader):  # type: ignore[misc] # yaml has no types
    """YAML as a reader takes it: 1e-3 is a number, and no key comes twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuses what plain YAML would silently drop."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key}' comes twice", node.value[i][0].start_mark
                )
        content: dict[Any, Any] = super().construct_mapping(node, deep)
        return content


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> Any:
    """Reads a YAML (or JSON) file.

    Raises:
        ConfigError: it cannot be read or is no YAML.
    """
    try:
        return yaml.load(path.read_text(), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(
            f"{path}, line {mark.line + 1}, column {mark.column + 1}: not valid YAML "
            f"({error.problem})"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(f"cannot read sweep {path}: {reason}") from None


def fields_of(content: Any, overrides: Iterable[tuple[str, Any]], folder: Path) -> dict[str, Any]:
    """What a sweep file's content says about each field of a sweep.

    Args:
        content: of the file.
        overrides: see `raymimic.sweep.spec.SweepSpec.from_dict`.
        folder: what a relative path in `config` starts from.

    Returns:
        the fields by name; `resources` is a dictionary.

    Raises:
        ConfigError: a key is unknown, or the config or the space cannot be understood.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f"a sweep is a mapping with some of the keys {', '.join(KEYS)}")
    content = _overridden(content, overrides)
    refuse_unknown("", content, KEYS)
    space = parse_space(content.get("space"))
    if "train.data" in space:
        space["train.data"] = _absolute_choices(space["train.data"])
    config = _base_config(content, space, folder)
    name = content.get("name", config.experiment.name)
    if isinstance(name, str):  # else a check has its say
        config.set_path("experiment.name", name)
    budget = _section(content, "budget", ("trials", "hours", "episodes"))
    resources = {
        "workers": max(1, config.ray.num_workers),
        "cpus_per_worker": config.ray.cpus_per_worker,
        "gpus_per_worker": config.ray.gpus_per_worker,
    }
    scheduler, options = _scheduler(content.get("scheduler", "none"))
    seeds = content.get("seeds", [config.train.seed])
    metric = content.get("metric", "Rollout/Return")
    plain = ("search", "search_seed", "max_concurrent", "final_episodes")
    return {
        "name": name,
        "algo": config.algo_name,
        "base_config": json.loads(config.dump()),
        "dataset": config.train.data if isinstance(config.train.data, str) else None,
        "space": space,
        "seeds": tuple(seeds) if isinstance(seeds, list | tuple) else (seeds,),
        "scheduler": scheduler,
        "scheduler_options": options,
        "num_trials": budget.get("trials") or 0,
        "hours": budget.get("hours"),
        "episodes": budget.get("episodes"),
        "metric": metric,
        "mode": content.get("mode", METRICS.get(measure_of(str(metric)), "max")),
        "resources": resources | dict(_section(content, "resources", tuple(resources))),
        **{key: content[key] for key in plain if key in content},
    }


def _overridden(content: Mapping[str, Any], overrides: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    changed = copy.deepcopy(dict(content))
    for key, value in overrides:
        head, _, rest = key.partition(".")
        if rest and head in _CONFIG_SECTIONS:
            head, rest = "set", key
        if not rest:
            changed[head] = value
            continue
        section = changed.get(head)
        if section is None:
            section = changed[head] = {}
        if head == "scheduler" and isinstance(section, dict) and "." in rest:
            name, _, rest = rest.partition(".")  # its options stand below its name
            head, section = f"{head}.{name}", section.setdefault(name, {})
        if not isinstance(section, dict):
            raise ConfigError(f"there is no '{key}', as '{head}' is {section!r}")
        section[rest] = value
    return changed


def _section(content: Mapping[str, Any], name: str, known: Iterable[str]) -> Mapping[str, Any]:
    section = content.get(name) or {}
    if not isinstance(section, Mapping):
        raise ConfigError(f"'{name}' must be a mapping with the keys {', '.join(known)}")
    refuse_unknown(f"{name}.", section, known)
    return section


def _base_config(
    content: Mapping[str, Any], space: Mapping[str, Dimension], folder: Path
) -> BaseConfig:
    algo, config = content.get("algo"), content.get("config")
    changes = _changes(content.get("set"), space)
    import_modules(_modules(changes.get("train.imports")))
    if isinstance(config, str):
        made = config_from_file(folder / Path(config).expanduser())
    elif isinstance(config, Mapping):
        train = config.get("train")
        import_modules(_modules(train.get("imports") if isinstance(train, Mapping) else None))
        made = config_factory(str(config.get("algo_name")), config)
    elif config is not None:
        raise ConfigError("'config' must be the path of a JSON config, or its content")
    elif algo is None:
        raise ConfigError("what shall be trained? give 'algo' (a name) or 'config' (a JSON file)")
    else:
        made = config_factory(str(algo))
    if algo not in (None, made.algo_name):
        raise ConfigError(f"'algo' is '{algo}', but 'config' is for {made.algo_name}: remove one")
    for path, value in changes.items():
        made.set_path(path, value)
    if content.get("dataset") is not None:
        if "train.data" in space:
            raise ConfigError("'dataset' is given, but 'train.data' is varied: remove one of them")
        made.train.data = content["dataset"]
    # Trials run in folders of their own.
    made.train.data = _absolute(made.train.data)
    if isinstance(made.experiment.ckpt_path, str):
        made.experiment.ckpt_path = storage.absolute(made.experiment.ckpt_path)
    return made


def _modules(imports: Any) -> list[str]:
    """What `train.imports` names; what cannot be understood is left to the checks."""
    return list(map(str, imports)) if isinstance(imports, list | tuple) else []


def _absolute(data: Any) -> Any:
    """`train.data` with absolute paths; what cannot be understood stays for the checks."""
    if isinstance(data, str):
        return storage.absolute(data) if data else data
    if isinstance(data, Mapping) and isinstance(data.get("path"), str):
        return {**data, "path": storage.absolute(data["path"])}
    return [_absolute(entry) for entry in data] if isinstance(data, list | tuple) else data


def _absolute_choices(dimension: Dimension) -> Dimension:
    if not isinstance(dimension, Choice):
        return dimension
    return replace(dimension, options=tuple(_absolute(data) for data in dimension.options))


def _changes(changes: Any, space: Mapping[str, Dimension]) -> dict[str, Any]:
    if not isinstance(changes or {}, Mapping):
        raise ConfigError("'set' must map config paths to values, such as {train.batch_size: 256}")
    for path in changes or {}:
        if path in space:
            raise ConfigError(f"'{path}' is both set and varied: remove it from 'set' or 'space'")
    return {str(path): value for path, value in (changes or {}).items()}


def _scheduler(content: Any) -> tuple[Any, dict[str, Any]]:
    """A name, or a name with options: ``{asha: {grace_steps: 1000}}``."""
    if not isinstance(content, Mapping):
        return content, {}
    if len(content) != 1:
        raise ConfigError("'scheduler' takes one name, with its options below it")
    name, options = next(iter(content.items()))
    if not isinstance(options or {}, Mapping):
        raise ConfigError(f"'scheduler.{name}' must map options to values")
    return name, dict(options or {})
