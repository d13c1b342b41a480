"""What a sweep is: read from a file, checked to the last setting before anything starts."""

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import yaml

from raymimic.config.base_config import (
    BaseConfig,
    config_factory,
    config_from_file,
    import_modules,
)
from raymimic.config.checks import check_config
from raymimic.config.limits import range_problems, type_problems
from raymimic.errors import ConfigError, did_you_mean
from raymimic.sweep.space import (
    Dimension,
    Grid,
    Setting,
    canonical,
    draw,
    grid_settings,
    parse_space,
    sample,
)

Search = Literal["grid", "random", "optuna"]
Scheduler = Literal["none", "asha", "median", "pbt"]
Mode = Literal["max", "min"]

# What an evaluation measures in each environment (`raymimic.rollout.stats.summarize`).
METRICS = (
    *("Return", "Return_Median", "Return_IQM", "Return_Std", "Return_CI_Low", "Return_CI_High"),
    *("Success_Rate", "Success_Rate_CI_Low", "Success_Rate_CI_High"),
    *("Horizon", "time", "Time_Episode"),
)

# Paths that no sweep varies, and why.
_NOT_VARIED = {
    "train.seed": "'seeds' lists the seeds of each setting",
    "train.output_dir": "each trial has a folder of its own",
    "train.imports": "all trials import the same modules",
    "experiment.name": "each trial has a name of its own",
    "experiment.env*": "scores in different environments cannot be compared",
    "experiment.additional_envs": "scores in different environments cannot be compared",
    "experiment.rollout.*": "scores of different evaluations cannot be compared",
    "experiment.logging.*": "it changes no score",
    "experiment.render*": "it changes no score",
    "meta.*": "the sweep notes there what it varied",
    "ray.*": "'resources' says what a trial gets",
    "mlflow.*": "the sweep has one place for its records",
    "algo_name": "a sweep is over one algorithm",
}

# What population based training may change in an algorithm that runs.
PERTURBED = ("algo.alpha", "algo.*target_tau", "algo.*learning_rate.initial")

# Each scheduler's options with their defaults and lower bounds. A number of gradient steps that is
# None is that of one evaluation.
_SCHEDULER_OPTIONS: dict[str, dict[str, tuple[Any, float]]] = {
    "none": {},
    "asha": {"grace_steps": (None, 1), "reduction_factor": (3, 2)},
    "median": {"grace_steps": (None, 1), "min_samples": (3, 1)},
    "pbt": {"interval_steps": (None, 1), "quantile": (0.25, 0.0), "resample": (0.25, 0.0)},
}


@dataclass(frozen=True)
class Resources:
    """What one trial gets.

    Attributes:
        workers: processes that train it together.
        cpus_per_worker: CPUs of each, in fractions too.
        gpus_per_worker: GPUs of each, in fractions too; None: 1 with `train.cuda` and GPUs in the
            cluster, else 0.
    """

    workers: int = 1
    cpus_per_worker: float = 1.0
    gpus_per_worker: float | None = None


@dataclass(frozen=True)
class Trial:
    """One training of a sweep.

    Attributes:
        setting_id: of the setting, the same for all its seeds and in every session.
        setting: config path to value.
        seed: of the training.
    """

    setting_id: str
    setting: Setting
    seed: int

    @property
    def trial_id(self) -> str:
        """Distinct within the sweep, and fit for a folder's name."""
        return f"{self.setting_id}_seed{self.seed}"


@dataclass(frozen=True)
class Cost:
    """The most that a sweep can take; early stopping makes it less.

    Attributes:
        trials: trainings.
        gradient_steps: of all together; None where an epoch's length follows from the data.
        episodes: evaluation episodes of the search, in one environment.
    """

    trials: int
    gradient_steps: int | None
    episodes: int


@dataclass(frozen=True)
class SweepSpec:
    """A sweep, checked when it is made.

    Attributes:
        name: of the sweep's folder and of its MLflow run.
        algo: the algorithm's name.
        base_config: whole config that the settings are put into.
        dataset: path or URI of the data, or None where `train.data` of the base config says more.
        space: config path to its dimension.
        seeds: of the trainings of each setting.
        search: how settings are chosen.
        scheduler: how trials are stopped early, or perturbed.
        scheduler_options: all of the scheduler's options.
        metric: ``Rollout/<measure>``, a mean over the environments, or
            ``Rollout/<measure>/<environment>``.
        mode: whether more or less of it is better.
        num_trials: trainings in all: settings times seeds.
        hours: no trial starts after so many, and running ones are stopped; None: no limit.
        episodes: evaluation episodes after which the search ends; None: no limit.
        resources: of each trial.
        max_concurrent: trials at a time; None: what the cluster holds.
        final_episodes: new episodes on which the winner is evaluated.
        search_seed: of the random draws of settings, Optuna's included.

    Raises:
        ConfigError: something does not fit, in one sentence.
    """

    name: str
    algo: str
    base_config: dict[str, Any]
    space: dict[str, Dimension]
    dataset: str | None = None
    seeds: tuple[int, ...] = (1,)
    search: Search = "grid"
    scheduler: Scheduler = "none"
    scheduler_options: dict[str, Any] = field(default_factory=dict)
    metric: str = "Rollout/Return"
    mode: Mode = "max"
    num_trials: int = 0
    hours: float | None = None
    episodes: int | None = None
    resources: Resources = field(default_factory=Resources)
    max_concurrent: int | None = None
    final_episodes: int = 50
    search_seed: int = 0

    def __post_init__(self) -> None:
        _check_fields(self)
        options = _SCHEDULER_OPTIONS[self.scheduler]
        given = {name: self.scheduler_options.get(name) for name in options}
        filled = {n: options[n][0] if value is None else value for n, value in given.items()}
        for name, value in filled.items():
            if value is None:
                filled[name] = self._steps_of_one_evaluation(name)
        object.__setattr__(self, "scheduler_options", filled)
        _check_combinations(self)
        _check_values(self)
        if self.search == "grid":
            object.__setattr__(self, "num_trials", _grid_size(self))
        _check_settings(self)

    # -- reading and writing --

    @classmethod
    def from_file(cls, path: str | Path, overrides: Iterable[tuple[str, Any]] = ()) -> "SweepSpec":
        """Reads a YAML (or JSON) file; see `from_dict`.

        Args:
            path: of the file. A `config` that it names lies relative to it.
            overrides: see `from_dict`.

        Raises:
            ConfigError: the file cannot be read or understood, or `from_dict` complains.
        """
        path = Path(path).expanduser()
        try:
            content = yaml.load(path.read_text(), Loader=_Loader)
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{path}: not valid YAML ({reason})") from None
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise ConfigError(f"cannot read sweep {path}: {reason}") from None
        try:
            if isinstance(content, dict):
                content.setdefault("name", path.stem)
            return cls.from_dict(content, overrides, path.parent)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    @classmethod
    def from_dict(
        cls,
        content: Mapping[str, Any],
        overrides: Iterable[tuple[str, Any]] = (),
        folder: Path = Path(),
    ) -> "SweepSpec":
        """Makes a sweep from the content of a sweep file.

        Args:
            content: keys as in docs/sweeps.md. `config` is the path of a JSON config or its
                content, `algo` an algorithm's name; one of them is needed.
            overrides: ``(key, value)`` pairs, such as ``("budget.trials", 8)``; a key such as
                ``algo.discount`` is one of the config.
            folder: what a relative path in `config` starts from.

        Raises:
            ConfigError: a key is unknown, or a value cannot be what it is.
        """
        if not isinstance(content, Mapping):
            raise ConfigError(f"a sweep is a mapping with the keys {', '.join(_KEYS)}")
        content = _overridden(content, overrides)
        _refuse_unknown("", content, _KEYS)
        space = parse_space(content.get("space"))
        config = _base_config(content, space, folder)
        budget = _section(content, "budget", ("trials", "hours", "episodes"))
        name = content.get("name", config.algo_name)
        if isinstance(name, str):  # else `_check_fields` has its say
            config.set_path("experiment.name", name)
        scheduler, options = _scheduler(content.get("scheduler", "none"))
        seeds = content.get("seeds", [config.train.seed])
        return cls(
            name=name,
            algo=config.algo_name,
            base_config=json.loads(config.dump()),
            dataset=config.train.data if isinstance(config.train.data, str) else None,
            space=space,
            seeds=tuple(seeds) if isinstance(seeds, list | tuple) else (seeds,),
            search=content.get("search", "grid"),
            scheduler=scheduler,
            scheduler_options=options,
            metric=content.get("metric", "Rollout/Return"),
            mode=content.get("mode", "max"),
            num_trials=budget.get("trials") or 0,
            hours=budget.get("hours"),
            episodes=budget.get("episodes"),
            resources=_resources(content, config),
            max_concurrent=content.get("max_concurrent"),
            final_episodes=content.get("final_episodes", 50),
            search_seed=content.get("search_seed", 0),
        )

    def to_dict(self) -> dict[str, Any]:
        """The sweep in plain values, as `from_dict` reads them."""
        return {
            "name": self.name,
            "config": self.base_config,
            "space": {path: dimension.to_dict() for path, dimension in self.space.items()},
            "seeds": list(self.seeds),
            "search": self.search,
            "search_seed": self.search_seed,
            "scheduler": {self.scheduler: self.scheduler_options},
            "metric": self.metric,
            "mode": self.mode,
            "budget": {
                "trials": self.num_trials,
                "hours": self.hours,
                "episodes": self.episodes,
            },
            "resources": asdict(self.resources),
            "max_concurrent": self.max_concurrent,
            "final_episodes": self.final_episodes,
        }

    # -- trials --

    @property
    def num_settings(self) -> int:
        """How many settings are tried, each with all seeds."""
        return self.num_trials // len(self.seeds)

    @cached_property
    def settings(self) -> list[Setting]:
        """The settings that are known beforehand: all, or none where Optuna chooses them."""
        if self.search == "grid":
            return grid_settings(self.space)
        if self.search == "random":
            return sample(self.space, self.num_settings, self.search_seed)
        return []

    def trials(self) -> list[Trial]:
        """The trials that are known beforehand.

        All settings come with the first seed, then all with the second: a sweep that runs out of
        its budget has tried each setting equally often.
        """
        return [
            trial for seed in self.seeds for s in self.settings for trial in [self.trial(s, seed)]
        ]

    def trial(self, setting: Setting, seed: int) -> Trial:
        """The trial of a setting with a seed."""
        return Trial(setting_id(setting), setting, seed)

    def config_for(self, trial: Trial) -> BaseConfig:
        """The config of a trial, whole and checked.

        Raises:
            ConfigError: the setting does not fit together.
        """
        labels = self.labels
        config = config_factory(self.algo, self.base_config)
        with config.values_unlocked():
            for path, value in trial.setting.items():
                config.set_path(path, value)
            config.train.seed = trial.seed
            config.experiment.name = f"{self.name_of(trial.setting)}_seed{trial.seed}"
            config.meta.hp_keys = [labels[path] for path in trial.setting]
            config.meta.hp_values = list(trial.setting.values())
            config.ray.num_workers = self.resources.workers
            config.ray.cpus_per_worker = self.resources.cpus_per_worker
            config.ray.gpus_per_worker = self.resources.gpus_per_worker
        check_config(config)
        return config

    @cached_property
    def labels(self) -> dict[str, str]:
        """A short name for each path of the space."""
        return labels(self.space)

    def name_of(self, setting: Mapping[str, Any]) -> str:
        """A setting in words, fit for a folder's name: ``alpha_2.5_target_tau_0.005``."""
        parts = []
        for path, value in setting.items():
            dimension = self.space[path]
            if not dimension.hidden:
                parts += [self.labels[path], dimension.name_of(value)]
        name = "_".join(part for part in parts if part)
        return re.sub(r"[^\w.+-]+", "-", name)[:120] or setting_id(setting)

    # -- time --

    @property
    def steps_per_epoch(self) -> int | None:
        """Gradient steps of an epoch; None where they follow from the data."""
        steps: int | None = self.base_config["experiment"]["epoch_every_n_steps"]
        return steps

    @property
    def total_steps(self) -> int | None:
        """Gradient steps of a whole trial of the base config; None where the data tell."""
        epochs: int = self.base_config["train"]["num_epochs"]
        return None if self.steps_per_epoch is None else epochs * self.steps_per_epoch

    def cost(self) -> Cost:
        """The most that the search can take."""
        if not self.settings:
            return _cost_of(config_factory(self.algo, self.base_config), self.num_trials)
        costs = [_cost_of(self._config_of(s), len(self.seeds)) for s in self.settings]
        steps = [cost.gradient_steps for cost in costs]
        return Cost(
            trials=self.num_trials,
            gradient_steps=None if None in steps else sum(s for s in steps if s is not None),
            episodes=sum(cost.episodes for cost in costs),
        )

    def check_data(self) -> tuple[str, ...]:
        """Opens the data, and finds the environments whose scores the trials report.

        Returns:
            their names.

        Raises:
            ConfigError: `metric` names none of them, or there are none.
            DatasetError: the data cannot be read, or lack what the algorithm needs.
        """
        from raymimic.algo import algo_class
        from raymimic.algo.rollout_policy import can_act
        from raymimic.data.loader import inspect_data

        datasets = self.space["train.data"].ends if "train.data" in self.space else (None,)
        names: dict[str, None] = {}
        for data in datasets:
            setting = self.settings[0] if self.settings else {}
            config = self._config_of(setting | ({} if data is None else {"train.data": data}))
            algo = algo_class(config.algo_name, config)
            if not can_act(algo):
                raise ConfigError(
                    f"no run reports '{self.metric}': {config.algo_name} plans, but does not act"
                )
            found = [e.key for e in inspect_data(config, algo.needs).env_metas if e.evaluate]
            env = self.metric.split("/", 2)[2] if self.metric.count("/") > 1 else None
            if not found:
                raise ConfigError(
                    f"no run reports '{self.metric}': the data name no environment (env_args); "
                    "experiment.env names one"
                )
            if env is not None and env not in found:
                raise ConfigError(
                    f"no run reports '{self.metric}': the runs are evaluated in "
                    f"{', '.join(found)}{did_you_mean(env, found) if len(found) > 1 else ''}"
                )
            names |= dict.fromkeys(found)
        return tuple(names)

    def _config_of(self, setting: Setting) -> BaseConfig:
        return self.config_for(self.trial(setting, self.seeds[0]))

    def _steps_of_one_evaluation(self, option: str) -> int:
        if self.steps_per_epoch is None:
            raise ConfigError(
                f"'scheduler' counts gradient steps, which 'experiment.epoch_every_n_steps' "
                f"leaves to the data: give a number there, or set '{option}' of {self.scheduler}"
            )
        rate: int = self.base_config["experiment"]["rollout"]["rate"]
        return rate * self.steps_per_epoch


def setting_id(setting: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that equal settings share, in every session."""
    return hashlib.sha256(canonical(setting).encode()).hexdigest()[:8]


def labels(space: Mapping[str, Dimension]) -> dict[str, str]:
    """A short name for each path: its own label, else its last parts as far as they tell it apart.

    ``algo.optim_params.actor.learning_rate.initial`` is ``learning_rate``, or
    ``actor.learning_rate`` beside the critic's.
    """
    parts = {path: re.sub(r"\.(initial|enabled)$", "", path).split(".") for path in space}
    found = {}
    for path, own in parts.items():
        length = 1
        while length < len(own) and any(
            other[-length:] == own[-length:] for p, other in parts.items() if p != path
        ):
            length += 1
        label = space[path].label
        found[path] = ".".join(own[-length:]) if label is None else label
    return found


def evaluated_epochs(config: BaseConfig) -> list[int]:
    """The epochs after which a training is evaluated."""
    rollout = config.experiment.rollout
    epochs = range(rollout.warmstart + 1, config.train.num_epochs + 1)
    return [e for e in epochs if e % rollout.rate == 0] if rollout.enabled else []


def _cost_of(config: BaseConfig, trials: int) -> Cost:
    steps = config.experiment.epoch_every_n_steps
    evaluations = len(evaluated_epochs(config))
    return Cost(
        trials=trials,
        gradient_steps=None if steps is None else trials * config.train.num_epochs * steps,
        episodes=trials * evaluations * config.experiment.rollout.n,
    )


# -- reading --

_KEYS = (
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
        if not isinstance(section, dict):
            raise ConfigError(f"there is no '{key}', as '{head}' is {section!r}")
        section[rest] = value
    return changed


def _refuse_unknown(section: str, content: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in content:
        if key not in known:
            raise ConfigError(f"unknown key '{section}{key}'{did_you_mean(str(key), known)}")


def _section(content: Mapping[str, Any], name: str, known: Iterable[str]) -> Mapping[str, Any]:
    section = content.get(name) or {}
    if not isinstance(section, Mapping):
        raise ConfigError(f"'{name}' must be a mapping with the keys {', '.join(known)}")
    _refuse_unknown(f"{name}.", section, known)
    return section


def _base_config(
    content: Mapping[str, Any], space: Mapping[str, Dimension], folder: Path
) -> BaseConfig:
    algo, config = content.get("algo"), content.get("config")
    changes = _section_of_changes(content.get("set"), space)
    import_modules(changes.get("train.imports", ()))
    if isinstance(config, str):
        made = config_from_file(folder / Path(config).expanduser())
    elif isinstance(config, Mapping):
        import_modules((config.get("train") or {}).get("imports", ()))
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
        made.train.data = content["dataset"]
    return made


def _section_of_changes(changes: Any, space: Mapping[str, Dimension]) -> dict[str, Any]:
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


def _resources(content: Mapping[str, Any], config: BaseConfig) -> Resources:
    given = _section(content, "resources", tuple(Resources.__dataclass_fields__))
    return Resources(
        workers=given.get("workers", max(1, config.ray.num_workers)),
        cpus_per_worker=given.get("cpus_per_worker", config.ray.cpus_per_worker),
        gpus_per_worker=given.get("gpus_per_worker", config.ray.gpus_per_worker),
    )


# -- checks --


def _check_fields(spec: SweepSpec) -> None:
    """Refuses values of a wrong type or outside their range."""
    if not isinstance(spec.name, str) or not re.fullmatch(r"[\w.+-]+", spec.name):
        raise ConfigError(
            f"'name' is {spec.name!r}: a sweep's folder has this name, so use letters, digits, "
            "_ . + - only"
        )
    for key, choices in (("search", Search), ("scheduler", Scheduler), ("mode", Mode)):
        value = getattr(spec, key)
        if value not in get_args(choices):
            hint = did_you_mean(str(value), get_args(choices))
            raise ConfigError(f"'{key}' cannot be {value!r}{hint}")
    _whole("budget.trials", spec.num_trials, 0)
    _number("budget.hours", spec.hours, 0.0, nullable=True)
    _whole("budget.episodes", spec.episodes, 1, nullable=True)
    _whole("resources.workers", spec.resources.workers, 1)
    _number("resources.cpus_per_worker", spec.resources.cpus_per_worker, 0.001)
    _number("resources.gpus_per_worker", spec.resources.gpus_per_worker, 0.0, nullable=True)
    _whole("max_concurrent", spec.max_concurrent, 1, nullable=True)
    _whole("final_episodes", spec.final_episodes, 1)
    _whole("search_seed", spec.search_seed, 0)
    if not spec.seeds:
        raise ConfigError("'seeds' is empty: list at least one, such as [1]")
    for seed in spec.seeds:
        _whole("seeds", seed, 0)
    if len(set(spec.seeds)) < len(spec.seeds):
        raise ConfigError(f"'seeds' is {list(spec.seeds)}: list each once")
    known = _SCHEDULER_OPTIONS[spec.scheduler]
    _refuse_unknown(f"scheduler.{spec.scheduler}.", spec.scheduler_options, known)
    for option, (default, least) in known.items():
        value = spec.scheduler_options.get(option)
        name = f"scheduler.{spec.scheduler}.{option}"
        if value is None:
            continue
        if isinstance(default, float):
            _number(name, value, least)
        else:
            _whole(name, value, int(least))
    if spec.scheduler_options.get("quantile", 0.25) > 0.5:
        raise ConfigError("'scheduler.pbt.quantile' is the share that is replaced: at most 0.5")
    if spec.scheduler_options.get("resample", 0.25) > 1.0:
        raise ConfigError("'scheduler.pbt.resample' is a probability: at most 1")


def _whole(name: str, value: Any, least: int, nullable: bool = False) -> None:
    if value is None and nullable:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"'{name}' is {value!r}: it must be a whole number from {least}")


def _number(name: str, value: Any, least: float, nullable: bool = False) -> None:
    if value is None and nullable:
        return
    if not isinstance(value, int | float) or isinstance(value, bool) or not value >= least:
        raise ConfigError(f"'{name}' is {value!r}: it must be a number from {least:g}")


def _check_combinations(spec: SweepSpec) -> None:
    """Refuses what would compare unlike things."""
    if spec.scheduler != "none" and len(spec.seeds) > 1:
        reason = {
            "asha": "would stop a setting's unlucky seeds and keep its lucky ones",
            "median": "would stop a setting's unlucky seeds and keep its lucky ones",
            "pbt": "changes settings while they run, so that no two seeds share one",
        }[spec.scheduler]
        raise ConfigError(
            f"'seeds' lists {len(spec.seeds)}, but scheduler {spec.scheduler} {reason}: give one "
            "seed, or scheduler none"
        )
    if spec.search == "optuna":
        _check_optuna(spec)
    elif spec.search == "grid":
        grid_settings(spec.space)  # says which path is a continuum
    if spec.scheduler == "pbt":
        _check_population(spec)
    lengths = {"train.num_epochs", "experiment.epoch_every_n_steps"} & set(spec.space)
    if spec.scheduler != "none" and lengths:
        raise ConfigError(
            f"'{min(lengths)}' is varied, but scheduler {spec.scheduler} compares trials before "
            "their end, where those of different length are at different points: fix it under "
            "'set', or scheduler none"
        )
    if spec.search != "grid":
        _check_budget(spec)


def _check_optuna(spec: SweepSpec) -> None:
    if find_spec("optuna") is None:
        raise ConfigError("search optuna needs Optuna: pip install 'raymimic[tune]'")
    grids = [path for path, dimension in spec.space.items() if isinstance(dimension, Grid)]
    if grids:
        raise ConfigError(
            f"'space.{grids[0]}' is a grid, but Optuna chooses values itself: make it a choice"
        )
    if spec.scheduler == "pbt":
        raise ConfigError(
            "scheduler pbt searches by itself, from settings drawn at random: set 'search' to "
            "random"
        )


def _check_population(spec: SweepSpec) -> None:
    for path, dimension in spec.space.items():
        if not any(fnmatchcase(path, pattern) for pattern in PERTURBED):
            raise ConfigError(
                f"'space.{path}' cannot change in an algorithm that runs, as scheduler pbt would "
                f"have it: it perturbs {', '.join(PERTURBED)}; fix it under 'set'"
            )
        if dimension.when or dimension.group is not None:
            raise ConfigError(
                f"'space.{path}' depends on another path, but scheduler pbt perturbs each alone: "
                "remove 'when' and 'together'"
            )


def _check_budget(spec: SweepSpec) -> None:
    if spec.num_trials < 1:
        raise ConfigError(
            f"'budget.trials' is missing: search {spec.search} needs to know how many trainings "
            "there shall be"
        )
    left = spec.num_trials % len(spec.seeds)
    if left:
        below, above = spec.num_trials - left, spec.num_trials - left + len(spec.seeds)
        near = f"{below} or {above}" if below else f"{above}"
        raise ConfigError(
            f"'budget.trials' is {spec.num_trials}, which does not divide over "
            f"{len(spec.seeds)} seeds: make it {near}"
        )
    if spec.scheduler == "pbt" and spec.num_trials < 2:
        raise ConfigError("scheduler pbt needs a population: 'budget.trials' of at least 2")


def _grid_size(spec: SweepSpec) -> int:
    """The number of trials of a grid, which the budget must hold."""
    size = len(grid_settings(spec.space)) * len(spec.seeds)
    if 0 < spec.num_trials < size:
        raise ConfigError(
            f"the grid has {size} trials ({size // len(spec.seeds)} settings with "
            f"{len(spec.seeds)} seeds), more than the {spec.num_trials} of 'budget.trials': thin "
            "the grid, or set 'search' to random"
        )
    return size


def _check_values(spec: SweepSpec) -> None:
    """Refuses paths and values that the config does not have, one dimension at a time."""
    for path in spec.space:
        for pattern, reason in _NOT_VARIED.items():
            if fnmatchcase(path, pattern):
                raise ConfigError(f"'space.{path}' cannot be varied: {reason}")
    known = _limit_problems(config_factory(spec.algo, spec.base_config))
    for path, dimension in spec.space.items():
        for value in dimension.ends:
            config = config_factory(spec.algo, spec.base_config)
            try:
                config.set_path(path, value)
            except ConfigError as error:
                raise ConfigError(f"'space': {error}") from error
            found = [problem for problem in _limit_problems(config) if problem not in known]
            if found:
                raise ConfigError(f"'space.{path}': {found[0]}")


def _limit_problems(config: BaseConfig) -> list[str]:
    return type_problems(config) or range_problems(config)


def _check_settings(spec: SweepSpec) -> None:
    """Refuses settings whose parts do not fit together, and trainings without a score."""
    _check_metric(spec.metric)
    settings = spec.settings or _examples(spec)
    for setting in settings:
        try:
            config = spec.config_for(spec.trial(setting, spec.seeds[0]))
        except ConfigError as error:
            written = ", ".join(f"{path}={value!r}" for path, value in setting.items())
            raise ConfigError(f"with {written}: {error}") from error
        if not evaluated_epochs(config):
            rollout = config.experiment.rollout
            why = (
                f"'experiment.rollout' asks for no evaluation in {config.train.num_epochs} "
                f"epochs: lower its 'rate' ({rollout.rate}) or 'warmstart' ({rollout.warmstart})"
                if rollout.enabled
                else "'experiment.rollout.enabled' is false"
            )
            raise ConfigError(f"no run reports '{spec.metric}': {why}")


def _examples(spec: SweepSpec) -> list[Setting]:
    """Settings such as Optuna may choose."""
    rng = np.random.default_rng(spec.search_seed)
    return [draw(spec.space, rng) for _ in range(32)]


def _check_metric(metric: Any) -> None:
    names = [f"Rollout/{name}" for name in METRICS]
    if not isinstance(metric, str) or not metric.startswith("Rollout/"):
        raise ConfigError(
            f"'metric' is {metric!r}: settings are ranked by what evaluations measure"
            f"{did_you_mean(str(metric), names)}"
        )
    measure = metric.split("/")[1]
    if measure not in METRICS and not re.fullmatch(r".+_Success_Rate", measure):
        raise ConfigError(f"no run reports '{metric}'{did_you_mean(metric, names)}")


# -- configs of robomimic's generator --
