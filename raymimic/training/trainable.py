"""Which algorithms a dataset can train, by what each declares that it reads."""

from raymimic.algo import algo_class
from raymimic.config import get_all_registered_configs
from raymimic.config.checks import problems
from raymimic.config.templates import config_named
from raymimic.data.observation_keys import observation_settings
from raymimic.data.reads import BOUNDED_ACTIONS, NEXT_ACTIONS, NEXT_OBS, PAD_MASK
from raymimic.data.summary import DatasetSummary
from raymimic.data.training_data import ROUNDING

# Made of the rest of a file where it lacks them.
_MADE = {BOUNDED_ACTIONS, NEXT_ACTIONS, NEXT_OBS, PAD_MASK}


def obstacles(summary: DatasetSummary) -> dict[str, str]:
    """Says of each algorithm why the dataset cannot train it.

    Each is tried with its default config and the file's own observations.

    Returns:
        A clause by the algorithm's name; empty where it can be trained.
    """
    return {name: _obstacle(name, summary) for name in sorted(get_all_registered_configs())}


def _obstacle(name: str, summary: DatasetSummary) -> str:
    meta = summary.meta
    config = config_named(name)
    with config.values_unlocked():
        config.train.data = str(meta.path)
        for path, keys in observation_settings(config, summary.usable).items():
            config.set_path(path, keys)
    if not set(config.all_obs_keys) <= summary.usable.keys():
        return "the file has no observations that it takes by default"
    if found := problems(config):
        return found[0]
    reads = algo_class(name, config).reads(config)
    for key in ["actions", *sorted(reads.required - _MADE)]:
        lacking = meta.num_demos - summary.held[key]
        if lacking:
            if lacking == meta.num_demos:
                return f"it reads '{key}', and no demo has any"
            return f"it reads '{key}', and {lacking} of {meta.num_demos} demos have none"
    reach = summary.extents["actions"].greatest_magnitude if "actions" in summary.extents else 0.0
    if reads.bounded_actions and reach > 1 + ROUNDING:
        return (
            f"its actions lie in [-1, 1], and the file's reach {reach:.4g}: "
            "--set train.action_config.actions.normalization=min_max"
        )
    return ""
