"""Imports go one way: a room imports rooms below it only, and no file itself in a circle."""

import ast
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from rooms import (
    FRONT_DOOR,
    LEVEL,
    PACKAGE,
    PICTURE,
    circle,
    graph,
    imports,
    modules,
    reduced,
    room_of,
    rooms,
    svg,
)

# The rooms that may import a library; the others run in one plain process without it.
MAY_IMPORT = {
    "ray": {"cluster", "rollout", "recording", "training", "sweep"},
    "mlflow": {"tracking"},
}

# No import: MLflow imports the module by this name where somebody loads a model.
LOADER = "raymimic.tracking.mlflow_models imports raymimic.checkpoints.mlflow_model"


def climbs(imported: Mapping[str, set[str]]) -> list[str]:
    """Returns the imports of a room that is not below the importing one in the picture."""
    return [
        f"{module} imports {other}"
        for module, others in imported.items()
        for other in sorted(others)
        if FRONT_DOOR not in (module, other)
        and room_of(module) != room_of(other)
        and LEVEL[room_of(other)] >= LEVEL[room_of(module)]
    ]


def test_every_import_goes_one_way():
    assert climbs(graph()) == []


def test_no_room_imports_one_above_by_its_name_in_a_string() -> None:
    """Registries name modules of their own room, which they import once one is needed."""
    known = modules()
    named = {
        module: {
            node.value.partition(":")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        for module, path in known.items()
    }
    found = climbs({module: names & known.keys() for module, names in named.items()})
    assert found == [LOADER]


def test_no_file_imports_itself_in_a_circle():
    imported = graph()
    imported.pop(FRONT_DOOR)
    assert circle(imported) == ""


@pytest.mark.parametrize("library", sorted(MAY_IMPORT))
def test_only_some_rooms_import(library: str):
    importing = {
        room_of(module)
        for module, path in modules().items()
        if any(name.partition(".")[0] == library for name, _ in imports(path))
    }
    assert importing == MAY_IMPORT[library]


def test_nothing_imports_the_names_of_robomimic():
    assert not {r for r, others in rooms(graph()).items() if others & {"utils", "scripts"}}


def test_the_picture_of_the_rooms_is_that_of_the_imports():
    assert PICTURE.read_text() == svg(reduced(rooms(graph())))


def test_the_page_names_every_room_and_only_files_that_are_there() -> None:
    page = (PICTURE.parent / "architecture.md").read_text()
    assert [room for room in LEVEL if not re.search(rf"`{room}(/|\.py)`", page)] == []
    files = [f"/{path.relative_to(PACKAGE).as_posix()}" for path in modules().values()]
    files += [f"/tests/unit/{Path(__file__).name}"]
    named = re.findall(r"`([\w/]+\.py)`", page)
    assert [n for n in named if not any(file.endswith(f"/{n}") for file in files)] == []


def test_the_reader_sees_lazy_imports_and_circles(tmp_path: Path):
    package = tmp_path / "raymimic"
    for folder in ("config", "sweep"):
        (package / folder).mkdir(parents=True)
        (package / folder / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "config" / "early.py").write_text("def f():\n    from raymimic.sweep import late\n")
    (package / "sweep" / "late.py").write_text("import raymimic.config.early\n")
    imported = graph(package)
    assert climbs(imported) == ["raymimic.config.early imports raymimic.sweep.late"]
    files = ["raymimic.config.early", "raymimic.sweep.late"]
    ways = [" imports ".join([*names, names[0]]) for names in (files, files[::-1])]
    assert circle(imported) in ways
    with pytest.raises(ValueError, match=r"^(config|sweep) imports \w+ imports \1, a circle: move"):
        reduced(rooms(imported))
