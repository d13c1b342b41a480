"""The names of metrics in MLflow: the one table that maps raymimic's names to them.

raymimic names the metrics of an evaluation `Rollout/<measure>/<environment>`, as robomimic does. In
MLflow, whose pages make a section of all but a name's last part, they are
`Rollout/<environment>/<measure>`: one section for each environment. Some measures stand only in the
tables of evaluations (`tables.py`).

MLflow's step is the gradient step. A run that raymimic 0.1.0 began keeps raymimic's names, and the
epoch as its step. A tag on the run in MLflow tells the two apart.
"""

from collections.abc import Callable, Mapping
from typing import Any

from raymimic.tracking.episode_rows import EpisodeRow, knows_success

# A run without this tag was begun by 0.1.0.
NAMES_TAG = "raymimic.metric_names"
NAMES_VERSION = "2"

# Measures of an evaluation that are columns of `evaluations.json`, not metrics. All others, such as
# an environment's own criteria of success, are both.
COLUMNS_ONLY = frozenset(
    {
        *("Return_Median", "Return_IQM", "Return_Std"),
        *("Success_Rate_CI_Low", "Success_Rate_CI_High"),
        *("time", "Time_Episode"),
    }
)

# MLflow's compare page begins with the metric that a run got first.
_FIRST = ("Return", "Success_Rate", "Return_CI_Low", "Return_CI_High", "Horizon")
_THEN = ("Valid/Loss", "Train/Loss")


def measure_of(name: str) -> tuple[str, str] | None:
    """Measure and environment of a metric of an evaluation; None for other metrics.

    Args:
        name: raymimic's name, such as `Rollout/Return/Walker2d-v5`.
    """
    section, _, rest = name.partition("/")
    measure, _, environment = rest.partition("/")
    return (measure, environment) if section == "Rollout" and environment else None


def mlflow_name(name: str) -> str | None:
    """A metric's name in MLflow; None for one that stands only in the tables.

    Args:
        name: raymimic's name, such as `Rollout/Return/gym_pusht/PushT-v0`, which becomes
            `Rollout/gym_pusht:PushT-v0/Return`.
    """
    found = measure_of(name)
    if found is None:
        return name
    measure, environment = found
    if measure in COLUMNS_ONLY:
        return None
    return f"Rollout/{environment.replace('/', ':')}/{measure}"


def points(
    record: Mapping[str, Any], version: str | None, is_logged: Callable[[str], bool]
) -> tuple[int, dict[str, float]]:
    """MLflow's step and metrics of a journal's record.

    Args:
        record: of type `epoch`, `evaluation`, `numbers` or `system`.
        version: value of the run's tag `NAMES_TAG`; None where it has none.
        is_logged: whether the run has a metric already, by its name in MLflow.
    """
    metrics: dict[str, float] = record["metrics"]
    if record["type"] == "numbers":
        return record["epoch"], metrics
    if record["type"] == "system":
        return record["step"], metrics
    if version is None:
        return record["epoch"], {"gradient_steps": record["step"], **metrics}
    episodes: Mapping[str, list[EpisodeRow]] = record.get("episodes", {})
    shown: dict[str, float] = {}
    for name, value in metrics.items():
        there = mlflow_name(name)
        # A metric that has begun goes on: its last value would seem to be today's.
        if there and (_says_something(name, value, episodes) or is_logged(there)):
            shown[there] = value
    return record["step"], {**shown, "epoch": record["epoch"]}


def _says_something(name: str, value: float, episodes: Mapping[str, list[EpisodeRow]]) -> bool:
    """Whether a metric may begin: a success rate needs an environment that knows success."""
    match measure_of(name):
        case ("Success_Rate", environment):
            return knows_success(episodes.get(environment, []))
        case ("Failed_Episodes", _):
            return value > 0
    return True


def rank(name: str) -> int:
    """The place of a metric among those that are sent together; see `_FIRST`.

    Args:
        name: its name in MLflow.
    """
    if name in _THEN:
        return len(_FIRST) + _THEN.index(name)
    section, _, rest = name.partition("/")
    measure = rest.rpartition("/")[2]
    if section == "Rollout" and measure in _FIRST:
        return _FIRST.index(measure)
    return len(_FIRST) + len(_THEN) + (name == "epoch")
