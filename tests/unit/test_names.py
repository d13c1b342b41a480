"""A name stands for one thing."""

import ast
from collections import defaultdict

from rooms import modules, room_of


def test_no_two_classes_share_a_name() -> None:
    """But for those of `utils`, which hands out robomimic's names."""
    homes: dict[str, list[str]] = defaultdict(list)
    for module, path in modules().items():
        if room_of(module) != "utils":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    homes[node.name].append(module)
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}
