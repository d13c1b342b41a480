"""Fits a config's observation keys to those of a file."""

import difflib
import json
import shlex
from collections.abc import Mapping, Sequence

from raymimic.config.base_config import BaseConfig, sections_named
from raymimic.observations.modality import takes

Shape = Sequence[int]

_MOST_SHOWN = 40
_CUTOFF = 0.5


def observation_settings(config: BaseConfig, known: Mapping[str, Shape]) -> dict[str, list[str]]:
    """Settings with which a config names observations that a file has.

    Each group (`obs`, `goal`, `subgoal`) that names others gets the nearest of the file's keys
    where all its missing keys have one, else all of the file's keys that its modalities take.

    Args:
        config: section `observation` is read.
        known: row shape of each observation of the file.

    Returns:
        Keys by dotted path, such as `observation.modalities.obs.low_dim`, of those that change.
    """
    settings: dict[str, list[str]] = {}
    for path, groups in sections_named(config.observation, "modalities"):
        for name, group in groups.items():
            if all(key in known for keys in group.values() for key in keys):
                continue
            fitted = {modality: _fitted(modality, keys, known) for modality, keys in group.items()}
            if not any(fitted.values()):
                fitted |= {modality: _taking(modality, known) for modality in group}
            settings |= {
                f"observation.{path}.{name}.{modality}": keys
                for modality, keys in fitted.items()
                if keys != list(group[modality])
            }
    return settings if any(settings.values()) else {}


def _fitted(modality: str, keys: Sequence[str], known: Mapping[str, Shape]) -> list[str]:
    missing = [key for key in keys if key not in known]
    if not missing:
        return list(keys)
    candidates = _taking(modality, known)
    spare = [key for key in candidates if key not in keys]
    near = {key: difflib.get_close_matches(key, spare, n=1, cutoff=_CUTOFF) for key in missing}
    if all(near.values()) and len({match[0] for match in near.values()}) == len(near):
        return [near[key][0] if key in near else key for key in keys]
    return candidates


def _taking(modality: str, known: Mapping[str, Shape]) -> list[str]:
    """The keys that a modality takes."""
    return [key for key, shape in known.items() if takes(shape, modality)]


def explanation(config: BaseConfig, known: Mapping[str, Shape]) -> str:
    """Ends a complaint about a missing observation: the file's keys, and the argument that works.

    Args:
        config: section `observation` is read.
        known: row shape of each observation of the file.
    """
    if not known:
        return ""
    shown = [f"{key} {list(shape)}" for key, shape in known.items()][:_MOST_SHOWN]
    more = f" and {len(known) - _MOST_SHOWN} more" if len(known) > _MOST_SHOWN else ""
    text = f"; it has {', '.join(shown)}{more}"
    settings = observation_settings(config, known)
    return f"{text}: {set_argument(settings)}" if settings else text


def relisting(config: BaseConfig, key: str, fits: Mapping[str, str]) -> str:
    """Ends a complaint about an observation under a wrong modality: the argument that moves it.

    Args:
        config: section `observation` is read.
        key: the observation.
        fits: the modality that each observation fits which is listed under another.
    """
    if key not in fits:
        return ""
    settings: dict[str, list[str]] = {}
    for path, groups in sections_named(config.observation, "modalities"):
        for name, group in groups.items():
            listed = {k for keys in group.values() for k in keys}
            for modality in dict.fromkeys([*group, *fits.values()]):
                own = list(group.get(modality, []))
                kept = [k for k in own if fits.get(k, modality) == modality]
                gained = [k for k in fits if fits[k] == modality and k in listed - {*own}]
                if kept + gained != own:
                    settings[f"observation.{path}.{name}.{modality}"] = kept + gained
    return f": list it under {fits[key]}: {set_argument(settings)}"


def set_argument(settings: Mapping[str, Sequence[str]]) -> str:
    """Writes lists of keys, by their settings, as an argument `--set …` of a shell's command."""
    words = [f"{path}={json.dumps(keys, separators=(',', ':'))}" for path, keys in settings.items()]
    return f"--set {shlex.join(words)}"
