"""Facts about a training, by which records are found: dataset, versions, git commit.

Those that people read and filter by have plain names; the others begin with `raymimic.`. Runs of
raymimic 0.1.0 keep its names, see `names_of_0_1_0`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

import raymimic
from raymimic.config import BaseConfig
from raymimic.credentials import masked

_NAMES_OF_0_1_0 = {
    "raymimic_version": "version.raymimic",
    **{f"raymimic.{name}": name for name in ("dataset_digest", "workers", "git_commit")},
    **{
        f"raymimic.version.{name}": f"version.{name}"
        for name in ("python", "torch", "ray", "mujoco", "gymnasium")
    },
}


def run_tags(config: BaseConfig, digest: str, environments: Iterable[str]) -> dict[str, str]:
    """The tags of a training, by which MLflow's comparison page filters.

    Args:
        config: the whole config.
        digest: content digest of its data.
        environments: names of those that evaluate it.
    """
    tags = {
        "algo": config.algo_name,
        "dataset": dataset_name(config),
        "environment": ",".join(environments),
        "raymimic_version": raymimic.__version__,
        "raymimic.dataset_digest": digest,
        "raymimic.workers": str(config.ray.num_workers),
        "raymimic.version.python": sys.version.split()[0],
    }
    if not tags["environment"]:
        del tags["environment"]
    libraries = ("torch", "ray", "mujoco", "gymnasium")
    tags |= {f"raymimic.version.{name}": version(name) for name in libraries}
    return tags | source_tags()


def names_of_0_1_0(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags under the names that raymimic 0.1.0 gave them."""
    return {_NAMES_OF_0_1_0.get(name, name): value for name, value in tags.items()}


def source_tags() -> dict[str, str]:
    """The program and the commit behind a run, as MLflow names them.

    The commit is that of the current folder, as a command may lie outside of the user's repository.
    """
    tags = {"mlflow.source.name": sys.argv[0] or "<console>", "mlflow.source.type": "LOCAL"}
    commit = _git_commit()
    if commit is None:
        return tags
    found = {
        "mlflow.source.git.branch": _git("symbolic-ref", "--quiet", "--short", "HEAD"),
        "mlflow.source.git.repoURL": masked(_git("config", "--get", "remote.origin.url") or ""),
    }
    tags |= {
        "raymimic.git_commit": commit,
        "mlflow.source.git.commit": commit.removesuffix("-dirty"),
    }
    return tags | {key: value for key, value in found.items() if value}


def dataset_name(config: BaseConfig) -> str:
    """The names of a training's dataset files, without their folders."""
    data = config.train.data
    paths = [data] if isinstance(data, str) else [d["path"] for d in data]
    return ",".join(Path(masked(str(path))).name for path in paths)


def _git_commit() -> str | None:
    """The commit of the current folder, marked when there are changes.

    The settings of an untrusted repository may name programs that git would run to compare files.
    Then nothing is compared, and the commit stands alone.
    """
    if (commit := _git("rev-parse", "--verify", "HEAD")) is None:
        return None
    filters = _asked("config", "--show-scope", "--get-regexp", "^filter")
    if filters is None or filters.returncode > 1:
        return commit
    if any(line.startswith(("local", "worktree")) for line in filters.stdout.splitlines()):
        return commit
    changed = _asked("diff-index", "--quiet", "--ignore-submodules=all", "HEAD", "--")
    return f"{commit}-dirty" if changed is not None and changed.returncode else commit


def _git(*arguments: str) -> str | None:
    """The answer of git about the current folder; None where it has none."""
    asked = _asked(*arguments)
    return None if asked is None or asked.returncode else asked.stdout.strip() or None


def _asked(*arguments: str) -> subprocess.CompletedProcess[str] | None:
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-c", "core.fsmonitor=false", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
