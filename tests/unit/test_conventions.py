"""The package is written by one hand."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from rooms import modules, room_of

MODULES = modules()


def test_no_two_classes_share_a_name() -> None:
    """But for those of `utils`, which hands out robomimic's names."""
    homes: dict[str, list[str]] = defaultdict(list)
    for module, path in MODULES.items():
        if room_of(module) != "utils":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    homes[node.name].append(module)
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


def annotations(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
        yield node.annotation
    elif isinstance(node, ast.FunctionDef) and node.returns is not None:
        yield node.returns


def quoted(annotation: ast.expr) -> bool:
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        return False
    return (isinstance(annotation, ast.Constant) and isinstance(annotation.value, str)) or any(
        quoted(part) for part in ast.iter_child_nodes(annotation) if isinstance(part, ast.expr)
    )


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES)
def test_types_are_not_quoted_and_names_stand_in_single_backticks(path: Path) -> None:
    """`from __future__ import annotations` lets an annotation name what follows."""
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        for annotation in annotations(node):
            assert not quoted(annotation), f"{path}:{annotation.lineno}"
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            assert "``" not in (ast.get_docstring(node) or ""), f"{path}: {node}"
        if isinstance(node, ast.ClassDef) and "dataclass" in map(
            ast.unparse, (getattr(d, "func", d) for d in node.decorator_list)
        ):
            said = ast.get_docstring(node) or ""
            assert "Args:" not in said, f"{path}: fields of {node.name} stand under Attributes:"
