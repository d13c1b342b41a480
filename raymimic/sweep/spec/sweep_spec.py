"""A sweep's spec: plain data, with the settings, trials and configs that follow from it."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from raymimic.config.base_config import BaseConfig, config_factory
from raymimic.sweep.spec.space import (
    Dimension,
    Setting,
    canonical,
    draw_setting,
    grid_settings,
    sample,
    value_name,
)
from raymimic.sweep.spec.terms import Mode, Scheduler, Search


@dataclass(frozen=True)
class TrialResources:
    """Resources of one trial.

    Attributes:
        workers: processes that train it together.
        cpus_per_worker: CPUs of each worker; fractions are allowed.
        gpus_per_worker: GPUs of each worker; fractions are allowed. None: 1 with `train.cuda` and
            GPUs in the cluster, else 0.
    """

    workers: int = 1
    cpus_per_worker: float = 1.0
    gpus_per_worker: float | None = None


@dataclass(frozen=True)
class Trial:
    """One training of a sweep.

    Attributes:
        setting_id: id of the setting, the same for all its seeds and in every session.
        setting: config path to value.
        seed: seed of the training.
    """

    setting_id: str
    setting: Setting
    seed: int

    @property
    def trial_id(self) -> str:
        """The trial's id, unique within the sweep; it serves as a folder's name."""
        return f"{self.setting_id}_seed{self.seed}"


@dataclass(frozen=True)
class SweepSpec:
    """The spec of a sweep.

    Plain data: neither making one nor `dataclasses.replace` checks anything.
    `raymimic.sweep.spec.sweep_file` reads specs and checks them once; `checks.checked` checks a
    spec that was made by hand.

    Attributes:
        name: name of the sweep's folder and of its MLflow run.
        algo: the algorithm's name.
        base_config: the whole config, into which settings are put.
        space: config path to its dimension.
        dataset: path or URI of the data; None where `train.data` of the base config is a list.
        seeds: seeds of each setting's trainings.
        search: how settings are chosen.
        scheduler: how trials are stopped early, or perturbed.
        scheduler_options: the scheduler's options; a checked spec has all of them.
        metric: `Rollout/Return` or `Rollout/Success_Rate`, a mean over the environments or, with
            `/<environment>` behind it, the value of one; or `Valid/Loss`.
        mode: `max` if a greater metric is better, else `min`.
        num_trials: number of trainings: settings times seeds.
        hours: limit of the search [h]: no trial starts later, and running ones are stopped. None:
            no limit.
        episodes: number of evaluation episodes that ends the search; None: no limit.
        resources: resources of each trial.
        max_concurrent: trials at a time; None: as many as the cluster holds.
        final_episodes: new episodes on which the winner is evaluated; 0: no such evaluation.
        search_seed: seed of the random draws of settings, Optuna's included.
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
    resources: TrialResources = field(default_factory=TrialResources)
    max_concurrent: int | None = None
    final_episodes: int = 50
    search_seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain values, which `sweep_file.sweep_from_dict` reads."""
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
        """The environment whose scores count; None: the mean over all, or no rollouts."""
        _, _, name = self.metric.removeprefix("Rollout/").partition("/")
        return name if name and self.metric.startswith("Rollout/") else None

    @property
    def num_settings(self) -> int:
        """Number of settings, each of which is tried with all seeds."""
        return self.num_trials // len(self.seeds)

    @cached_property
    def settings(self) -> list[Setting]:
        """All settings; an empty list where Optuna will choose them."""
        if self.search == "grid":
            return grid_settings(self.space)
        if self.search == "random":
            return sample(self.space, self.num_settings, self.search_seed)
        return []

    def trials(self) -> list[Trial]:
        """All trials; an empty list where Optuna will choose the settings.

        All settings come with the first seed, then all with the second: a sweep that runs out of
        its budget has tried each setting equally often.
        """
        return [self.trial(setting, seed) for seed in self.seeds for setting in self.settings]

    def trial(self, setting: Setting, seed: int) -> Trial:
        """The trial of a setting with a seed."""
        return Trial(setting_id(setting), setting, seed)

    def example(self) -> Trial:
        """Any one trial, to check data and measure speed with."""
        rng = np.random.default_rng(self.search_seed)
        settings = self.settings or [draw_setting(self.space, rng)]
        return self.trial(settings[0], self.seeds[0])

    def config_for(self, trial: Trial) -> BaseConfig:
        """The whole config of a trial.

        The config is not checked here: reading the sweep has checked every setting, and the
        trial's own process checks its config before it trains.

        Raises:
            ConfigError: the config has no such key as the setting names.
        """
        config = config_factory(self.algo, self.base_config)
        with config.values_unlocked():
            for path, value in trial.setting.items():
                config.set_path(path, value)
            config.train.seed = trial.seed
            config.experiment.name = f"{self.name_of(trial.setting)}_seed{trial.seed}"
            config.meta.hp_keys = [self.labels[path] for path in trial.setting]
            config.meta.hp_values = list(trial.setting.values())
            config.ray.num_workers = self.resources.workers
            config.ray.cpus_per_worker = self.resources.cpus_per_worker
            config.ray.gpus_per_worker = self.resources.gpus_per_worker
        return config

    @cached_property
    def labels(self) -> dict[str, str]:
        """A short name for each path of the space."""
        return labels(self.space)

    def name_of(self, setting: Mapping[str, Any]) -> str:
        """A setting in words that serve as a folder's name: `alpha_2.5_target_tau_0.005`."""
        parts = []
        for path in setting:
            if not self.space[path].hidden:
                parts += [self.labels[path], value_name(self.space, path, setting)]
        name = "_".join(part for part in parts if part)
        name = re.sub(r"[^\w.+-]+", "-", name).encode()[:120].decode(errors="ignore")
        return name or setting_id(setting)

    # -- time --

    @property
    def steps_per_epoch(self) -> int | None:
        """Gradient steps of an epoch; None where the data determine them."""
        steps: int | None = self.base_config["experiment"]["epoch_every_n_steps"]
        return steps

    @property
    def evaluation_steps(self) -> int | None:
        """Gradient steps from one score to the next; None where the data determine them."""
        if self.steps_per_epoch is None:
            return None
        rate: int = self.base_config["experiment"]["rollout"]["rate"]
        return self.steps_per_epoch * (rate if self.metric.startswith("Rollout/") else 1)

    @property
    def total_steps(self) -> int | None:
        """Gradient steps of a whole trial of the base config; None where the data do."""
        epochs: int = self.base_config["train"]["num_epochs"]
        return None if self.steps_per_epoch is None else epochs * self.steps_per_epoch


def setting_id(setting: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that equal settings share, in every session."""
    return hashlib.sha256(canonical(setting).encode()).hexdigest()[:8]


def labels(space: Mapping[str, Dimension]) -> dict[str, str]:
    """A short name for each path: its label, else as many of its last parts as tell it apart.

    `algo.optim_params.actor.learning_rate.initial` is `learning_rate`, or `actor.learning_rate`
    beside the critic's.
    """
    parts = {path: re.sub(r"\.(initial|enabled)$", "", path).split(".") for path in space}
    names = {}
    for path, words in parts.items():
        length = 1
        while length < len(words) and any(
            other[-length:] == words[-length:] for p, other in parts.items() if p != path
        ):
            length += 1
        label = space[path].label
        names[path] = ".".join(words[-length:]) if label is None else label
    return names
