"""The trials and the cost of a sweep, before it runs: `raymimic tune --dry-run`."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from raymimic.config.base_config import BaseConfig
from raymimic.sweep.outcome.table import describe
from raymimic.sweep.spec.sweep_spec import SweepSpec
from raymimic.sweep.spec.terms import evaluated_epochs
from raymimic.terminal import duration

if TYPE_CHECKING:
    from raymimic.algo import Algo
    from raymimic.data.language import Language
    from raymimic.data.training_data import TrainData

logger = logging.getLogger(__name__)

# How long gradient steps, and episodes in each environment, are measured [s].
_TRY_S = 2.0
# Steps before the measurement starts.
_WARM_UP = 3


@dataclass(frozen=True)
class Speed:
    """The speed of one worker of a trial on this machine.

    Attributes:
        device: `CPU` or `GPU`.
        steps_per_s: gradient steps per second.
        env_steps_per_s: steps per second in each environment, all episodes of an evaluation
            together.
        samples: number of training samples.
    """

    device: str
    steps_per_s: float
    env_steps_per_s: dict[str, float]
    samples: int


@dataclass(frozen=True)
class Cost:
    """The cost of a sweep at one setting's speed; early stopping and a budget reduce it.

    Attributes:
        trials: number of trainings.
        gradient_steps: gradient steps of all trainings.
        episodes: evaluation episodes of the search, in each environment.
        trial_s: duration of the shortest and the longest training, evaluations included [s].
        total_s: duration of all trainings and of the winner's evaluation, one after the other [s].
    """

    trials: int
    gradient_steps: int
    episodes: int
    trial_s: tuple[float, float]
    total_s: float


@dataclass(frozen=True)
class CostEstimate:
    """A sweep's cost, estimated from a measurement.

    Attributes:
        spec: the sweep.
        speed: speed measured here, with the setting of `spec.example()`.
        cost: cost of the sweep at that speed.
    """

    spec: SweepSpec
    speed: Speed
    cost: Cost

    def to_dict(self) -> dict[str, Any]:
        """The estimate and the trials, as plain values."""
        spec = self.spec
        return {
            "name": spec.name,
            "algo": spec.algo,
            "search": spec.search,
            "scheduler": spec.scheduler,
            "resources": asdict(spec.resources),
            "trials": [asdict(trial) | {"trial_id": trial.trial_id} for trial in spec.trials()],
            "measured": asdict(self.speed),
            "cost": asdict(self.cost),
        }

    def lines(self) -> list[str]:
        """The trials and their cost, as lines of text."""
        spec, speed, cost = self.spec, self.speed, self.cost
        lines = [
            f"sweep {spec.name}: {spec.algo}, {spec.search} search, scheduler {spec.scheduler}"
        ]
        for trial in spec.trials():
            lines.append(f"  {trial.trial_id}: {describe(spec, trial.setting)}")
        if not spec.settings:
            seeds = ", ".join(map(str, spec.seeds))
            lines.append(f"  {spec.num_settings} settings of Optuna's choice, with seeds {seeds}")
        shortest, longest = (duration(seconds) for seconds in cost.trial_s)
        span = longest if shortest == longest else f"{shortest} to {longest}"
        rates = "".join(f", {r:,.0f} steps/s in {e}" for e, r in speed.env_steps_per_s.items())
        return [
            *lines,
            f"{cost.trials} trials, each with {_resources_text(spec)}: {self._most}"
            f"{cost.gradient_steps:,} gradient steps, {cost.episodes:,} evaluation episodes in "
            f"each environment, and {spec.final_episodes} new ones for each seed of the winner",
            f"measured here on the {self._device}, one worker, with one of the settings: "
            f"{_rate(speed.steps_per_s)} gradient steps/s{rates}",
            f"so {self._most}about {span} a trial, {duration(cost.total_s)} of one worker in all"
            f"{self._at_once}, evaluation included{self._limits}",
        ]

    @property
    def _most(self) -> str:
        return "at most " if self.spec.scheduler in ("asha", "median") else ""

    @property
    def _device(self) -> str:
        wanted = self.spec.base_config["train"]["cuda"] and self.speed.device != "GPU"
        return f"{self.speed.device} for want of a GPU" if wanted else self.speed.device

    @property
    def _at_once(self) -> str:
        at_once = min(self.spec.max_concurrent or 1, self.spec.num_trials)
        if at_once == 1:
            return ""
        return f", {duration(self.cost.total_s / at_once)} with {at_once} trials at a time"

    @property
    def _limits(self) -> str:
        spec = self.spec
        limits = [f"{spec.hours:g} hours"] if spec.hours is not None else []
        limits += [f"{spec.episodes:,} episodes"] if spec.episodes is not None else []
        return f"; the budget ends it after {' or '.join(limits)}" if limits else ""


def estimate_cost(spec: SweepSpec) -> CostEstimate:
    """Measures a few steps and episodes of one setting in this process, and estimates the cost.

    Args:
        spec: the sweep.

    Raises:
        RaymimicError: the sweep could not run.
    """
    from raymimic.sweep.trials.rehearsal import rehearse

    prepared, warnings = rehearse(spec)
    for warning in warnings:
        logger.warning(warning)
    speed = measure(prepared.config, prepared.envs, prepared.data.language)
    return CostEstimate(spec, speed, cost_of(spec, speed))


def cost_of(spec: SweepSpec, speed: Speed) -> Cost:
    """The cost of a sweep at a speed, with episodes of full length."""
    settings = spec.settings or [spec.example().setting] * spec.num_settings
    configs = [spec.config_for(spec.trial(setting, spec.seeds[0])) for setting in settings]
    rollout = configs[0].experiment.rollout
    episode_s = sum(rollout.horizon / rate for rate in speed.env_steps_per_s.values())
    steps = [_steps(config, speed.samples) for config in configs]
    episodes = [len(evaluated_epochs(config)) * rollout.n for config in configs]
    seconds = [s / speed.steps_per_s + e * episode_s for s, e in zip(steps, episodes, strict=True)]
    seeds = len(spec.seeds)
    return Cost(
        trials=spec.num_trials,
        gradient_steps=seeds * sum(steps),
        episodes=seeds * sum(episodes),
        trial_s=(min(seconds), max(seconds)),
        total_s=seeds * (sum(seconds) + spec.final_episodes * episode_s),
    )


def _steps(config: BaseConfig, samples: int) -> int:
    per_epoch = config.experiment.epoch_every_n_steps or samples // config.train.batch_size
    return int(config.train.num_epochs * per_epoch)


def _resources_text(spec: SweepSpec) -> str:
    resources = spec.resources
    gpus = resources.gpus_per_worker
    if gpus is None:
        gpu = ", and 1 GPU where the cluster has any" if spec.base_config["train"]["cuda"] else ""
    else:
        gpu = f" and {gpus:g} GPU" if gpus else ""
    workers = "1 worker" if resources.workers == 1 else f"{resources.workers} workers, each"
    return f"{workers} of {resources.cpus_per_worker:g} CPU{gpu}"


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"


# -- measuring --


def measure(
    config: BaseConfig, envs: Mapping[str, Mapping[str, Any]], language: Language | None = None
) -> Speed:
    """Measures for some seconds how fast this process trains and plays.

    Args:
        config: config of a trial.
        envs: environments of the evaluations, by name.
        language: embeddings of instructions.

    Raises:
        RaymimicError: the algorithm cannot train on the data.
    """
    import torch

    from raymimic.algo import algo_class, algo_factory
    from raymimic.data.training_data import make_loaders
    from raymimic.tensors import get_torch_device
    from raymimic.training.worker import fill_in_schedule_lengths

    device = get_torch_device(try_to_use_cuda=config.train.cuda)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.ray.threads_per_worker)
    try:
        reads = algo_class(config.algo_name, config).reads(config)
        data = make_loaders(config, reads, device, language=language)
        fill_in_schedule_lengths(config, data.train.num_steps)

        def algo_on(place: torch.device) -> Algo:
            return algo_factory(
                config.algo_name,
                config,
                obs_key_shapes=data.shape_meta["all_shapes"],
                ac_dim=data.shape_meta["ac_dim"],
                device=place,
            )

        steps_per_s = _steps_per_s(algo_on(device), data)
        # Evaluations run on the CPU.
        player = algo_on(torch.device("cpu"))
        env_steps_per_s = {
            name: _env_steps_per_s(player, data, config, env) for name, env in envs.items()
        }
    finally:
        torch.set_num_threads(threads)
    name = "GPU" if device.type == "cuda" else "CPU"
    return Speed(name, steps_per_s, env_steps_per_s, data.train.num_samples)


class _EnoughError(Exception):
    """Ends the measurement."""


def _steps_per_s(algo: Algo, data: TrainData) -> float:
    import torch

    from raymimic.training.epoch import EpochRunner
    from raymimic.training.grad_sync import GradientSync

    ends: list[float] = []

    def on_step(step: int) -> None:
        if algo.device.type == "cuda":
            torch.cuda.synchronize(algo.device)
        ends.append(time.perf_counter())
        if len(ends) > _WARM_UP and ends[-1] - ends[0] > _TRY_S:
            raise _EnoughError

    runner = EpochRunner(algo, GradientSync(1), data.obs_normalization_stats)
    with suppress(_EnoughError):
        for epoch in count(1):
            runner.run(data.train, epoch, on_step=on_step)
    timed = ends[_WARM_UP - 1 :]
    return (len(timed) - 1) / (timed[-1] - timed[0])


def _env_steps_per_s(
    algo: Algo, data: TrainData, config: BaseConfig, env_meta: Mapping[str, Any]
) -> float:
    from raymimic.algo.rollout_policy import RolloutPolicy
    from raymimic.errors import EnvError
    from raymimic.rollout.episodes import Rules, run_episodes
    from raymimic.rollout.stats import failures

    policy = RolloutPolicy(
        algo,
        data.obs_normalization_stats,
        data.action_normalization_stats,
        data.info.language,
    )
    rollout = config.experiment.rollout
    num_envs = min(config.envs_per_actor, rollout.n)
    horizon, rate, begin = 8, 0.0, time.perf_counter()
    # With a slow policy, a few steps must suffice.
    while horizon <= 2 * rollout.horizon and time.perf_counter() - begin < _TRY_S:
        episodes = run_episodes(
            policy,
            env_meta,
            range(num_envs),
            Rules(min(horizon, rollout.horizon), rollout.terminate_on_success, config.use_goals),
            num_envs,
        )
        if all(e.error is not None for e in episodes):
            raise EnvError(f"environment '{env_meta['env_name']}': {failures(episodes)}")
        rate = sum(e.length for e in episodes) / max(e.seconds for e in episodes)
        horizon *= 2
    return rate
