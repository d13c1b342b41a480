"""What a sweep is: read from a file, checked to the last setting before anything starts."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from raymimic.config.base_config import BaseConfig, config_factory
from raymimic.config.checks import check_config
from raymimic.errors import ConfigError
from raymimic.sweep.checks import (
    SCHEDULER_OPTIONS,
    Mode,
    Scheduler,
    Search,
    check_combinations,
    check_fields,
    check_settings,
    check_values,
    grid_size,
)
from raymimic.sweep.space import (
    Dimension,
    Setting,
    canonical,
    draw,
    grid_settings,
    sample,
    value_name,
)
from raymimic.sweep.sweep_file import fields_of, read_yaml


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
        metric: ``Rollout/Return`` or ``Rollout/Success_Rate``, a mean over the environments or,
            with ``/<environment>`` behind it, of one; or ``Valid/Loss``.
        mode: whether more or less of it is better.
        num_trials: trainings in all: settings times seeds.
        hours: no trial starts after so many, and running ones are stopped; None: no limit.
        episodes: evaluation episodes after which the search ends; None: no limit.
        resources: of each trial.
        max_concurrent: trials at a time; None: what the cluster holds.
        final_episodes: new episodes on which the winner is evaluated; 0: it is not.
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
        check_fields(self)
        check_values(self)
        options = SCHEDULER_OPTIONS[self.scheduler]
        given = {name: self.scheduler_options.get(name) for name in options}
        filled = {n: options[n][0] if value is None else value for n, value in given.items()}
        for name, value in filled.items():
            if value is None:
                filled[name] = self.evaluation_steps
        object.__setattr__(self, "scheduler_options", filled)
        if self.search == "grid":
            object.__setattr__(self, "num_trials", grid_size(self))
        check_combinations(self)
        check_settings(self)

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
        content = read_yaml(path)
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
        fields = fields_of(content, overrides, folder)
        return cls(**{**fields, "resources": Resources(**fields["resources"])})

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
    def environment(self) -> str | None:
        """The one environment whose scores count; None: the mean over all, or no scores."""
        _, _, name = self.metric.removeprefix("Rollout/").partition("/")
        return name if name and self.metric.startswith("Rollout/") else None

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

    def example(self) -> Trial:
        """A trial such as the sweep has, where it has not chosen one yet."""
        rng = np.random.default_rng(self.search_seed)
        settings = self.settings or [draw(self.space, rng)]
        return self.trial(settings[0], self.seeds[0])

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
        for path in setting:
            if not self.space[path].hidden:
                parts += [self.labels[path], value_name(self.space, path, setting)]
        name = "_".join(part for part in parts if part)
        return re.sub(r"[^\w.+-]+", "-", name)[:120] or setting_id(setting)

    # -- time --

    @property
    def steps_per_epoch(self) -> int | None:
        """Gradient steps of an epoch; None where they follow from the data."""
        steps: int | None = self.base_config["experiment"]["epoch_every_n_steps"]
        return steps

    @property
    def evaluation_steps(self) -> int | None:
        """Gradient steps from one score to the next; None where they follow from the data."""
        if self.steps_per_epoch is None:
            return None
        rate: int = self.base_config["experiment"]["rollout"]["rate"]
        return self.steps_per_epoch * (rate if self.metric.startswith("Rollout/") else 1)

    @property
    def total_steps(self) -> int | None:
        """Gradient steps of a whole trial of the base config; None where the data tell."""
        epochs: int = self.base_config["train"]["num_epochs"]
        return None if self.steps_per_epoch is None else epochs * self.steps_per_epoch

    def check_data(self) -> tuple[str, ...]:
        """Opens the data, and finds the environments whose scores the trials report.

        Returns:
            their names.

        Raises:
            ConfigError: `metric` names none of them, or there are none where some are needed.
            DatasetError: the data cannot be read, or lack what the algorithm needs.
        """
        from raymimic.algo import algo_class
        from raymimic.algo.rollout_policy import can_act
        from raymimic.data.loader import inspect_data

        datasets = self.space["train.data"].ends if "train.data" in self.space else (None,)
        names: dict[str, None] = {}
        for data in datasets:
            setting = self.example().setting | ({} if data is None else {"train.data": data})
            config = self._config_of(setting)
            algo = algo_class(config.algo_name, config)
            found = [e.key for e in inspect_data(config, algo.needs).env_metas if e.evaluate]
            names |= dict.fromkeys(found if can_act(algo) else ())
        if not names:
            why = f"{self.algo} plans, but does not act"
            if can_act(algo):
                why = "the data name no environment (env_args); experiment.env names one"
            if self.metric.startswith("Rollout/"):
                raise ConfigError(f"no run reports '{self.metric}': {why}")
            if self.final_episodes:
                raise ConfigError(
                    f"'final_episodes' is {self.final_episodes}, which the winner could not play: "
                    f"{why}; or set it to 0"
                )
        elif self.environment is not None and self.environment not in names:
            raise ConfigError(
                f"no run reports '{self.metric}': the runs are evaluated in {', '.join(names)}"
            )
        return tuple(names)

    def _config_of(self, setting: Setting) -> BaseConfig:
        return self.config_for(self.trial(setting, self.seeds[0]))


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
