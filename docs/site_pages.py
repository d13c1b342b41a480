"""Pages of the site that are made from other files: a hook of mkdocs (see `mkdocs.yml`).

The site shows README, changes and the like where they lie, and a reference that the package itself
prints. So no text stands twice.
"""

import json
import posixpath
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from raymimic.cli.commands import COMMANDS
from raymimic.cli.shared import Parser
from raymimic.config import get_all_registered_configs
from raymimic.config.describe import describe

ROOT = Path(__file__).resolve().parent.parent
# Files of the repository that are pages too.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "cluster/README.md": "clusters.md",
}
NOTEBOOKS = {
    f"docs/notebooks/{path.name}": f"notebooks/{path.stem}.md"
    for path in sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
}
_LINK = re.compile(r"(!?)\[((?:[^][]|\[[^]]*\])*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are no files of `docs/`."""
    made = {page: (ROOT / source).read_text() for source, page in PAGES.items()}
    made |= {page: notebook(ROOT / source) for source, page in NOTEBOOKS.items()}
    made["reference/commands.md"] = commands()
    made["reference/settings.md"] = settings()
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Turns links between files of the repository into links between pages."""
    uri = page.file.src_uri
    source = next((file for file, name in PAGES.items() if name == uri), f"docs/{uri}")

    def moved(match: re.Match[str]) -> str:
        picture, text, target = match.groups()
        if "://" in target or target.startswith(("#", "mailto:")):
            return match.group()
        path, hash_, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"{source}: the link to '{target}' leads nowhere")
        to = (PAGES | NOTEBOOKS).get(path)
        if to is None and path.startswith("docs/"):
            to = path.removeprefix("docs/")
        if to is not None and not to.endswith(".py"):
            to = posixpath.relpath(to, posixpath.dirname(uri) or ".")
            return f"{picture}[{text}]({to}{hash_}{anchor})"
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path}{hash_}{anchor})"
        return text

    return _LINK.sub(moved, markdown)


def notebook(path: Path) -> str:
    """The cells of a notebook. The repository keeps no outputs."""
    cells = []
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        cells.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(cells)


def commands() -> str:
    """Every command with its arguments."""
    parts = ["# Commands", "`raymimic COMMAND --help` prints the same."]
    for words, (module, help_text) in COMMANDS.items():
        parser = Parser(prog=f"raymimic {words}", description=help_text)
        import_module(module).arguments(parser)
        parts += [f"## raymimic {words}", f"```text\n{parser.format_help().strip()}\n```"]
    return "\n\n".join(parts)


def settings() -> str:
    """Every setting of every algorithm, with default, meaning and limits."""
    parts = ["# Settings", "`raymimic config NAME` prints the same."]
    for name in sorted(get_all_registered_configs()):
        parts += [f"## {name}", f"```yaml\n{describe(name).strip()}\n```"]
    return "\n\n".join(parts)
