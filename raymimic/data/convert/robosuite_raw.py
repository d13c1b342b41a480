"""robosuite's `demo.hdf5`: simulator states and actions, as its collecting scripts write them.

See `robosuite/scripts/collect_human_demonstrations.py`; robomimic's `convert_robosuite.py` adds the
same `env_args`.
"""

from typing import Any

from raymimic.data.convert.heads import Head
from raymimic.data.convert.registry import register_format
from raymimic.data.convert.robomimic import DemoArrays, RobomimicReader
from raymimic.data.hdf5 import DemoReader
from raymimic.envs.env_base import EnvType
from raymimic.errors import DatasetError
from raymimic.storage import parse_json


@register_format("robosuite_raw")
class RobosuiteRawReader(RobomimicReader):
    """Adds `env_args` out of the attributes `env`, `env_info` and `repository_version`."""

    general = False

    @classmethod
    def recognises(cls, head: Head) -> bool:
        """Whether demos have states without observations, and `data` has `env`, no `env_args`."""
        demo = head.demo
        return (
            demo is not None
            and "states" in demo.names
            and "obs" not in demo.names
            and "env" in demo.data_attrs
            and "env_args" not in demo.data_attrs
        )

    @property
    def version(self) -> str:
        """The version of robosuite."""
        return str(self._meta.attrs.get("repository_version", ""))

    @property
    def env_meta(self) -> dict[str, Any]:
        """The environment.

        Raises:
            DatasetError: the file does not state it as robosuite does.
        """
        name = self._meta.attrs.get("env")
        if not isinstance(name, str):
            raise DatasetError(
                f"dataset '{self.source}': data.attrs['env'] does not name the environment, as"
                " robosuite's files do: write its name there"
            )
        try:
            kwargs = parse_json(str(self._meta.attrs.get("env_info", "{}")))
        except ValueError as error:
            raise DatasetError(
                f"dataset '{self.source}': data.attrs['env_info'] is not JSON ({error}): write the"
                " arguments of the environment there"
            ) from error
        if not isinstance(kwargs, dict):
            raise DatasetError(
                f"dataset '{self.source}': data.attrs['env_info'] is not a JSON object: write the"
                " arguments of the environment there"
            )
        kwargs.pop("env_name", None)
        return {
            "env_name": name,
            "env_version": self.version,
            "type": EnvType.ROBOSUITE_TYPE,
            "env_kwargs": kwargs,
        }

    def complete(self, demo: DemoReader, arrays: DemoArrays, attrs: dict[str, Any]) -> None:
        """Notes what there is."""
        if "model_file" not in attrs:
            self.note(f"{demo.name}: no model_file; its states cannot be played in another scene")
        dropped = arrays.drop_others_of_another_length()
        self.note(
            "states -> states; model_file -> model_file",
            "actions -> actions",
            "env, env_info -> env_args",
            "no observations, rewards and dones: raymimic dataset extract-obs gives the converted"
            " file those, by its states",
            *(f"{name}: left out, it has no row for each step" for name in dropped),
        )
