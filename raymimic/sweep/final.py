"""The winner's score on episodes that the search never saw: the number to quote.

The score by which a setting won is the best of many noisy ones, and so too good. Here the best
checkpoint of each of its seeds plays new episodes, whose seeds no evaluation of any training has
(`raymimic.envs.seeds.final_seeds`).
"""

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import TYPE_CHECKING

from raymimic.rollout.report import evaluate_checkpoint
from raymimic.sweep.result import FinalScore, TrialResult
from raymimic.sweep.spec import SweepSpec
from raymimic.sweep.stats import estimate

if TYPE_CHECKING:
    from raymimic.config import BaseConfig


def evaluate_winner(
    spec: SweepSpec,
    config: "BaseConfig",
    environments: Mapping[str, str],
    results: Iterable[TrialResult],
    setting_id: str,
) -> FinalScore:
    """Plays new episodes with the best checkpoint of each seed of a setting.

    All checkpoints play the same episodes, in each environment that counts for the metric.

    Args:
        spec: the sweep.
        config: of any of its trials.
        environments: names of those that trials are evaluated in, by the name that metrics carry.
        results: of all trials.
        setting_id: the winner.

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
                episodes=spec.final_episodes,
                num_actors=config.ray.rollout_actors,
                seed=spec.search_seed,
                env=env,
                imports=config.train.imports,
            )
            scores.append(
                [float(e.success) if success else e.episode_return for e in report.episodes]
            )
        # A score is a mean over environments, which are not to be drawn against each other.
        played[str(result.seed)] = [fmean(one_each) for one_each in zip(*scores, strict=True)]
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
