"""The space of a sweep: dimensions over config paths, and the settings in it.

The kinds are Ray Tune's, with their meaning: `randint` leaves its upper end out, and `quniform`
takes multiples of its step, both ends included. A *setting* maps config paths to values; a path
whose condition (`when`) does not hold is absent from it.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from raymimic.errors import ConfigError, did_you_mean
from raymimic.sweep.spec.tune_space import from_tune

Setting = dict[str, Any]
Space = Mapping[str, "Dimension"]

MOST_SETTINGS = 100_000
"""More settings than anybody trains, and few enough to be listed."""

# A space counts as exhausted after so many repeated draws for one new setting.
_TRIES = 1000
# The share of a number by which a perturbation moves it.
_FIFTH = 0.2


@dataclass(frozen=True)
class Dimension:
    """One config path's values.

    Attributes:
        when: values of other paths under which this path is varied.
        label: the path's name in names of trials; None: the path's last part.
        hidden: whether names of trials leave the path out.
    """

    KIND: ClassVar[str]

    when: dict[str, tuple[Any, ...]] = field(default_factory=dict, kw_only=True)
    label: str | None = field(default=None, kw_only=True)
    hidden: bool = field(default=False, kw_only=True)

    @property
    def values(self) -> tuple[Any, ...] | None:
        """All values in order; None for a continuum."""
        return None

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values to validate: if these are valid, every value is."""
        raise NotImplementedError

    @property
    def group(self) -> str | None:
        """Name of the group whose dimensions take their values together, first with first."""
        return None

    def draw(self, rng: np.random.Generator) -> Any:
        """Draws a value."""
        raise NotImplementedError

    def suggest(self, path: str, trial: Any) -> Any:
        """Lets an Optuna trial choose a value."""
        raise NotImplementedError

    def perturb(self, value: Any, rng: np.random.Generator) -> Any:
        """Moves a value up or down: a number by a fifth, a list's value to its neighbour."""
        raise NotImplementedError

    def name_of(self, value: Any) -> str:
        """The name of a value in names of trials."""
        if isinstance(value, list | tuple):
            return "_".join(map(str, value))
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    def arguments(self) -> Any:
        """The arguments that a sweep file writes after the kind."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The dimension as a sweep file writes it."""
        options: dict[str, Any] = {self.KIND: self.arguments()}
        if self.when:
            options["when"] = {path: list(values) for path, values in self.when.items()}
        if self.label is not None:
            options["label"] = self.label
        if self.hidden:
            options["hidden"] = True
        return options


@dataclass(frozen=True)
class Choice(Dimension):
    """A list of values, of which one is drawn.

    Attributes:
        options: the values, of any type that JSON knows.
        together: name of the group that takes its values together.
        value_names: a name for each value, in names of trials.
    """

    KIND: ClassVar[str] = "choice"

    options: tuple[Any, ...]
    together: str | None = field(default=None, kw_only=True)
    value_names: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def values(self) -> tuple[Any, ...]:  # noqa: D102
        return self.options

    @property
    def ends(self) -> tuple[Any, ...]:  # noqa: D102
        return self.options

    @property
    def group(self) -> str | None:  # noqa: D102
        return self.together

    def draw(self, rng: np.random.Generator) -> Any:  # noqa: D102
        return self.options[int(rng.integers(len(self.options)))]

    def suggest(self, path: str, trial: Any) -> Any:  # noqa: D102
        # By index, because Optuna stores only numbers and texts, and a value here may be a list.
        return self.options[trial.suggest_categorical(path, list(range(len(self.options))))]

    def perturb(self, value: Any, rng: np.random.Generator) -> Any:  # noqa: D102
        index = self.options.index(value) + _up_or_down(rng)
        return self.options[min(max(index, 0), len(self.options) - 1)]

    def arguments(self) -> Any:  # noqa: D102
        return list(self.options)

    def to_dict(self) -> dict[str, Any]:  # noqa: D102
        options = super().to_dict()
        if self.together is not None:
            options["together"] = self.together
        if self.value_names:
            options["value_names"] = list(self.value_names)
        return options


@dataclass(frozen=True)
class Grid(Choice):
    """A list of values, each of which is tried with all values of the other grids."""

    KIND: ClassVar[str] = "grid"


@dataclass(frozen=True)
class Uniform(Dimension):
    """Real numbers from `low` to `high`, all equally likely."""

    KIND: ClassVar[str] = "uniform"

    low: float
    high: float

    @property
    def ends(self) -> tuple[Any, ...]:  # noqa: D102
        return self.low, self.high

    def draw(self, rng: np.random.Generator) -> Any:  # noqa: D102
        return float(rng.uniform(self.low, self.high))

    def suggest(self, path: str, trial: Any) -> Any:  # noqa: D102
        return trial.suggest_float(path, self.low, self.high)

    def perturb(self, value: Any, rng: np.random.Generator) -> Any:  # noqa: D102
        return self._inside(value * (1 + _FIFTH * _up_or_down(rng)))

    def _inside(self, value: float) -> float:
        return min(max(value, self.low), self.high)

    def arguments(self) -> Any:  # noqa: D102
        return [self.low, self.high]


@dataclass(frozen=True)
class LogUniform(Uniform):
    """Positive numbers whose logarithms are equally likely."""

    KIND: ClassVar[str] = "loguniform"

    def draw(self, rng: np.random.Generator) -> Any:  # noqa: D102
        # A rounding error may move the exponential of a logarithm outside.
        drawn = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        return self._inside(float(drawn))

    def suggest(self, path: str, trial: Any) -> Any:  # noqa: D102
        return trial.suggest_float(path, self.low, self.high, log=True)


@dataclass(frozen=True)
class QUniform(Uniform):
    """Multiples of `step` from `low` to `high`, all equally likely."""

    KIND: ClassVar[str] = "quniform"

    step: float

    @property
    def values(self) -> tuple[Any, ...]:  # noqa: D102
        first, last = round(self.low / self.step), round(self.high / self.step)
        return tuple(self._multiple(k) for k in _listed(self, first, last + 1))

    def _multiple(self, k: int) -> float:
        return float(f"{k * self.step:.12g}")  # 0.3, not 3 * 0.1 = 0.30000000000000004

    def draw(self, rng: np.random.Generator) -> Any:  # noqa: D102
        return self.values[int(rng.integers(len(self.values)))]

    def suggest(self, path: str, trial: Any) -> Any:  # noqa: D102
        suggested = trial.suggest_float(path, self.low, self.high, step=self.step)
        return self._multiple(round(suggested / self.step))

    def perturb(self, value: Any, rng: np.random.Generator) -> Any:  # noqa: D102
        moved = _moved(round(value / self.step), rng)
        return self._inside(self._multiple(moved))

    def arguments(self) -> Any:  # noqa: D102
        return [self.low, self.high, self.step]


@dataclass(frozen=True)
class RandInt(Dimension):
    """Whole numbers from `low` to one below `high`, all equally likely."""

    KIND: ClassVar[str] = "randint"

    low: int
    high: int

    @property
    def values(self) -> tuple[Any, ...]:  # noqa: D102
        return tuple(_listed(self, self.low, self.high))

    @property
    def ends(self) -> tuple[Any, ...]:  # noqa: D102
        return self.low, self.high - 1

    def draw(self, rng: np.random.Generator) -> Any:  # noqa: D102
        return int(rng.integers(self.low, self.high))

    def suggest(self, path: str, trial: Any) -> Any:  # noqa: D102
        return trial.suggest_int(path, self.low, self.high - 1)

    def perturb(self, value: Any, rng: np.random.Generator) -> Any:  # noqa: D102
        return min(max(_moved(value, rng), self.low), self.high - 1)

    def arguments(self) -> Any:  # noqa: D102
        return [self.low, self.high]


def _up_or_down(rng: np.random.Generator) -> int:
    return int(rng.choice((-1, 1)))


def _moved(k: int, rng: np.random.Generator) -> int:
    """Moves a whole number by a fifth up or down, and at least by one."""
    return k + _up_or_down(rng) * max(1, round(_FIFTH * abs(k)))


KINDS: dict[str, type[Dimension]] = {
    kind.KIND: kind for kind in (Choice, Grid, Uniform, LogUniform, QUniform, RandInt)
}
_OPTIONS = ("when", "label", "hidden")
_EXAMPLE = "algo.alpha: {loguniform: [0.5, 10]}"
_LIST_OPTIONS = ("together", "value_names")


# -- reading --


def parse_space(content: Any) -> dict[str, Dimension]:
    """Reads the `space` of a sweep.

    Args:
        content: config path to `{kind: arguments}`, with options beside the kind, or to a domain
            of Ray Tune's, such as `tune.uniform(0, 1)`.

    Raises:
        ConfigError: one sentence that names the path and its fault.
    """
    if content and not isinstance(content, Mapping):
        raise ConfigError(f"'space' is {content!r}: write how each path varies, such as {_EXAMPLE}")
    if not content:
        raise ConfigError(
            f"'space' is empty: name at least one config path to vary, such as {_EXAMPLE}"
        )
    space = {str(path): _parse_dimension(str(path), entry) for path, entry in content.items()}
    _check_groups(space)
    _check_conditions(space)
    return space


def _parse_dimension(path: str, entry: Any) -> Dimension:
    name = f"'space.{path}'"
    entry = from_tune(path, entry)
    if not isinstance(entry, Mapping):
        raise ConfigError(
            f"{name} is {entry!r}: write how it varies, such as {{loguniform: [0.5, 10]}}, or give "
            "a fixed value under 'set'"
        )
    kinds = [key for key in entry if key in KINDS]
    known = (*_OPTIONS, *(_LIST_OPTIONS if kinds and kinds[0] in ("choice", "grid") else ()))
    unknown = [str(key) for key in entry if key not in KINDS and key not in known]
    if unknown and isinstance(entry[unknown[0]], Mapping):
        raise ConfigError(
            f"{name} is a mapping of mappings: write each path in one, such as "
            f"{path}.{unknown[0]}: {{...}}"
        )
    if unknown:
        raise ConfigError(f"{name} has '{unknown[0]}'{did_you_mean(unknown[0], [*KINDS, *known])}")
    if len(kinds) != 1:
        raise ConfigError(f"{name} needs one of {', '.join(KINDS)}; it has {len(kinds)}")
    common: dict[str, Any] = {
        "when": _parse_when(name, entry.get("when", {})),
        "label": _text(name, "label", entry.get("label")),
        "hidden": entry.get("hidden", False),
    }
    if not isinstance(common["hidden"], bool):
        raise ConfigError(f"{name}: 'hidden' must be true or false")
    arguments = plain(entry[kinds[0]])
    if not isinstance(arguments, list | tuple) or not arguments:
        raise ConfigError(f"{name}: '{kinds[0]}' needs a list{_usage(kinds[0])}")
    if kinds[0] in ("choice", "grid"):
        return _parse_list(name, kinds[0], arguments, entry, common)
    return _parse_range(name, kinds[0], arguments, common)


def _parse_list(
    name: str, kind: str, values: Any, entry: Mapping[str, Any], common: dict[str, Any]
) -> Dimension:
    together = entry.get("together")
    if together is None:  # in a group a value may come again with another partner
        repeated = [v for i, v in enumerate(values) if any(_same(v, w) for w in values[:i])]
        if repeated:
            raise ConfigError(f"{name} lists {repeated[0]!r} twice: keep one")
    value_names = entry.get("value_names") or ()
    if not isinstance(value_names, list | tuple) or len(value_names) not in (0, len(values)):
        raise ConfigError(
            f"{name}: 'value_names' must list one name for each of the {len(values)} values"
        )
    options = tuple(list(v) if isinstance(v, tuple) else v for v in values)
    cls = Grid if kind == "grid" else Choice
    return cls(
        options,
        together=None if together is None else str(together),
        value_names=tuple(map(str, value_names)),
        **common,
    )


def _parse_range(name: str, kind: str, arguments: Any, common: dict[str, Any]) -> Dimension:
    wanted = 3 if kind == "quniform" else 2
    if len(arguments) != wanted or not all(map(_is_number, arguments)):
        raise ConfigError(f"{name}: '{kind}' is {list(arguments)}{_usage(kind)}")
    low, high = arguments[:2]
    if not low < high:
        raise ConfigError(f"{name}: '{kind}' goes from {low:g} to {high:g}: put the lower first")
    if kind == "randint":
        if not all(isinstance(end, int) for end in (low, high)):
            raise ConfigError(f"{name}: '{kind}' is {list(arguments)}{_usage(kind)}")
        return RandInt(low, high, **common)
    if kind == "quniform":
        step = float(arguments[2])
        if step <= 0 or any(abs(end / step - round(end / step)) > 1e-9 for end in (low, high)):
            raise ConfigError(
                f"{name}: the ends of 'quniform' must be multiples of its step, and "
                f"{low:g} and {high:g} are not both multiples of {step:g}"
            )
        return QUniform(float(low), float(high), step, **common)
    if kind == "loguniform" and low <= 0:
        raise ConfigError(f"{name}: 'loguniform' begins at {low:g}: it must be greater than 0")
    return (LogUniform if kind == "loguniform" else Uniform)(float(low), float(high), **common)


def _parse_when(name: str, when: Any) -> dict[str, tuple[Any, ...]]:
    if not isinstance(when, Mapping):
        raise ConfigError(
            f"{name}: 'when' must name paths and their values, such as {{algo.gmm.enabled: true}}"
        )
    return {
        str(path): tuple(values) if isinstance(values, list | tuple) else (values,)
        for path, values in when.items()
    }


def _text(name: str, option: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{name}: '{option}' must be a text")
    return value


def _same(first: Any, other: Any) -> bool:
    """Equality in which True is not 1."""
    return bool(first == other) and isinstance(first, bool) == isinstance(other, bool)


def plain(values: Any) -> Any:
    """Turns NumPy's values, and tuples, into Python's, which JSON can write."""
    if isinstance(values, np.ndarray | np.generic):
        return values.tolist()
    if isinstance(values, list | tuple):
        return [plain(value) for value in values]
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _usage(kind: str) -> str:
    example = {
        "choice": "of values, such as [1, 2, 5]",
        "grid": "of values, such as [1, 2, 5]",
        "uniform": "write [lowest, highest]",
        "loguniform": "write [lowest, highest]",
        "quniform": "write [lowest, highest, step]",
        "randint": "write [lowest, one above the highest], whole numbers",
    }[kind]
    return f" {example}" if kind in ("choice", "grid") else f": {example}"


def _check_groups(space: Space) -> None:
    """Refuses groups whose members cannot go together."""
    first: dict[str, tuple[str, Dimension]] = {}
    for path, dimension in space.items():
        if dimension.group is None:
            continue
        other, before = first.setdefault(dimension.group, (path, dimension))
        if len(before.ends) != len(dimension.ends) or type(before) is not type(dimension):
            raise ConfigError(
                f"'space.{path}' and 'space.{other}' go together ('{dimension.group}'), but are "
                f"{dimension.KIND} of {len(dimension.ends)} and {before.KIND} of "
                f"{len(before.ends)} values: give both the same kind and number"
            )


def _check_conditions(space: Space) -> None:
    """Refuses conditions that can never hold."""
    for path, dimension in space.items():
        for parent, wanted in dimension.when.items():
            if parent not in space:
                raise ConfigError(
                    f"'space.{path}' depends on '{parent}', which the space does not vary"
                    f"{did_you_mean(parent, space)}"
                )
            possible = space[parent].values
            if possible is None:
                raise ConfigError(
                    f"'space.{path}' depends on '{parent}', which is a "
                    f"{space[parent].KIND}: only single values can be a condition"
                )
            for value in wanted:
                if value not in possible:
                    raise ConfigError(
                        f"'space.{path}' depends on '{parent}' being {value!r}, which it never "
                        f"is: its values are {', '.join(map(repr, possible))}"
                    )
    _ordered(space)


def _ordered(space: Space) -> list[str]:
    """The paths, each after the paths on which it depends.

    Raises:
        ConfigError: paths depend on each other.
    """
    done: list[str] = []
    while len(done) < len(space):
        ready = [p for p in space if p not in done and all(q in done for q in space[p].when)]
        if not ready:
            left = [p for p in space if p not in done]
            raise ConfigError(f"in 'space', {' and '.join(left)} depend on each other: remove one")
        done += ready
    return done


def _listed(dimension: Dimension, start: int, stop: int) -> range:
    """The whole numbers of a dimension whose values are listed one by one."""
    if stop - start > MOST_SETTINGS:
        raise ConfigError(
            f"'{dimension.KIND}: {dimension.arguments()}' in 'space' has more than "
            f"{MOST_SETTINGS:,} values: give fewer"
        )
    return range(start, stop)


# -- settings --


def is_active(dimension: Dimension, setting: Mapping[str, Any]) -> bool:
    """Whether a setting's other values meet the dimension's condition."""
    return all(p in setting and setting[p] in values for p, values in dimension.when.items())


def grid_settings(space: Space) -> list[Setting]:
    """All settings of a space of lists and whole numbers, the last path varying fastest.

    Raises:
        ConfigError: a path is a continuum.
    """
    for path, dimension in space.items():
        if dimension.values is None:
            raise ConfigError(
                f"'space.{path}' is {dimension.KIND}, a continuum that no grid covers: list its "
                "values (grid: [...]) or set 'search' to random or optuna"
            )
    partial: list[tuple[Setting, dict[str, int]]] = [({}, {})]
    for path in _ordered(space):
        grown = (grown for s, groups in partial for grown in _grown(space, path, s, groups))
        partial = list(islice(grown, MOST_SETTINGS + 1))
        if len(partial) > MOST_SETTINGS:
            raise ConfigError(
                f"the grid of 'space' has more than {MOST_SETTINGS:,} settings: list fewer values, "
                "or set 'search' to random"
            )
    return [_in_order(space, setting) for setting, _ in partial]


def _grown(
    space: Space, path: str, setting: Setting, groups: dict[str, int]
) -> Iterator[tuple[Setting, dict[str, int]]]:
    """Extends a partial setting by each value of one more path."""
    dimension = space[path]
    if not is_active(dimension, setting):
        yield setting, groups
        return
    for index, value in enumerate(dimension.values or ()):
        if dimension.group is None:
            yield {**setting, path: value}, groups
        elif groups.get(dimension.group, index) == index:
            yield {**setting, path: value}, {**groups, dimension.group: index}


def sample(space: Space, n: int, seed: int) -> list[Setting]:
    """Draws `n` different settings.

    With grids in the space, each grid point comes with equally many draws of the other paths. A
    shorter list is the beginning of a longer one.

    Args:
        space: the space.
        n: number of settings; a multiple of the number of grid points.
        seed: seed of the draws.

    Raises:
        ConfigError: the space holds fewer settings, or `n` does not divide over the grid.
    """
    grids = {path: d for path, d in space.items() if isinstance(d, Grid)}
    for path, dimension in grids.items():
        drawn = [parent for parent in dimension.when if parent not in grids]
        if drawn:
            raise ConfigError(
                f"'space.{path}' is a grid that depends on '{drawn[0]}', which is drawn: make it "
                "a choice"
            )
    points = grid_settings(grids)
    if n % len(points):
        raise ConfigError(
            f"{n} settings do not divide over the {len(points)} points of the space's grids: "
            f"ask for a multiple of {len(points)} (budget.trials counts seeds too), or use choices"
        )
    rng = np.random.default_rng(seed)
    settings: dict[str, Setting] = {}
    while len(settings) < n:
        for point in points:
            for _ in range(_TRIES):
                setting = draw_setting(space, rng, point)
                key = canonical(setting)
                if key not in settings:
                    settings[key] = setting
                    break
            else:
                raise ConfigError(
                    f"the space holds no {n} different settings, only about {len(settings)}: "
                    "lower 'budget.trials' or widen 'space'"
                )
    return list(settings.values())


def draw_setting(
    space: Space, rng: np.random.Generator, point: Mapping[str, Any] | None = None
) -> Setting:
    """Draws one setting.

    Args:
        space: the space.
        rng: the random generator.
        point: values of the grids in the space.
    """
    indices: dict[str, int] = {}

    def choose(path: str, dimension: Dimension) -> Any:
        if dimension.group is None:
            return dimension.draw(rng)
        if dimension.group not in indices:
            indices[dimension.group] = int(rng.integers(len(dimension.ends)))
        return dimension.ends[indices[dimension.group]]

    return _chosen(space, point or {}, choose)


def to_optuna(space: Space, trial: Any) -> Setting:
    """Lets Optuna choose a setting, path by path (define-by-run).

    Args:
        space: the space.
        trial: an `optuna.Trial`.
    """

    def choose(path: str, dimension: Dimension) -> Any:
        if dimension.group is None:
            return dimension.suggest(path, trial)
        # An Optuna trial gives the same answer whenever it is asked for the same name.
        indices = list(range(len(dimension.ends)))
        return dimension.ends[trial.suggest_categorical(f"together.{dimension.group}", indices)]

    return _chosen(space, {}, choose)


def _chosen(
    space: Space, given: Mapping[str, Any], choose: Callable[[str, Dimension], Any]
) -> Setting:
    setting = dict(given)
    for path in _ordered(space):
        if not isinstance(space[path], Grid) and is_active(space[path], setting):
            setting[path] = choose(path, space[path])
    return _in_order(space, setting)


def value_name(space: Space, path: str, setting: Mapping[str, Any]) -> str:
    """The name of a path's value in names of trials."""
    dimension = space[path]
    if not isinstance(dimension, Choice) or not dimension.value_names:
        return dimension.name_of(setting[path])
    # In a group a value may come again with another partner, under another name.
    members = [p for p in setting if p == path or _same_group(space[p], dimension)]
    places = range(len(dimension.options))
    index = next(i for i in places if all(space[p].ends[i] == setting[p] for p in members))
    return dimension.value_names[index]


def _same_group(first: Dimension, other: Dimension) -> bool:
    return first.group is not None and first.group == other.group


def perturb(
    space: Space, setting: Mapping[str, Any], rng: np.random.Generator, resample: float
) -> Setting:
    """Explores around a setting, as population based training does.

    Source: Jaderberg et al. (2017), https://arxiv.org/abs/1711.09846, section 4.1.1: numbers are
    multiplied by 0.8 or 1.2, or drawn again.

    Args:
        space: the space, without groups and conditions.
        setting: values of all paths.
        rng: the random generator.
        resample: probability that a path's value is drawn again.
    """

    def explored(path: str, value: Any) -> Any:
        again = rng.random() < resample
        return space[path].draw(rng) if again else space[path].perturb(value, rng)

    return {path: explored(path, value) for path, value in setting.items()}


def canonical(setting: Mapping[str, Any]) -> str:
    """A text that equal settings share."""
    return json.dumps(setting, sort_keys=True)


def _in_order(space: Space, setting: Setting) -> Setting:
    return {path: setting[path] for path in space if path in setting}
