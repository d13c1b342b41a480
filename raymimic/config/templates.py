"""The templates: configs that come with raymimic, such as `bc_rnn`, by name."""

from pathlib import Path

from raymimic.config.base_config import (
    BaseConfig,
    config_factory,
    config_from_file,
    get_all_registered_configs,
)
from raymimic.errors import ConfigError, perhaps

TEMPLATES = Path(__file__).parents[1] / "exps" / "templates"


def config_named(name: str) -> BaseConfig:
    """Makes the default config of an algorithm, or that of a template.

    Args:
        name: an `ALGO_NAME`, else the name of a file of `raymimic/exps/templates`.

    Raises:
        ConfigError: there is neither.
    """
    algos = get_all_registered_configs()
    if name in algos:
        return config_factory(name)
    templates = sorted({file.stem for file in TEMPLATES.glob("*.json")} - algos.keys())
    if name in templates:
        return config_from_file(TEMPLATES / f"{name}.json")
    raise ConfigError(
        f"unknown algorithm '{name}'{perhaps(name, [*algos, *templates])}: known are "
        f"{', '.join(sorted(algos))}, and the templates {', '.join(templates)}; if a module of "
        "yours defines it, name the module with --import"
    )
