"""The version stands in one place; files that name a release agree with it."""

import ast
import configparser
import re
from pathlib import Path

import yaml

import raymimic

ROOT = Path(__file__).parents[2]
# A development version, such as 0.2.0.dev0, leads to the release 0.2.0. Files that name a release
# name that one, so that they are right on the day of the release.
RELEASE = raymimic.__version__.partition(".dev")[0]


def test_a_build_reads_the_version_without_importing_the_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["version"] == "attr: raymimic.__version__"
    # setuptools takes a literal from the source; to compute anything else it imports the package.
    module = ast.parse((ROOT / "raymimic/__init__.py").read_text())
    (literal,) = [
        ast.literal_eval(node.value)
        for node in module.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    assert literal == raymimic.__version__


def test_citation_names_the_release() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == RELEASE


def test_images_of_a_cluster_are_of_the_release() -> None:
    for name in ("README.md", "rayjob.yaml", "ray-up.yaml"):
        tags = re.findall(r"/raymimic:(\S+)", (ROOT / "cluster" / name).read_text())
        assert tags, name
        assert set(tags) == {RELEASE}, name


def test_the_newest_changes_are_of_the_release() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    unreleased = " (unreleased)" if raymimic.__version__ != RELEASE else ""
    assert headings[0] == f"{RELEASE}{unreleased}"
    assert not [heading for heading in headings[1:] if "unreleased" in heading]
