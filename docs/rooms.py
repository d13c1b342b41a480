#!/usr/bin/env python3
"""Draws `rooms.svg`, the picture of `architecture.md`, from the imports of the package.

A room is a folder of the package, or a file beside the folders. An arrow goes from a room to one
that it imports; arrows that follow from others are left out.

usage: rooms.py [--check]    with --check nothing is written: the status is 1 if the picture is old
"""

import argparse
import ast
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "raymimic"
PICTURE = DOCS / "rooms.svg"
FRONT_DOOR = "raymimic"  # `raymimic.train`, which is in training

# From the ground up, with a word on each room and its place across. Rooms on one line do not import
# each other; every room may import the ground floor, which is drawn without arrows.
ORDER: list[dict[str, tuple[str, int]]] = [
    {
        "macros": ("robomimic's switches", 200),
        "errors": ("errors for users", 380),
        "start": ("a safe import path", 560),
        "torch_file": ("reads torch files", 740),
    },
    {
        "credentials": ("passwords in URIs", 100),
        "storage": ("whole files, locks", 280),
        "tensors": ("nested tensors", 460),
        "rotations": ("forms of rotations", 640),
        "user_modules": ("modules of the user", 820),
    },
    {
        "terminal": ("lines for people", 200),
        "ranks": ("workers that train", 560),
        "lease": ("one writer at a time", 740),
        "observations": ("modalities, shapes", 380),
    },
    {"config": ("settings and rules", 560)},
    {"envs": ("simulators", 840)},
    {"data": ("batches from demos", 300)},
    {
        "tracking": ("MLflow, TensorBoard", 100),
        "models": ("networks", 480),
        "cluster": ("the Ray cluster", 660),
    },
    {"algo": ("losses and steps", 480)},
    {"checkpoints": ("policies on disk", 480)},
    {"rollout": ("evaluation on actors", 480)},
    {"recording": ("writes and shows datasets", 840)},
    {"training": ("one training", 300)},
    {"sweep": ("many trainings", 300)},
    {"cli": ("commands", 480)},
    {
        "as_robomimic": ("import robomimic", 180),
        "utils": ("robomimic's names", 380),
        "scripts": ("robomimic's scripts", 580),
        "__main__": ("python -m raymimic", 780),
    },
    {"stand_in": ("for child processes", 180)},
]
GROUND = {
    *("errors", "start", "torch_file", "credentials", "storage", "tensors", "rotations"),
    *("user_modules", "terminal", "lease", "ranks", "macros"),
}
LEVEL = {room: level for level, line in enumerate(ORDER) for room in line}

WIDTH, BOX, HEIGHT, ROW, MARGIN = 940, 160, 44, 80, 20


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Returns the files of a package by the dotted names of their modules."""
    names = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(path: Path) -> Iterator[tuple[str, str | None]]:
    """Yields every module that a file imports, inside functions too, and the name taken from it.

    Raises:
        ValueError: an import is relative.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise ValueError(f"{path}:{node.lineno} imports relatively: name the module")
            yield from ((node.module, alias.name) for alias in node.names)


def graph(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Returns for each module of a package the modules of the package that it imports."""
    known = modules(package)
    found: dict[str, set[str]] = {}
    for module, path in known.items():
        named = [(m, f"{m}.{name}") for m, name in imports(path)]
        found[module] = {full if full in known else m for m, full in named if m in known} - {module}
    return found


def room_of(module: str) -> str:
    """Returns the room of a module: the part of its name behind the package's."""
    return module.split(".")[1] if "." in module else FRONT_DOOR


def rooms(imported: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Returns for each room the rooms that it imports."""
    found: dict[str, set[str]] = {}
    for module, others in imported.items():
        known = found.setdefault(room_of(module), set())
        known |= {room_of(other) for other in others} - {room_of(module), FRONT_DOOR}
    found.pop(FRONT_DOOR, None)
    return found


def circle(found: Mapping[str, set[str]]) -> str:
    """Returns a circle of imports, as `a imports b imports a`; empty if there is none."""
    try:
        TopologicalSorter(found).prepare()
    except CycleError as error:
        return " imports ".join(reversed(error.args[1]))
    return ""


def reduced(found: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Leaves out the imports that follow from others.

    Raises:
        ValueError: there is a circle.
    """
    if way := circle(found):
        raise ValueError(f"{way}, a circle: move the code that both need into a room below them")

    def below(room: str) -> set[str]:
        return set().union(*({other} | below(other) for other in found.get(room, ())))

    return {
        room: {other for other in others if not any(other in below(o) for o in others)}
        for room, others in found.items()
    }


def svg(found: Mapping[str, set[str]]) -> str:
    """Draws the rooms and their imports, the ground floor at the bottom."""
    top = len(ORDER) - 1
    height = ROW * top + HEIGHT + 2 * MARGIN
    place = {
        room: (x, MARGIN + (top - level) * ROW)
        for level, line in enumerate(ORDER)
        for room, (_, x) in line.items()
    }
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" text-anchor="middle">',
        "<title>The rooms of raymimic, and the imports between them</title>",
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 10 5 0 10z" fill="#7a8799"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for room, (x1, y1) in place.items():
        for other in sorted(found.get(room, set()) - GROUND):
            (x2, y2), start = place[other], y1 + HEIGHT
            bend = (y2 - start) / 2
            lines.append(
                f'<path d="M{x1} {start}C{x1} {start + bend:g} {x2} {y2 - bend:g} {x2} {y2}" '
                'fill="none" stroke="#7a8799" marker-end="url(#tip)"/>'
            )
    for line in ORDER:
        for room, (purpose, x) in line.items():
            y, color = place[room][1], "#f3efe6" if room in GROUND else "#eef3fa"
            lines.append(
                f'<rect x="{x - BOX // 2}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="6" '
                f'fill="{color}" stroke="#7a8799"/>'
                f'<text x="{x}" y="{y + 18}" font-size="14" font-weight="bold">{room}</text>'
                f'<text x="{x}" y="{y + 35}" font-size="11" fill="#444444">{purpose}</text>'
            )
    return "\n".join([*lines, "</svg>", ""])


def main() -> None:
    """Writes the picture, or checks it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if it is old")
    args = parser.parse_args()
    try:
        picture = svg(reduced(rooms(graph())))
    except ValueError as error:
        sys.exit(str(error))
    if not args.check:
        PICTURE.write_text(picture, encoding="utf-8")
    elif not PICTURE.exists() or PICTURE.read_text(encoding="utf-8") != picture:
        sys.exit(f"{PICTURE} differs from the imports: run {Path(__file__).name} and commit it")


if __name__ == "__main__":
    main()
