"""The winner's score on episodes that the search never saw: the number to quote.

The winner has the best of many noisy scores, so that score is too high on average. Here the best
checkpoint of each of its seeds plays new episodes; no evaluation of any training uses their seeds
(`raymimic.envs.seeds.final_seeds`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import TYPE_CHECKING

from raymimic.rollout.report import NewEpisodes, evaluate_checkpoint
from raymimic.sweep.outcome.result import FinalScore, TrialResult
from raymimic.sweep.outcome.stats import estimate
from raymimic.sweep.spec.sweep_spec import SweepSpec

if TYPE_CHECKING:
    from raymimic.config import BaseConfig


def evaluate_winner(
    spec: SweepSpec,
    config: BaseConfig,
    environments: Mapping[str, str],
    results: Iterable[TrialResult],
    setting_id: str,
) -> FinalScore:
    """Plays new episodes with the best checkpoint of each seed of a setting.

    All checkpoints play the same episodes, in each environment that counts for the metric.

    Args:
        spec: the sweep.
        config: config of any one trial.
        environments: environments of the evaluations: name in metrics to environment name.
        results: results of all trials.
        setting_id: the winning setting.

    Raises:
        RaymimicError: a checkpoint cannot be read or played.
    """
    success = spec.metric.startswith("Rollout/Success_Rate")
    names = [env for key, env in environments.items() if spec.environment in (None, key)]
    played: dict[str, list[float]] = {}
    for result in results:
        if result.setting_id != setting_id or result.best_checkpoint is None:
            continue
        scores = []
        for env in names:
            report = evaluate_checkpoint(
                result.best_checkpoint,
                NewEpisodes(spec.final_episodes, spec.search_seed, env=env),
                num_actors=config.ray.rollout_actors,
                imports=config.train.imports,
            )
            scores.append(
                [float(e.success) for e in report.episodes]
                if success
                else [e.episode_return for e in report.episodes if e.error is None]
            )
        # A score is a mean over environments, so its episodes are such means too. Episodes without
        # a partner, because some failed in another environment, are left out.
        played[str(result.seed)] = [fmean(together) for together in zip(*scores, strict=False)]
    by_seed = {seed: fmean(scores) for seed, scores in played.items()}
    score = estimate(list(by_seed.values()), list(played.values()))
    return FinalScore(
        setting_id=setting_id,
        mean=score.mean,
        low=score.low,
        high=score.high,
        episodes=len(names) * sum(map(len, played.values())),
        by_seed=by_seed,
    )
