"""What a sweep may be: everything that can be said against one before it starts."""

import math
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from raymimic.config.base_config import BaseConfig, config_factory
from raymimic.config.checks import problems
from raymimic.config.limits import range_problems, type_problems
from raymimic.errors import ConfigError, did_you_mean
from raymimic.sweep.space import Grid, canonical, draw, grid_settings, sample

if TYPE_CHECKING:
    from raymimic.sweep.spec import SweepSpec

Search = Literal["grid", "random", "optuna"]
Scheduler = Literal["none", "asha", "median", "pbt"]
Mode = Literal["max", "min"]

# What a training keeps its best checkpoint by, and so what a sweep can rank by: the winner is that
# checkpoint.
METRICS: dict[str, Mode] = {
    "Rollout/Return": "max",
    "Rollout/Success_Rate": "max",
    "Valid/Loss": "min",
}

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
SCHEDULER_OPTIONS: dict[str, dict[str, tuple[Any, float]]] = {
    "none": {},
    "asha": {"grace_steps": (None, 1), "reduction_factor": (3, 2)},
    "median": {"grace_steps": (None, 1), "min_samples": (3, 1)},
    "pbt": {"interval_steps": (None, 1), "quantile": (0.25, 0.01), "resample": (0.25, 0.0)},
}


def evaluated_epochs(config: BaseConfig) -> list[int]:
    """The epochs after which a training is evaluated."""
    rollout = config.experiment.rollout
    epochs = range(rollout.warmstart + 1, config.train.num_epochs + 1)
    return [e for e in epochs if e % rollout.rate == 0] if rollout.enabled else []


def refuse_unknown(section: str, content: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuses keys that are not known.

    Args:
        section: what stands before the key in the message, with its dot.
        content: whose keys are looked at.
        known: the keys that may be there.
    """
    for key in content:
        if key not in known:
            raise ConfigError(f"unknown key '{section}{key}'{did_you_mean(str(key), known)}")


def check_fields(spec: "SweepSpec") -> None:
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
    _check_metric(spec.metric, spec.mode)
    _whole("budget.trials", spec.num_trials, 0)
    _number("budget.hours", spec.hours, 0.001, nullable=True)
    _whole("budget.episodes", spec.episodes, 1, nullable=True)
    _whole("resources.workers", spec.resources.workers, 1)
    _number("resources.cpus_per_worker", spec.resources.cpus_per_worker, 0.001)
    _number("resources.gpus_per_worker", spec.resources.gpus_per_worker, 0.0, nullable=True)
    _whole("max_concurrent", spec.max_concurrent, 1, nullable=True)
    _whole("final_episodes", spec.final_episodes, 0)
    _whole("search_seed", spec.search_seed, 0)
    if not spec.seeds:
        raise ConfigError("'seeds' is empty: list at least one, such as [1]")
    for seed in spec.seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ConfigError(f"'seeds' has {seed!r}: list whole numbers from 0, such as [1, 2]")
    if len(set(spec.seeds)) < len(spec.seeds):
        raise ConfigError(f"'seeds' is {list(spec.seeds)}: list each once")
    if spec.scheduler != "none" and spec.total_steps is None:
        raise ConfigError(
            f"scheduler {spec.scheduler} counts gradient steps, which "
            "'experiment.epoch_every_n_steps' leaves to the data: give a number there, under 'set'"
        )
    known = SCHEDULER_OPTIONS[spec.scheduler]
    refuse_unknown(f"scheduler.{spec.scheduler}.", spec.scheduler_options, known)
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
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain or not least <= value < math.inf:
        raise ConfigError(f"'{name}' is {value!r}: it must be a number from {least:g}")


def check_combinations(spec: "SweepSpec") -> None:
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
    if spec.resources.gpus_per_worker and not spec.base_config["train"]["cuda"]:
        raise ConfigError(
            f"'resources.gpus_per_worker' is {spec.resources.gpus_per_worker}, but 'train.cuda' is "
            "false: set the one to null or the other to true"
        )
    lengths = {"train.num_epochs", "experiment.epoch_every_n_steps"} & set(spec.space)
    if spec.scheduler != "none" and lengths:
        raise ConfigError(
            f"'{min(lengths)}' is varied, but scheduler {spec.scheduler} compares trials before "
            "their end, where those of different length are at different points: fix it under "
            "'set', or scheduler none"
        )
    if spec.search != "grid":
        _check_budget(spec)
    if spec.search == "optuna":
        _check_optuna(spec)
    if spec.scheduler == "pbt":
        _check_population(spec)
    _check_first_decision(spec)


def _check_optuna(spec: "SweepSpec") -> None:
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
    sample(spec.space, spec.num_settings, spec.search_seed)  # says whether there are as many


def _check_first_decision(spec: "SweepSpec") -> None:
    """Refuses a scheduler that would decide nothing before trials end by themselves."""
    for option in ("grace_steps", "interval_steps"):
        steps, total = spec.scheduler_options.get(option), spec.total_steps
        if steps is not None and total is not None and steps >= total:
            raise ConfigError(
                f"scheduler {spec.scheduler} first compares trials after {steps:,} gradient steps "
                f"('{option}'), but they take only {total:,}: lower '{option}', or have trials "
                "evaluated earlier ('experiment.rollout.rate')"
            )


def _check_population(spec: "SweepSpec") -> None:
    if spec.num_settings < 2:
        raise ConfigError("scheduler pbt needs a population: at least 2 settings")
    if not spec.metric.startswith("Rollout/"):
        raise ConfigError(
            f"scheduler pbt copies checkpoints that were evaluated, so 'metric' cannot be "
            f"'{spec.metric}': use Rollout/Return or Rollout/Success_Rate"
        )
    interval, steps = spec.scheduler_options["interval_steps"], spec.evaluation_steps
    if interval % (steps or interval):
        raise ConfigError(
            f"'scheduler.pbt.interval_steps' is {interval}: trials are compared where they are "
            f"evaluated, so make it a multiple of {steps} gradient steps "
            "(experiment.rollout.rate times experiment.epoch_every_n_steps)"
        )
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


def _check_budget(spec: "SweepSpec") -> None:
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


def grid_size(spec: "SweepSpec") -> int:
    """The number of trials of a grid, which the budget must hold."""
    size = len(grid_settings(spec.space)) * len(spec.seeds)
    if 0 < spec.num_trials < size:
        raise ConfigError(
            f"the grid has {size} trials ({size // len(spec.seeds)} settings with "
            f"{len(spec.seeds)} seeds), more than the {spec.num_trials} of 'budget.trials': thin "
            "the grid, or set 'search' to random"
        )
    return size


def check_values(spec: "SweepSpec") -> None:
    """Refuses paths and values that the config does not have, one dimension at a time."""
    for path in spec.space:
        for pattern, reason in _NOT_VARIED.items():
            if fnmatchcase(path, pattern):
                raise ConfigError(f"'space.{path}' cannot be varied: {reason}")
    known = _limit_problems(config_factory(spec.algo, spec.base_config))
    for problem in known:
        if not any(f"'{path}'" in problem for path in spec.space):
            raise ConfigError(problem)
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


def check_settings(spec: "SweepSpec") -> None:
    """Refuses settings whose parts do not fit together, and trainings without a score."""
    rng = np.random.default_rng(spec.search_seed)
    # Where Optuna is to choose, some that it may choose.
    settings = spec.settings or [draw(spec.space, rng) for _ in range(32)]
    if spec.settings and len({canonical(setting) for setting in settings}) < len(settings):
        raise ConfigError("'space' holds one setting twice: remove it from the lists")
    mistakes = problems(config_factory(spec.algo, spec.base_config))
    for setting in settings:
        try:
            config = spec.config_for(spec.trial(setting, spec.seeds[0]))
        except ConfigError as error:
            if str(error) in mistakes:
                raise  # it is not the setting's
            written = ", ".join(f"{path}={value!r}" for path, value in setting.items())
            raise ConfigError(f"with {written}: {error}") from error
        _check_score(spec.metric, config)


def measure_of(metric: str) -> str:
    """A metric without the environment: ``Rollout/Return`` of ``Rollout/Return/Walker2d-v5``."""
    return "/".join(metric.split("/")[:2]) if metric.startswith("Rollout/") else metric


def _check_metric(metric: Any, mode: Mode) -> None:
    wanted = METRICS.get(measure_of(str(metric)))
    if wanted is None:
        raise ConfigError(
            f"'metric' cannot be {metric!r}: a sweep ranks by what a training keeps its best "
            f"checkpoint by, which is {', '.join(METRICS)}, or Rollout/Return/<environment>"
        )
    if mode != wanted:
        raise ConfigError(f"'mode' is {mode}, but of '{metric}' the {wanted} is best: remove it")


def _check_score(metric: str, config: BaseConfig) -> None:
    """Refuses a training that reports no score."""
    why = None
    if metric == "Valid/Loss":
        if not config.experiment.validate:
            why = "'experiment.validate' is false"
    elif not config.experiment.rollout.enabled:
        why = "'experiment.rollout.enabled' is false"
    elif not evaluated_epochs(config):
        rollout = config.experiment.rollout
        why = (
            f"'experiment.rollout' asks for no evaluation in {config.train.num_epochs} epochs: "
            f"lower its 'rate' ({rollout.rate}) or 'warmstart' ({rollout.warmstart})"
        )
    if why is not None:
        raise ConfigError(f"no run reports '{metric}': {why}")
