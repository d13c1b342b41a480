"""Tables of a run in MLflow: a row for each evaluation, and a row for each episode.

Both are functions of the journal, written again from its beginning in the form of MLflow's
`log_table`. A table is sent again only when it has grown by a quarter, and at the end: so all that
is ever sent is at most six times the last version.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

from raymimic.tracking.metric_names import measure_of

EVALUATIONS = "evaluations.json"
EPISODES = "episodes.json"
# MLflow's pages find tables by this tag, which `log_table` writes too.
TABLES_TAG = "mlflow.loggedArtifacts"

_GROWTH = 1.25
_KEY = ("epoch", "gradient_steps", "environment")
_QUARTILES = ("return_min", "return_q25", "return_median", "return_q75", "return_max")
# In this order; an environment's own criteria of success follow.
_EVALUATION_COLUMNS = (
    *_KEY,
    *("return", "return_ci_low", "return_ci_high", "return_iqm", "return_std"),
    *_QUARTILES,
    *("success_rate", "success_rate_ci_low", "success_rate_ci_high", "horizon"),
    *("episodes", "failed_episodes", "time", "time_episode"),
)
_EPISODE_COLUMNS = (*_KEY, "episode", "seed", "return", "horizon", "success", "error")
# MLflow's pages and pandas read larger integers wrongly, or not at all.
_LARGEST_INT = 2**53

Row = dict[str, Any]


class TableSchedule:
    """Says when a run's tables are sent again."""

    def __init__(self) -> None:
        self._known = 0  # evaluations
        self._sent: int | None = None

    def add(self) -> None:
        """Counts an evaluation."""
        self._known += 1

    def is_due(self, *, at_end: bool = False) -> bool:
        """Whether the tables are to be sent now.

        Args:
            at_end: nothing follows.
        """
        if at_end:  # an earlier process may have left some unsent
            return self._known != self._sent
        return self._known > _GROWTH * (self._sent or 0)

    def sent(self, evaluations: int) -> None:
        """Takes note that tables of so many evaluations were sent."""
        self._known = self._sent = evaluations


@dataclass(frozen=True)
class Tables:
    """The tables of a run.

    Attributes:
        evaluations: number of evaluations in them.
        files: their content, JSON by the file's name; empty where there are no evaluations.
    """

    evaluations: int
    files: dict[str, str]


def tables_of(records: Iterable[Mapping[str, Any]]) -> Tables:
    """The tables of a journal.

    Args:
        records: all of its records, in order.
    """
    evaluations: list[Row] = []
    episodes: list[Row] = []
    known: set[tuple[int, str]] = set()
    for record in records:
        if record["type"] != "evaluation":
            continue
        for row in _evaluation_rows(record):
            # A resumed run logs its earlier evaluations again.
            key = record["epoch"], row["environment"]
            if key not in known:
                known.add(key)
                evaluations.append(row)
                episodes += _episode_rows(record, row["environment"])
    files = {}
    if evaluations:
        files[EVALUATIONS] = _table(_EVALUATION_COLUMNS, evaluations)
    if episodes:
        files[EPISODES] = _table(_EPISODE_COLUMNS, episodes)
    return Tables(len({epoch for epoch, _ in known}), files)


def with_tables(tag: str | None, names: Iterable[str]) -> str:
    """The value of `TABLES_TAG` that names these tables too.

    Args:
        tag: its present value; None: the run has none.
        names: paths of tables within the run.
    """
    try:
        listed = json.loads(tag or "[]")
    except ValueError:
        listed = []
    listed = listed if isinstance(listed, list) else []
    entries = [{"path": name, "type": "table"} for name in names]
    return json.dumps([*listed, *(entry for entry in entries if entry not in listed)])


def _key_of(record: Mapping[str, Any], environment: str) -> Row:
    return dict(zip(_KEY, (record["epoch"], record["step"], environment), strict=True))


def _evaluation_rows(record: Mapping[str, Any]) -> Iterator[Row]:
    """A row for each environment of an evaluation."""
    measures: dict[str, Row] = {}
    for name, value in record["metrics"].items():
        if found := measure_of(name):
            measure, environment = found
            measures.setdefault(environment, {})[measure.lower()] = value
    for environment, values in measures.items():
        played = record["episodes"].get(environment, [])
        row = _key_of(record, environment) | values | {"episodes": len(played) or None}
        if played and all(episode["success"] is None for episode in played):
            row |= {name: None for name in row if name.startswith("success_rate")}
        returns = [e["episode_return"] for e in played if e["episode_return"] is not None]
        yield row | dict(zip(_QUARTILES, _five_numbers(returns), strict=False))


def _five_numbers(values: list[float]) -> list[float]:
    """Least value, quartiles and greatest value; empty where there are none."""
    if not values:
        return []
    middle = quantiles(values, method="inclusive") if len(values) > 1 else values * 3
    return [min(values), *middle, max(values)]


def _episode_rows(record: Mapping[str, Any], environment: str) -> Iterator[Row]:
    for number, episode in enumerate(record["episodes"].get(environment, [])):
        seed = episode["seed"]
        yield _key_of(record, environment) | {
            "episode": number,
            "seed": seed if abs(seed) < _LARGEST_INT else str(seed),
            "return": episode["episode_return"],
            "horizon": episode["length"],
            "success": episode["success"],
            "error": episode["error"],
        }


def _table(columns: tuple[str, ...], rows: list[Row]) -> str:
    more = sorted({name for row in rows for name in row} - set(columns))
    names = [*columns, *more]
    # JSON has neither NaN nor infinity.
    data = [[_finite(row.get(name)) for name in names] for row in rows]
    return json.dumps({"columns": names, "data": data}, allow_nan=False)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
