"""mimicgen's files: robomimic's form, and how each demo was generated.

See mimicgen's `scripts/generate_dataset.py`.
"""

from typing import Any

from raymimic.data.convert.heads import Head
from raymimic.data.convert.registry import register_format
from raymimic.data.convert.robomimic import DemoArrays, RobomimicReader
from raymimic.data.hdf5 import DemoReader

_GENERATED = frozenset({"datagen_info", "src_demo_inds", "src_demo_labels"})


@register_format("mimicgen")
class MimicgenReader(RobomimicReader):
    """Keeps all that has a row for each step, such as `datagen_info`."""

    general = False

    @classmethod
    def recognises(cls, head: Head) -> bool:
        """Whether a demo says how it was generated."""
        demo = head.demo
        return demo is not None and bool(_GENERATED & set(demo.names))

    def complete(self, demo: DemoReader, arrays: DemoArrays, attrs: dict[str, Any]) -> None:
        """Leaves out the list of source demos, which is one for each subtask."""
        self.note("datagen_info/… -> datagen_info/…, which no algorithm reads")
        for name in arrays.drop_others_of_another_length():
            self.note(f"{name}: left out, it has no row for each step")
