"""One trial of a sweep as far as it can be checked before any is trained."""

from collections.abc import Mapping

from raymimic.envs.fit import TriedEnv
from raymimic.sweep.spec.checks import check_data
from raymimic.sweep.spec.sweep_spec import SweepSpec
from raymimic.sweep.spec.terms import measure_of
from raymimic.sweep.trials.trial import trial_config
from raymimic.training.prepare import Prepared, prepare


def rehearse(spec: SweepSpec) -> tuple[Prepared, list[str]]:
    """Checks the data of a sweep, prepares one trial, and tries its environments.

    Returns:
        the trial, and warnings that hold for all trials.

    Raises:
        RaymimicError: the sweep could not run.
    """
    check_data(spec)
    prepared = prepare(trial_config(spec, spec.example()))
    tried = prepared.try_environments()
    return prepared, [*prepared.clipping_warnings(tried), *ranking_warnings(spec, tried)]


def ranking_warnings(spec: SweepSpec, tried: Mapping[str, TriedEnv]) -> list[str]:
    """Warns of a sweep that ranks by return although an environment reports success.

    Args:
        spec: the sweep.
        tried: the environments, by their names in the metrics.
    """
    ranking = [
        env
        for env, found in tried.items()
        if found.knows_success and spec.environment in (None, env)
    ]
    if measure_of(spec.metric) != "Rollout/Return" or not ranking:
        return []
    by_success = spec.metric.replace("Return", "Success_Rate", 1)
    return [
        f"the sweep ranks by return, although success is known ({', '.join(ranking)}), and a long "
        f"failure may have more of it than a quick success: 'metric: {by_success}' ranks by success"
    ]
