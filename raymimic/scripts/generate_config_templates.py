"""Writes the default config of each built-in algorithm to ``raymimic/exps/templates``.

Run ``python -m raymimic.scripts.generate_config_templates`` after a default has changed.
"""

from pathlib import Path

import raymimic.config
from raymimic.config import config_factory, get_all_registered_configs

TEMPLATES = Path(raymimic.config.__file__).parents[1] / "exps" / "templates"


def main() -> None:
    """Writes ``<algorithm>.json`` for each algorithm that the package itself defines."""
    for name, cls in get_all_registered_configs().items():
        if cls.__module__.startswith("raymimic."):
            config_factory(name).dump(TEMPLATES / f"{name}.json")


if __name__ == "__main__":
    main()
