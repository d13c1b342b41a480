"""LIBERO's files: robomimic's form with an instruction, pictures upside down, and no `next_obs`.

See LIBERO's `scripts/create_dataset.py`.
"""

import json
from typing import Any

import numpy as np

from raymimic.data.convert.heads import Head
from raymimic.data.convert.registry import register_format
from raymimic.data.convert.robomimic import DemoArrays, RobomimicReader
from raymimic.data.hdf5 import DemoReader

_PICTURES = ("_rgb", "_depth")
_IMAGE_DIMS = 4  # [T, H, W, C]


@register_format("libero")
class LiberoReader(RobomimicReader):
    """Turns pictures so that the top row comes first, as raymimic's environments draw them."""

    general = False

    @classmethod
    def recognises(cls, head: Head) -> bool:
        """Whether `data` names a problem and its `bddl` file, and demos have observations."""
        demo = head.demo
        return (
            demo is not None
            and "obs" in demo.names
            and {"problem_info", "bddl_file_name"} <= set(demo.data_attrs)
        )

    @property
    def attrs(self) -> dict[str, Any]:
        """The file's own; the pictures are no longer in OpenGL's order."""
        found = dict(super().attrs)
        if "macros_image_convention" in found:
            found["macros_image_convention"] = "opencv"
        if instruction := self.instruction:
            found["lang"] = instruction
        return found

    @property
    def instruction(self) -> str:
        """The instruction of the task; empty if the file has none."""
        try:
            info = json.loads(str(self._meta.attrs.get("problem_info")))
        except ValueError:
            return ""
        said = info.get("language_instruction") if isinstance(info, dict) else None
        if isinstance(said, list):
            said = " ".join(map(str, said))
        return said.strip('"') if isinstance(said, str) else ""

    def complete(self, demo: DemoReader, arrays: DemoArrays, attrs: dict[str, Any]) -> None:
        """Turns the demo's pictures."""
        upside_down = self._meta.attrs.get("macros_image_convention", "opengl") == "opengl"
        for key, values in arrays.obs.items():
            if upside_down and key.endswith(_PICTURES) and values.ndim == _IMAGE_DIMS:
                arrays.obs[key] = np.ascontiguousarray(values[:, ::-1])
                self.note(f"obs/{key} -> obs/{key}, turned so that the top row comes first")
        for name in arrays.drop_others_of_another_length():
            self.note(f"{name}: left out, it has no row for each step")
        self.note(
            "each observation was made after the action of its row",
            "rewards, dones: 1 at the last step, where the task was solved",
        )
        if self.instruction:
            self.note(
                f"problem_info -> lang: train.data[].lang={self.instruction!r} lets a policy see it"
            )
