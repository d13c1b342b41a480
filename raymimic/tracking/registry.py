"""The registry of trackers: which of them a run has.

To add one, write `tracking/<name>.py` with a class and a `make_tracker`, and list it in
`TRACKERS`. A user's own stands in a module that `--import` names, and registers itself:

    @register_tracker("csv")
    def make_tracker(config, run):
        return CsvTracker() if run.kind == "training" else None
"""

from collections.abc import Callable

from raymimic.config import BaseConfig
from raymimic.credentials import masked
from raymimic.errors import ConfigError, RaymimicError
from raymimic.tracking import mlflow_tracker, tensorboard_tracker
from raymimic.tracking.tracker import RunInfo, Tracker
from raymimic.user_modules import own_reason, same_definition

# Makes the tracker of a run; None where the config does not ask for it.
TrackerFactory = Callable[[BaseConfig, RunInfo], Tracker | None]

TRACKERS: dict[str, TrackerFactory] = {
    "mlflow": mlflow_tracker.make_tracker,
    "tensorboard": tensorboard_tracker.make_tracker,
}


def register_tracker(name: str) -> Callable[[TrackerFactory], TrackerFactory]:
    """Registers the decorated factory, which is then asked for a tracker of every run.

    Args:
        name: the tracker's name.

    Raises:
        ConfigError: another tracker has this name.
    """

    def register(factory: TrackerFactory) -> TrackerFactory:
        other = TRACKERS.get(name, factory)
        if not same_definition(other, factory):
            raise ConfigError(
                f"the tracker name '{name}' of {factory.__module__} is taken by "
                f"{other.__module__}: choose another name"
            )
        TRACKERS[name] = factory
        return factory

    return register


def trackers_for(config: BaseConfig, run: RunInfo) -> list[Tracker]:
    """The trackers of a run.

    Args:
        config: the whole config of the training; of a sweep, its base config.
        run: the run.

    Raises:
        ConfigError: the config names an impossible place for records, or a user's factory fails.
    """
    trackers = (_made(name, config, run) for name in TRACKERS)
    return [tracker for tracker in trackers if tracker is not None]


def _made(name: str, config: BaseConfig, run: RunInfo) -> Tracker | None:
    try:
        return TRACKERS[name](config, run)
    except RaymimicError:
        raise
    except Exception as error:  # a user's factory may raise anything
        raise ConfigError(
            f"the tracker '{name}' of module '{TRACKERS[name].__module__}' cannot be made: "
            f"{masked(own_reason(error))}; fix it there"
        ) from error
