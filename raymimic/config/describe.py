"""A config's keys with their defaults and meanings, as ``raymimic config ALGO`` prints them."""

from __future__ import annotations

import ast
import inspect
import io
import json
import os
import textwrap
import tokenize
from typing import Any

from raymimic.config.base_config import (
    OPTIONAL_LEARNING_RATE,
    OPTIONAL_OPTIM_PARAMS,
    BaseConfig,
    config_factory,
)


def describe(algo_name: str) -> str:
    """Lists all settings of an algorithm, one ``key = JSON value  # meaning`` a line.

    The meanings are the comments in the source of the config's class and its bases, trailing or
    preceding an assignment. Optional keys stand in comments, with what their absence means.

    Raises:
        ConfigError: unknown algorithm.
    """
    config = config_factory(algo_name)
    meanings = comments(type(config))
    del config["algo_name"]  # no setting
    present = dict(config.leaves())
    lines = [f"# All settings of {algo_name}; change one with --set 'key=value'."]
    section = ""
    for path, value in config.leaves(optional=True):
        if path.split(".")[0] != section:
            section = path.split(".")[0]
            lines.append("")
        setting = f"{path} = {json.dumps(value, default=os.fspath)}"
        meaning = _nearest(path, meanings)
        if path not in present:
            meaning = _optional_meaning(path)
            setting = f"# {setting}"
            if not meaning:
                continue  # accepted, but of no use
        lines.append(f"{setting:<56}  # {meaning}" if meaning else setting)
    return "\n".join(lines)


def comments(cls: type[BaseConfig]) -> dict[str, str]:
    """Reads what the sources of a config class and its bases say about each dotted key."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        for name, method in vars(base).items():
            if name.endswith("_config") and inspect.isfunction(method):
                found.update(_comments_in(method))
    return found


def _comments_in(method: Any) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(method))
    except OSError:  # a class typed at a prompt has no source
        return {}
    beside: dict[int, str] = {}
    alone: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line, column = token.start
            place = beside if token.line[:column].strip() else alone
            place[line] = token.string.lstrip("# ").strip()
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and (path := _path_of(node.targets[0])):
            above: list[str] = []
            while (line := node.lineno - 1 - len(above)) in alone:
                above.append(alone[line])
            text = beside.get(node.end_lineno or 0) or beside.get(node.lineno)
            if text or above:
                found[path] = text or " ".join(reversed(above))
            found.update(_comments_of_part(node.value, path, method))
    return found


def _comments_of_part(value: ast.expr, path: str, method: Any) -> dict[str, str]:
    """Reads the comments of another algorithm's section: ``self.algo.actor = BCConfig().algo``."""
    match value:
        case ast.Attribute(value=ast.Call(func=ast.Name(id=name)), attr=section):
            part = method.__globals__.get(name)
            if isinstance(part, type) and issubclass(part, BaseConfig):
                inner = f"{section}."
                return {
                    path + key.removeprefix(section): text
                    for key, text in comments(part).items()
                    if key.startswith(inner)
                }
    return {}


def _path_of(target: ast.expr) -> str:
    """Returns ``a.b`` for the expression ``self.a.b``, else an empty string."""
    names: list[str] = []
    while isinstance(target, ast.Attribute):
        names.insert(0, target.attr)
        target = target.value
    return ".".join(names) if isinstance(target, ast.Name) and target.id == "self" else ""


def _nearest(path: str, meanings: dict[str, str]) -> str:
    """Returns the meaning of a key, or of the innermost section around it that has one."""
    while path and path not in meanings:
        path = path.rpartition(".")[0]
    return meanings.get(path, "")


def _optional_meaning(path: str) -> str:
    section, key = path.split(".")[-2:]
    table = OPTIONAL_LEARNING_RATE if section == "learning_rate" else OPTIONAL_OPTIM_PARAMS
    return table[key][1] if key in table else ""
