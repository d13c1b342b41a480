"""Translates Ray Tune's search spaces, which scripts use, into a sweep file's."""

from typing import Any

from raymimic.errors import ConfigError


def from_tune(path: str, entry: Any) -> Any:
    """Translates one path's domain.

    Args:
        path: config path, for messages.
        entry: an object of Ray Tune's such as `tune.loguniform(0.5, 10)`, or
            `tune.grid_search([1, 2])`; anything else stays as it is.

    Returns:
        `{kind: arguments}`. The ends mean the same in both.

    Raises:
        ConfigError: sweep files have no such domain.
    """
    if isinstance(entry, dict) and list(entry) == ["grid_search"]:
        return {"grid": entry["grid_search"]}
    if not type(entry).__module__.startswith("ray.tune."):
        return entry
    from ray.tune.search.sample import (
        Categorical,
        Float,
        Integer,
        LogUniform,
        Quantized,
        Uniform,
    )

    sampler = getattr(entry, "sampler", None)
    match entry, sampler:
        case Categorical(), Uniform():
            return {"choice": list(entry.categories)}
        case Integer(), Uniform():
            return {"randint": [entry.lower, entry.upper]}
        case Float(), Uniform():
            return {"uniform": [entry.lower, entry.upper]}
        case Float(), LogUniform():
            return {"loguniform": [entry.lower, entry.upper]}
        case Float(), Quantized() if isinstance(sampler.sampler, Uniform):
            return {"quniform": [entry.lower, entry.upper, sampler.q]}
    raise ConfigError(
        f"'space.{path}' is a domain of Ray Tune that sweeps do not have: use tune.uniform, "
        "loguniform, quniform, randint, choice or grid_search"
    )
