"""The tests themselves keep to the rules that keep them apart."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda p: p.stem)
def test_no_module_imports_a_test_module_or_changes_the_search_path(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(alias.name for alias in node.names)]
        if names and names[0].startswith("raymimic"):
            names = []  # robomimic's `test_utils` is a part of the package
        for name in names:
            parts = name.split(".")
            assert not any(part.startswith("test_") for part in parts), f"{path}:{node.lineno}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("sys.path.insert", "sys.path.append"), f"{path}:{node.lineno}"
