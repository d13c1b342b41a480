"""Settings: dotted, key-locked, one class for each algorithm."""

from raymimic.config.base_config import (
    BaseConfig,
    config_factory,
    config_from_file,
    get_all_registered_configs,
    import_modules,
    parse_set,
)
from raymimic.config.bc_config import BCConfig
from raymimic.config.bcq_config import BCQConfig
from raymimic.config.config import Config
from raymimic.config.cql_config import CQLConfig
from raymimic.config.diffusion_policy_config import DiffusionPolicyConfig
from raymimic.config.gl_config import GLConfig
from raymimic.config.hbc_config import HBCConfig
from raymimic.config.iql_config import IQLConfig
from raymimic.config.iris_config import IRISConfig
from raymimic.config.rebrac_config import ReBRACConfig
from raymimic.config.td3_bc_config import TD3_BCConfig

__all__ = [
    "BCConfig",
    "BCQConfig",
    "BaseConfig",
    "CQLConfig",
    "Config",
    "DiffusionPolicyConfig",
    "GLConfig",
    "HBCConfig",
    "IQLConfig",
    "IRISConfig",
    "ReBRACConfig",
    "TD3_BCConfig",
    "config_factory",
    "config_from_file",
    "get_all_registered_configs",
    "import_modules",
    "parse_set",
]
