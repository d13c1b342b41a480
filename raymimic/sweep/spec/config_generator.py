"""Sweeps described in Python, under the names of robomimic's `hyperparam_utils`."""

import copy
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from raymimic import storage
from raymimic.config.base_config import config_factory, config_from_file, json_from_file
from raymimic.config.config import Config
from raymimic.errors import ConfigError, OutputError
from raymimic.sweep.spec.space import plain
from raymimic.sweep.spec.sweep_file import sweep_from_dict
from raymimic.sweep.spec.sweep_spec import SweepSpec

_TRAIN = Path(__file__).parents[2] / "scripts" / "train.py"


@dataclass(frozen=True)
class _Parameter:
    """The arguments of `ConfigGenerator.add_param` for one key."""

    name: str
    group: int
    values: list[Any]
    value_names: list[str | None]
    hidename: bool

    def noted(self, index: int) -> Any:
        """The name of a value, or the value itself where it has none."""
        name = self.value_names[index] if self.value_names else None
        return self.values[index] if name is None else name

    def name_of(self, index: int) -> str:
        noted = self.noted(index)
        return "_".join(map(str, noted)) if isinstance(noted, list | tuple) else str(noted)


class ConfigGenerator:
    """Collects the parameters of a sweep; makes the sweep, or a config file for each setting.

    The interface is robomimic's (`robomimic/utils/hyperparam_utils.py`), with `sweep` added.
    Attributes have the names of the arguments, and may be assigned until `sweep` or `generate` is
    called. Deviation: a script is written only where `script_file` names one.

    Args:
        base_config_file: JSON config that the values are put into. One without `algo_name` is
            another program's, such as mimicgen's: its keys are not checked.
        base_exp_name: beginning of the experiments' names; None: the base config's name.
        wandb_proj_name: name of the project; it becomes MLflow's experiment too.
        script_file: shell script to write, with one training a line; None or empty: no script.
        generated_config_dir: folder for the configs; None: the base config's folder.
    """

    def __init__(
        self,
        base_config_file: str | Path,
        base_exp_name: str | None = None,
        wandb_proj_name: str | None = None,
        script_file: str | Path | None = None,
        generated_config_dir: str | Path | None = None,
    ) -> None:
        self.base_config_file = base_config_file
        self.base_exp_name = base_exp_name
        self.wandb_proj_name = wandb_proj_name
        self.script_file = script_file
        self.generated_config_dir = generated_config_dir
        self.parameters: dict[str, _Parameter] = {}

    def add_param(
        self,
        key: str,
        name: str,
        group: int,
        values: Iterable[Any],
        value_names: Sequence[str | None] | None = None,
        hidename: bool = False,
        prepend: bool = False,
    ) -> None:
        """Adds a parameter.

        Args:
            key: the parameter's path in the config, such as `train.data` (or `train/data`).
            name: the parameter's name in the names of experiments; an empty one leaves it out.
            group: parameters of one group take their values together, those of different groups
                in all combinations.
            values: the parameter's values; arrays are taken as lists.
            value_names: a name for each value, for the names of experiments; None: the value.
            hidename: leave the parameter out of these names.
            prepend: put the parameter before the earlier ones.

        Raises:
            ConfigError: `values` is no list or empty; or `value_names`, or the group's other
                parameters, have another number of values.
        """
        key = key.replace("/", ".")
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise ConfigError(f"add_param: the values of '{key}' must be a list, not {values!r}")
        listed: list[Any] = plain([*values])
        if not listed:
            raise ConfigError(f"add_param: '{key}' has no values")
        if value_names is not None and len(value_names) != len(listed):
            raise ConfigError(
                f"add_param: '{key}' has {len(listed)} values but {len(value_names)} value_names"
            )
        for other, parameter in self.parameters.items():
            if other != key and parameter.group == group and len(parameter.values) != len(listed):
                raise ConfigError(
                    f"add_param: '{key}' has {len(listed)} values and '{other}', which is of group "
                    f"{group} too, has {len(parameter.values)}: they are taken together"
                )
        new = {key: _Parameter(name, group, listed, list(value_names or ()), hidename)}
        self.parameters = {**(new if prepend else {}), **self.parameters, **new}

    def sweep(
        self, *, name: str | None = None, seeds: Sequence[int] | None = None, **keys: Any
    ) -> SweepSpec:
        """Makes the sweep: a grid over the groups.

        Args:
            name: name of the sweep; None: `base_exp_name`, or the base config's name.
            seeds: seeds of each setting; a parameter `train.seed` says the same.
            **keys: further keys of a sweep file, such as `metric` or `resources`.

        Raises:
            ConfigError: no parameter was added, or the sweep is wrong.
        """
        parameters = dict(self._added())
        seed = parameters.pop("train.seed", None)
        if seed is not None:
            if seeds is not None or any(p.group == seed.group for p in parameters.values()):
                raise ConfigError(
                    "'train.seed' needs a group of its own, and no seeds besides: a sweep gives "
                    "each setting the same seeds"
                )
            seeds = seed.values
        base = config_from_file(self._base_path).to_dict()
        space = {
            key: {
                "grid": p.values,
                "together": str(p.group),
                "label": p.name,
                "hidden": p.hidename or not p.name,
                **({"value_names": _names(p)} if p.value_names else {}),
            }
            for key, p in parameters.items()
        }
        content = {
            "name": name or self._base_name(base),
            "config": base,
            "space": space,
            **({} if seeds is None else {"seeds": list(seeds)}),
            **keys,
        }
        if self.wandb_proj_name is not None:
            content["set"] = {
                **content.get("set", {}),
                "mlflow.experiment_name": self.wandb_proj_name,
            }
        return sweep_from_dict(content, folder=self._base_path.parent)

    def generate(self, override_base_name: bool = False) -> list[str]:
        """Writes a config for each setting, which `raymimic tune --configs DIR` runs.

        Args:
            override_base_name: begin the experiments' names with the first parameter.

        Returns:
            the paths of the configs.

        Raises:
            ConfigError: no parameter was added, a key does not exist, JSON cannot express a value,
                two settings have the same name, or one has a name that no file can have.
            OutputError: the files cannot be written.
        """
        parameters = self._added()
        base = json_from_file(self._base_path)
        is_checked = "algo_name" in base
        if is_checked:
            config_from_file(self._base_path)  # names the file in its errors
        begin = "" if override_base_name else self._base_name(base)
        groups = {p.group: len(p.values) for p in parameters.values()}
        contents: dict[str, Any] = {}
        for indices in product(*(range(size) for size in groups.values())):
            index = dict(zip(groups, indices, strict=True))
            at = {key: index[p.group] for key, p in parameters.items()}
            content = copy.deepcopy(base)
            for key, p in parameters.items():
                _put(content, key, p.values[at[key]])
            named = {key: p for key, p in parameters.items() if p.name}
            parts = [begin]
            for key, p in named.items():
                if not p.hidename:
                    parts += [p.name, p.name_of(at[key])]
            name = "_".join(part for part in parts if part)
            _put(content, "experiment.name", name)
            _put(content, "meta.hp_base_config_file", str(self.base_config_file))
            _put(content, "meta.hp_keys", [p.name for p in named.values()])
            _put(content, "meta.hp_values", [p.noted(at[key]) for key, p in named.items()])
            if self.wandb_proj_name is not None:
                _put(content, "experiment.logging.wandb_proj_name", self.wandb_proj_name)
                if is_checked:
                    _put(content, "mlflow.experiment_name", self.wandb_proj_name)
            if is_checked:
                config_factory(str(content["algo_name"]), content).dump()
            if "/" in name:
                raise ConfigError(
                    f"the name '{name}' of a setting holds '/', so that no file can have it: give "
                    "add_param 'value_names', or hide the parameter by 'hidename'"
                )
            if name in contents:
                raise ConfigError(
                    f"two settings have the name '{name}', and so the same file: show a parameter "
                    "that 'hidename' or an empty name leaves out"
                )
            contents[name] = content
        folder = storage.expanded(self.generated_config_dir or self._base_path.parent)
        paths = [str(folder / f"{name}.json") for name in contents]
        for path, content in zip(paths, contents.values(), strict=True):
            write_text(path, json.dumps(content, indent=4) + "\n")
        if self.script_file:
            lines = ["#!/bin/bash", "", *map(train_command, paths), ""]
            write_text(self.script_file, "\n".join(lines))
        return paths

    @property
    def _base_path(self) -> Path:
        return storage.expanded(self.base_config_file)

    def _added(self) -> dict[str, _Parameter]:
        if not self.parameters:
            raise ConfigError("the generator has no parameters: call add_param first")
        return self.parameters

    def _base_name(self, base: Mapping[str, Any]) -> str:
        if self.base_exp_name is not None:
            return self.base_exp_name
        config = config_factory(base["algo_name"], base) if "algo_name" in base else Config(base)
        try:
            return str(config.get_path("experiment.name"))
        except ConfigError:
            raise ConfigError(
                f"{self._base_path} has no 'experiment.name', with which the names of experiments "
                "begin: write it there, or give base_exp_name"
            ) from None


def _names(parameter: _Parameter) -> list[str]:
    return [parameter.name_of(index) for index in range(len(parameter.values))]


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    """Sets a value by its dotted path, in the place of any other, as robomimic does."""
    *above, last = key.split(".")
    for name in above:
        content = content.setdefault(name, {})
        if not isinstance(content, dict):
            raise ConfigError(f"add_param: '{name}' of '{key}' is no section of the base config")
    content[last] = copy.deepcopy(value)


def train_command(config: str) -> str:
    """The line of a script that trains a config, as robomimic writes it for other programs."""
    return f"python {shlex.quote(str(_TRAIN))} --config {shlex.quote(config)}"


def write_text(path: str | Path, text: str) -> None:
    """Writes a config or a script, one of many, which need not have reached the disk afterwards.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with storage.writing_file(storage.expanded(path)) as part:
            part.write_text(text)
    except OSError as error:
        raise OutputError(f"cannot write '{path}': {error.strerror or error}") from error
