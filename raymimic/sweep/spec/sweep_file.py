"""Sweep files: reads YAML or a dictionary into a `SweepSpec`, and checks it once."""

import copy
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from raymimic import storage
from raymimic.checkpoints.sources import absolute_source
from raymimic.config.base_config import (
    BaseConfig,
    config_factory,
    config_from_file,
    import_modules,
)
from raymimic.config.config import leaves
from raymimic.config.limits import shown
from raymimic.config.templates import config_named
from raymimic.data.convert import absolute_dataset
from raymimic.errors import ConfigError
from raymimic.sweep.spec.checks import checked
from raymimic.sweep.spec.space import Choice, Dimension, parse_space
from raymimic.sweep.spec.sweep_spec import SweepSpec, TrialResources
from raymimic.sweep.spec.terms import METRICS, measure_of, refuse_unknown
from raymimic.user_modules import modules_of

KEYS = (
    *("name", "algo", "config", "dataset", "set", "space", "seeds", "search", "search_seed"),
    *("scheduler", "metric", "mode", "budget", "resources", "max_concurrent", "final_episodes"),
)
# Config paths that each trial sets itself: the values that agree with the trial's, and the reason.
TRIALS_OWN: dict[str, tuple[tuple[Any, ...], str]] = {
    "experiment.logging.log_tb": ((False,), "a sweep writes no TensorBoard files"),
    "experiment.render_video": ((False,), "trials make no videos"),
    "experiment.save.every_n_*": ((None,), "a trial keeps its best and its last checkpoint"),
    "experiment.save.epochs": (([], ()), "a trial keeps its best and its last checkpoint"),
    "experiment.save.enabled": ((True,), "a trial keeps its best and its last checkpoint"),
    "meta.*": ((None, [], ()), "the sweep notes its varied settings there"),
}
_CONFIG_SECTIONS = ("experiment", "train", "algo", "observation", "meta", "ray", "mlflow")


class _Loader(yaml.SafeLoader):  # type: ignore[misc] # yaml has no types
    """YAML in which 1e-3 is a number, and a key that comes twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuses a key that comes twice; plain YAML silently drops the first."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key}' comes twice", node.value[i][0].start_mark
                )
        content: dict[Any, Any] = super().construct_mapping(node, deep)
        return content

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Names the place of a value that is not of its kind, such as the date 2026-13-01."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError, OverflowError):
            kind = str(node.tag).rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"{shown(node.value)} is no {kind}", node.start_mark
            ) from None


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
        content = storage.read_bytes(str(path))
        if storage.is_lfs_pointer(content):
            raise ConfigError(f"{path} is not a sweep but {storage.LFS_POINTER}")
        return yaml.load(content.decode(), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(
            f"{path}, line {mark.line + 1}, column {mark.column + 1}: not valid YAML "
            f"({error.problem})"
        ) from None
    except RecursionError:
        raise ConfigError(f"{path}: its sections lie too deep within each other") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    except OSError as error:
        raise ConfigError(f"cannot read sweep {path}: {storage.unread(error)}") from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"cannot read sweep {path}: not a text file; name a file of YAML"
        ) from None


def sweep_from_file(path: str | Path, overrides: Iterable[tuple[str, Any]] = ()) -> SweepSpec:
    """Reads and checks a sweep file (YAML or JSON).

    Args:
        path: the file. A relative `config` in it starts from its folder.
        overrides: see `sweep_from_dict`.

    Raises:
        ConfigError: the file cannot be read or understood, or the sweep is wrong.
    """
    path = storage.expanded(path)
    content = read_yaml(path)
    try:
        return checked(_spec_of(content, overrides, path.parent, path.stem))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def sweep_from_dict(
    content: Mapping[str, Any],
    overrides: Iterable[tuple[str, Any]] = (),
    folder: Path = Path(),
) -> SweepSpec:
    """Reads and checks the content of a sweep file.

    Args:
        content: keys as in docs/sweeps.md. `config` is the path of a JSON config or its content,
            `algo` an algorithm's name; one of them is needed.
        overrides: `(key, value)` pairs, such as `("budget.trials", 8)`; a key such as
            `algo.discount` changes the config.
        folder: where a relative path in `config` starts.

    Raises:
        ConfigError: a key is unknown, or the sweep is wrong.
    """
    return checked(_spec_of(content, overrides, folder))


def _spec_of(
    content: Any,
    overrides: Iterable[tuple[str, Any]],
    folder: Path,
    default_name: str | None = None,
) -> SweepSpec:
    """Reads a sweep file's content; `checked` must follow.

    Args:
        content: the file's content.
        overrides: see `sweep_from_dict`.
        folder: where a relative path in `config` starts.
        default_name: the sweep's name where the file gives neither `name` nor `experiment.name`;
            None: the config's name.

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
    changes = _changes(content.get("set"), space)
    name = content.get("name", changes.get("experiment.name", default_name))
    if name is None:
        name = config.experiment.name
    if isinstance(name, str):  # a check refuses anything else
        config.set_path("experiment.name", name)
    budget = _section(content, "budget", ("trials", "hours", "episodes"))
    resources = {
        "workers": max(1, config.ray.num_workers),
        "cpus_per_worker": config.ray.cpus_per_worker,
        "gpus_per_worker": config.ray.gpus_per_worker,
    }
    given = _section(content, "resources", tuple(resources))
    scheduler, options = _scheduler(content.get("scheduler", "none"))
    seeds = content.get("seeds", [config.train.seed])
    _refuse_overruled(changes, content, given)
    metric = content.get("metric", "Rollout/Return")
    plain = ("search", "search_seed", "max_concurrent", "final_episodes")
    return SweepSpec(
        name=name,
        algo=config.algo_name,
        base_config=json.loads(config.dump()),
        dataset=config.train.data if isinstance(config.train.data, str) else None,
        space=space,
        seeds=tuple(seeds) if isinstance(seeds, list | tuple) else (seeds,),
        scheduler=scheduler,
        scheduler_options=options,
        num_trials=budget.get("trials") or 0,
        hours=budget.get("hours"),
        episodes=budget.get("episodes"),
        metric=metric,
        mode=content.get("mode", METRICS.get(measure_of(str(metric)), "max")),
        resources=TrialResources(**{**resources, **given}),
        **{key: content[key] for key in plain if key in content},
    )


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
            name, _, rest = rest.partition(".")  # a scheduler's options stand below its name
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
    algo, given = content.get("algo"), content.get("config")
    changes = _changes(content.get("set"), space)
    import_modules(modules_of(_nested(changes)))
    if isinstance(given, str):
        config = config_from_file(folder / storage.expanded(given))
    elif isinstance(given, Mapping):
        import_modules(modules_of(given))
        config = config_factory(str(given.get("algo_name")), given)
    elif given is not None:
        raise ConfigError("'config' must be the path of a JSON config, or its content")
    elif algo is None:
        raise ConfigError("nothing to train: give 'algo' (a name) or 'config' (a JSON file)")
    else:
        config = config_named(str(algo))
    if isinstance(given, str | Mapping) and algo not in (None, config.algo_name):
        raise ConfigError(f"'algo' is '{algo}', but 'config' is for {config.algo_name}: remove one")
    for path, value in changes.items():
        config.set_path(path, value)
    if content.get("dataset") is not None:
        if "train.data" in space:
            raise ConfigError("'dataset' is given, but 'train.data' is varied: remove one of them")
        config.train.data = content["dataset"]
    # A trial runs in its own folder, where relative paths would mean others.
    config.train.data = _absolute(config.train.data)
    if isinstance(config.train.allow_links, list):
        config.train.allow_links = [storage.absolute(str(d)) for d in config.train.allow_links]
    if isinstance(config.experiment.ckpt_path, str):
        config.experiment.ckpt_path = absolute_source(config.experiment.ckpt_path)
    return config


def _nested(changes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Groups changes by section: path within the section to value."""
    sections: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        section, _, key = path.partition(".")
        sections.setdefault(section, {})[key] = value
    return sections


def _absolute(data: Any) -> Any:
    """`train.data` with absolute paths; malformed data stay as they are, for the checks."""
    if isinstance(data, str):
        return absolute_dataset(data) if data else data
    if isinstance(data, Mapping) and isinstance(data.get("path"), str):
        return {**data, "path": absolute_dataset(data["path"])}
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


def _refuse_overruled(
    changes: Mapping[str, Any], content: Mapping[str, Any], resources: Mapping[str, Any]
) -> None:
    """Refuses changes under 'set' that the sweep would overrule.

    Args:
        changes: config path to value, as under 'set'.
        content: the sweep file's content.
        resources: the file's `resources`.
    """
    elsewhere = {
        "experiment.name": ("name", content.get("name")),
        "train.data": ("dataset", content.get("dataset")),
        "ray.num_workers": ("resources.workers", resources.get("workers")),
        "ray.cpus_per_worker": ("resources.cpus_per_worker", resources.get("cpus_per_worker")),
        "ray.gpus_per_worker": ("resources.gpus_per_worker", resources.get("gpus_per_worker")),
    }
    for path, value in leaves(changes):
        key, other = elsewhere.get(path, ("", None))
        if other is not None and other != value:
            raise ConfigError(
                f"'set' has '{path}' {value!r}, and '{key}' is {other!r}: remove one of them"
            )
        if path == "train.seed" and "seeds" in content and content["seeds"] != [value]:
            raise ConfigError(
                f"'set' has 'train.seed' {value!r}, but 'seeds' lists the seeds of each setting: "
                "remove it"
            )
        for pattern, (kept, reason) in TRIALS_OWN.items():
            if fnmatchcase(path, pattern) and value not in kept:
                raise ConfigError(f"'set' has '{path}' {value!r}, but {reason}: remove it")


def _scheduler(content: Any) -> tuple[Any, dict[str, Any]]:
    """Name and options of a scheduler, given as a name or as `{asha: {grace_steps: 1000}}`."""
    if not isinstance(content, Mapping):
        return content, {}
    if len(content) != 1:
        raise ConfigError("'scheduler' takes one name, with its options below it")
    name, options = next(iter(content.items()))
    if not isinstance(options or {}, Mapping):
        raise ConfigError(f"'scheduler.{name}' must map options to values")
    return name, dict(options or {})
