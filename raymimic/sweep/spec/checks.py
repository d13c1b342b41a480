"""Checks of a sweep before it starts: its fields, its space, each setting, the data.

`checked` is the one place that checks a whole spec. It looks at every setting, so it is called
once, when the spec is read or made; a trial's process checks only its own config.
"""

import math
import re
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Any, get_args

import numpy as np

from raymimic.config.base_config import BaseConfig, config_factory
from raymimic.config.checks import check_config, problems
from raymimic.config.limits import perturbable, range_problems, shown, type_problems
from raymimic.config.names import name_problem
from raymimic.credentials import ServerUri
from raymimic.envs.seeds import EPISODES
from raymimic.errors import ConfigError, did_you_mean, perhaps, pip_install
from raymimic.sweep.spec.space import (
    MOST_SETTINGS,
    Grid,
    canonical,
    draw_setting,
    grid_settings,
    sample,
)
from raymimic.sweep.spec.sweep_spec import SweepSpec
from raymimic.sweep.spec.terms import (
    METRICS,
    SCHEDULER_OPTIONS,
    Mode,
    Scheduler,
    Search,
    evaluated_epochs,
    measure_of,
    refuse_unknown,
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
    "meta.*": "the sweep notes its varied settings there",
    "ray.*": "'resources' sets a trial's share",
    "mlflow.*": "the sweep has one place for its records",
    "algo_name": "a sweep is over one algorithm",
}


def checked(spec: SweepSpec) -> SweepSpec:
    """Checks a spec, down to the config of each setting, and completes it.

    Returns:
        the spec with all options of its scheduler, a grid's number of trials, and no password.

    Raises:
        ConfigError: something does not fit, in one sentence.
    """
    check_fields(spec)
    check_values(spec)
    spec = completed(spec)
    check_settings(spec)
    return spec


def completed(spec: SweepSpec) -> SweepSpec:
    """Checks the fields of a spec, but no setting, and fills in those that follow from others.

    A completed spec stays as it is.

    Raises:
        ConfigError: a field is wrong, or does not go with another.
    """
    check_fields(spec)
    options = {
        name: _option(spec, name, default)
        for name, (default, _) in SCHEDULER_OPTIONS[spec.scheduler].items()
    }
    base_config = _without_password(spec.base_config)
    spec = replace(spec, base_config=base_config, scheduler_options=options)
    if spec.search == "grid":
        spec = replace(spec, num_trials=grid_size(spec))
    check_combinations(spec)
    return spec


def _option(spec: SweepSpec, name: str, default: Any) -> Any:
    """The value of a scheduler's option; an evaluation's steps where there is no other."""
    given = spec.scheduler_options.get(name)
    value = default if given is None else given
    return spec.evaluation_steps if value is None else value


def _without_password(config: dict[str, Any]) -> dict[str, Any]:
    """Keeps the tracking server's password out of the config: see `ServerUri`."""
    mlflow = config.get("mlflow")
    if not isinstance(mlflow, dict) or not isinstance(mlflow.get("tracking_uri"), str):
        return config
    return {**config, "mlflow": {**mlflow, "tracking_uri": ServerUri.of(mlflow["tracking_uri"])}}


def check_fields(spec: SweepSpec) -> None:
    """Refuses values of a wrong type or outside their range."""
    if (
        not isinstance(spec.name, str)
        or not re.fullmatch(r"[\w.+-]+", spec.name)
        or name_problem(spec.name)
    ):
        raise ConfigError(
            f"'name' is {shown(spec.name)}: a sweep's folder has this name, so use letters, "
            "digits, _ . + - only, and not too many"
        )
    for key, choices in (("search", Search), ("scheduler", Scheduler), ("mode", Mode)):
        value = getattr(spec, key)
        if value not in get_args(choices):
            hint = did_you_mean(str(value), get_args(choices))
            raise ConfigError(f"'{key}' cannot be {value!r}{hint}")
    _check_metric(spec.metric, spec.mode)
    _whole("budget.trials", spec.num_trials, 0, most=MOST_SETTINGS)
    _number("budget.hours", spec.hours, 0.001, nullable=True)
    _whole("budget.episodes", spec.episodes, 1, nullable=True)
    _whole("resources.workers", spec.resources.workers, 1)
    _number("resources.cpus_per_worker", spec.resources.cpus_per_worker, 0.001)
    _number("resources.gpus_per_worker", spec.resources.gpus_per_worker, 0.0, nullable=True)
    _whole("max_concurrent", spec.max_concurrent, 1, nullable=True)
    _whole("final_episodes", spec.final_episodes, 0, most=EPISODES)
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
    options = SCHEDULER_OPTIONS[spec.scheduler]
    refuse_unknown(f"scheduler.{spec.scheduler}.", spec.scheduler_options, options)
    for option, (default, least) in options.items():
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


def _whole(
    name: str, value: Any, least: int, nullable: bool = False, most: float = math.inf
) -> None:
    if value is None and nullable:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        to = f" to {most:,}" if most < math.inf else ""
        raise ConfigError(f"'{name}' is {shown(value)}: it must be a whole number from {least}{to}")


def _number(name: str, value: Any, least: float, nullable: bool = False) -> None:
    if value is None and nullable:
        return
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain or not least <= value < math.inf:
        raise ConfigError(f"'{name}' is {value!r}: it must be a number from {least:g}")


def check_combinations(spec: SweepSpec) -> None:
    """Refuses fields that do not go together: their trials could not be compared."""
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
            "false: set 'train.cuda' to true or 'resources.gpus_per_worker' to null"
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


def _check_optuna(spec: SweepSpec) -> None:
    if find_spec("optuna") is None:
        raise ConfigError(f"search optuna needs Optuna: {pip_install('tune')}")
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
    sample(spec.space, spec.num_settings, spec.search_seed)  # raises if there are too few


def _check_first_decision(spec: SweepSpec) -> None:
    """Refuses a scheduler whose first decision comes after the trials have ended."""
    for option in ("grace_steps", "interval_steps"):
        steps, total = spec.scheduler_options.get(option), spec.total_steps
        if steps is not None and total is not None and steps >= total:
            raise ConfigError(
                f"scheduler {spec.scheduler} first compares trials after {steps:,} gradient steps "
                f"('{option}'), but they take only {total:,}: lower '{option}', or have trials "
                "evaluated earlier ('experiment.rollout.rate')"
            )


def _check_population(spec: SweepSpec) -> None:
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
    keys = perturbable(type(config_factory(spec.algo)))
    for path, dimension in spec.space.items():
        if path not in keys:
            raise ConfigError(
                f"'space.{path}' cannot change in an algorithm that runs, as scheduler pbt would "
                f"have it: of {spec.algo} it perturbs {', '.join(keys) or 'nothing'}; fix it under "
                "'set', or list it in PERTURBABLE of the config class if it is read at each step"
            )
        if dimension.when or dimension.group is not None:
            raise ConfigError(
                f"'space.{path}' depends on another path, but scheduler pbt perturbs each alone: "
                "remove 'when' and 'together'"
            )


def _check_budget(spec: SweepSpec) -> None:
    if spec.num_trials < 1:
        raise ConfigError(
            f"'budget.trials' is missing: search {spec.search} needs the number of trials, that is "
            "settings times seeds"
        )
    left = spec.num_trials % len(spec.seeds)
    if left:
        below, above = spec.num_trials - left, spec.num_trials - left + len(spec.seeds)
        near = f"{below} or {above}" if below else f"{above}"
        raise ConfigError(
            f"'budget.trials' is {spec.num_trials}, which does not divide over "
            f"{len(spec.seeds)} seeds: make it {near}"
        )


def grid_size(spec: SweepSpec) -> int:
    """The number of trials of a grid.

    Raises:
        ConfigError: the budget is smaller, or the space is no grid.
    """
    size = len(grid_settings(spec.space)) * len(spec.seeds)
    if 0 < spec.num_trials < size:
        raise ConfigError(
            f"the grid has {size} trials ({size // len(spec.seeds)} settings with "
            f"{len(spec.seeds)} seeds), more than the {spec.num_trials} of 'budget.trials': thin "
            "the grid, or set 'search' to random"
        )
    return size


def check_values(spec: SweepSpec) -> None:
    """Refuses paths that the config lacks and values outside its limits, dimension by dimension."""
    for path in spec.space:
        for pattern, reason in _NOT_VARIED.items():
            if fnmatchcase(path, pattern):
                raise ConfigError(f"'space.{path}' cannot be varied: {reason}")
    of_base = _limit_problems(config_factory(spec.algo, spec.base_config))
    for problem in of_base:
        if not any(f"'{path}'" in problem for path in spec.space):
            raise ConfigError(problem)
    for path, dimension in spec.space.items():
        for value in dimension.ends:
            config = config_factory(spec.algo, spec.base_config)
            try:
                config.set_path(path, value)
            except ConfigError as error:
                raise ConfigError(f"'space': {error}") from error
            of_value = [problem for problem in _limit_problems(config) if problem not in of_base]
            if of_value:
                raise ConfigError(f"'space.{path}': {of_value[0]}")


def _limit_problems(config: BaseConfig) -> list[str]:
    return type_problems(config) or range_problems(config)


def check_settings(spec: SweepSpec) -> None:
    """Refuses settings whose config is wrong, and trainings without a score."""
    rng = np.random.default_rng(spec.search_seed)
    # Optuna's settings are unknown yet: check some that it may choose.
    settings = spec.settings or [draw_setting(spec.space, rng) for _ in range(32)]
    if spec.settings and len({canonical(setting) for setting in settings}) < len(settings):
        raise ConfigError("'space' holds one setting twice: remove it from the lists")
    for setting in settings:
        try:
            config = spec.config_for(spec.trial(setting, spec.seeds[0]))
            check_config(config)
        except ConfigError as error:
            if str(error) in problems(config_factory(spec.algo, spec.base_config)):
                raise  # every setting has this mistake
            written = ", ".join(f"{path}={value!r}" for path, value in setting.items())
            raise ConfigError(f"with {written}: {error}") from error
        _check_score(spec.metric, config)


def check_data(spec: SweepSpec) -> tuple[str, ...]:
    """Opens the data, and finds the environments whose scores the trials report.

    Returns:
        their names.

    Raises:
        ConfigError: `metric` names none of them, or there are none where some are needed.
        DatasetError: the data cannot be read, or lack a group that the algorithm reads.
    """
    from raymimic.algo import algo_class
    from raymimic.algo.rollout_policy import can_act
    from raymimic.data.training_data import inspect_data
    from raymimic.training.language import embeddings_for

    datasets = spec.space["train.data"].ends if "train.data" in spec.space else (None,)
    names: dict[str, None] = {}
    for data in datasets:
        setting = spec.example().setting | ({} if data is None else {"train.data": data})
        config = spec.config_for(spec.trial(setting, spec.seeds[0]))
        algo = algo_class(config.algo_name, config)
        found = inspect_data(config, algo.reads(config), embeddings_for(config))
        envs = [env.key for env in found.eval_envs if env.evaluate]
        names |= dict.fromkeys(envs if can_act(algo) else ())
    if not names:
        why = f"{spec.algo} plans, but does not act"
        if can_act(algo):
            why = "the data name no environment (env_args); experiment.env names one"
        if spec.metric.startswith("Rollout/"):
            raise ConfigError(f"no run reports '{spec.metric}': {why}")
        if spec.final_episodes:
            raise ConfigError(
                f"'final_episodes' is {spec.final_episodes}, which the winner could not play: "
                f"{why}; or set it to 0"
            )
    elif spec.environment is not None and spec.environment not in names:
        raise ConfigError(
            f"no run reports '{spec.metric}': the runs are evaluated in {', '.join(names)}"
            f"{perhaps(spec.environment, names)}"
        )
    return tuple(names)


def _check_metric(metric: Any, mode: Mode) -> None:
    wanted = METRICS.get(measure_of(str(metric)))
    if wanted is None:
        raise ConfigError(
            f"'metric' cannot be {metric!r}{perhaps(str(metric), METRICS)}: a sweep ranks by "
            f"the metric of a training's best checkpoint, which is {', '.join(METRICS)}, or "
            "Rollout/Return/<environment>"
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
