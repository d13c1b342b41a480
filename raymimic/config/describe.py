"""Lists a config's keys with defaults, meanings and limits: `raymimic config ALGO`."""

from __future__ import annotations

import ast
import inspect
import io
import json
import os
import textwrap
import tokenize
from typing import Any

from raymimic.config.base_config import BaseConfig
from raymimic.config.limits import limits_of, table_mistakes
from raymimic.config.templates import config_named
from raymimic.errors import ConfigError


def describe(name: str) -> str:
    """Lists all settings of an algorithm or a template, a line each.

    A line is `key = JSON value  # meaning; limits`.

    The meanings are the comments in the source of the config's class, its bases, sections and
    parts, trailing or preceding an assignment. Optional keys are commented out; the value is the
    meaning of their absence.

    Raises:
        ConfigError: unknown algorithm, or a mistake in the tables of its config class.
    """
    config = config_named(name)
    if mistakes := table_mistakes(type(config)):
        raise ConfigError(mistakes[0])
    meanings = comments(type(config))
    del config["algo_name"]  # no setting
    present = dict(config.leaves())
    lines = [f"# All settings of {name}; change one with --set 'key=value'."]
    section = ""
    for path, value in config.leaves(optional=True):
        if path.split(".")[0] != section:
            section = path.split(".")[0]
            lines.append("")
        setting = f"{path} = {json.dumps(value, default=os.fspath)}"
        if path in present:
            meaning = _nearest(path, meanings)
        elif meaning := meanings.get(path, ""):
            setting = f"# {setting}"
        else:
            continue  # accepted, but of no use
        limits = limits_of(type(config), path).in_words()
        if limits and isinstance(value, list | tuple):
            limits = f"each {limits}"
        notes = "; ".join(filter(None, (meaning.rstrip("."), limits)))
        lines.append(f"{setting:<56}  # {notes}" if notes else setting)
    return "\n".join(lines)


def comments(cls: type[BaseConfig]) -> dict[str, str]:
    """Reads the comments on each dotted key in the sources of a config class."""
    meanings: dict[str, str] = {}
    for place in reversed(list(cls().places())):
        for base in reversed(place.cls.__mro__):
            for name, method in vars(base).items():
                if name.endswith("_config") and inspect.isfunction(method):
                    texts = _comments_in(method)
                    for key, text in texts.items():
                        if path := place.of(key):
                            meanings[path] = text
    return meanings


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
    texts = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and (path := _path_of(node.targets[0])):
            above: list[str] = []
            while (line := node.lineno - 1 - len(above)) in alone:
                above.append(alone[line])
            text = beside.get(node.end_lineno or 0) or beside.get(node.lineno)
            if text or above:
                texts[path] = text or " ".join(reversed(above))
    return texts


def _path_of(target: ast.expr) -> str:
    """Returns `a.b` for the expression `self.a.b`, else an empty string."""
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
