"""The settings of a training that MLflow shows as its parameters: those in force.

Most of a config says nothing about a run: parts that are switched off, encoders of modalities that
the data lack, places and processes that change no result. The artifact `config.json` holds all.
"""

from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from raymimic.config import BaseConfig
from raymimic.config.config import leaves

# Shown only where they differ from the defaults of the algorithm's config.
_PLUMBING = (
    *("experiment.*", "meta.*", "ray.*", "mlflow.*"),
    *("train.output_dir", "train.imports", "train.allow_links", "train.num_data_workers"),
    *("train.hdf5_cache_mode", "train.hdf5_use_swmr", "train.hdf5_load_next_obs"),
    *("train.dataset_keys", "train.cuda"),
)
# Of them, shown in any case: they place the curves of several runs.
_SHOWN = (
    "experiment.epoch_every_n_steps",
    *("experiment.rollout.n", "experiment.rollout.horizon", "experiment.rollout.rate"),
)


def settings_in_force(config: BaseConfig, always: Collection[str] = ()) -> dict[str, Any]:
    """The settings that tell what a training does, by dotted path.

    Args:
        config: the whole config.
        always: paths of settings or sections to show in any case, such as those that a sweep
            varies.
    """
    content = config.to_dict()
    defaults = dict(leaves(type(config)().to_dict()))
    present = dict(_present(content))

    def is_shown(path: str, value: Any) -> bool:
        if any(f"{path}.".startswith(f"{asked}.") for asked in always):
            return True
        if path not in present:
            return False
        if path.startswith("observation."):
            return value not in (None, [], {}, ())
        plumbing = any(fnmatchcase(path, pattern) for pattern in _PLUMBING)
        return not plumbing or path in _SHOWN or _differs(value, defaults.get(path))

    return {path: value for path, value in leaves(content) if is_shown(path, value)}


def _differs(value: Any, default: Any) -> bool:
    """Whether a value is not the default; a list equals a tuple, as in JSON."""
    plain = [list(v) if isinstance(v, tuple) else v for v in (value, default)]
    return bool(plain[0] != plain[1])


def _present(section: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The settings below a section, without parts that are switched off."""
    used = _modalities(section)
    for key, value in section.items():
        inner = f"{path}{key}"
        if not isinstance(value, Mapping) or not value:
            yield inner, value
        elif key == "encoder" and used is not None:
            yield from _present({k: v for k, v in value.items() if k in used}, f"{inner}.")
        elif value.get("enabled") is not False:
            yield from _present(value, f"{inner}.")


def _modalities(section: Mapping[str, Any]) -> set[str] | None:
    """The modalities that have keys in a section of observations; None for other sections."""
    groups = section.get("modalities")
    if not isinstance(groups, Mapping):
        return None
    return {
        modality
        for group in groups.values()
        if isinstance(group, Mapping)
        for modality, keys in group.items()
        if keys
    }
