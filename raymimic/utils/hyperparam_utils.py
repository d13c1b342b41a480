"""robomimic's `hyperparam_utils`: configs of a search."""

from raymimic.sweep.spec.config_generator import ConfigGenerator

__all__ = ["ConfigGenerator"]
