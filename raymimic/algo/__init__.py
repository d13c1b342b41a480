"""Algorithms: their losses and steps on a batch, and the policies that act at test time."""

from raymimic.algo import algo
from raymimic.algo.algo import (
    Algo,
    PlannerAlgo,
    PolicyAlgo,
    ValueAlgo,
    algo_class,
    algo_factory,
    algo_name_to_factory_func,
    register_algo_factory_func,
    registered_algos,
)
from raymimic.algo.composite import CompositeAlgo, HierarchicalAlgo
from raymimic.algo.rollout_policy import RolloutPolicy

# isort: split
# Importing an algorithm registers it.
from raymimic.algo.bc import (
    BC,
    BC_GMM,
    BC_RNN,
    BC_RNN_GMM,
    BC_VAE,
    BC_Gaussian,
    BC_Transformer,
    BC_Transformer_GMM,
)
from raymimic.algo.bcq import BCQ
from raymimic.algo.cql import CQL
from raymimic.algo.diffusion_policy import (
    DiffusionPolicy,
    DiffusionPolicyTransformer,
    DiffusionPolicyUNet,
)
from raymimic.algo.gl import GL, GL_VAE, ValuePlanner
from raymimic.algo.hbc import HBC
from raymimic.algo.iql import IQL
from raymimic.algo.iris import IRIS
from raymimic.algo.rebrac import ReBRAC
from raymimic.algo.td3_bc import TD3_BC

__all__ = [
    "BC",
    "BCQ",
    "BC_GMM",
    "BC_RNN",
    "BC_RNN_GMM",
    "BC_VAE",
    "CQL",
    "GL",
    "GL_VAE",
    "HBC",
    "IQL",
    "IRIS",
    "TD3_BC",
    "Algo",
    "BC_Gaussian",
    "BC_Transformer",
    "BC_Transformer_GMM",
    "CompositeAlgo",
    "DiffusionPolicy",
    "DiffusionPolicyTransformer",
    "DiffusionPolicyUNet",
    "HierarchicalAlgo",
    "PlannerAlgo",
    "PolicyAlgo",
    "ReBRAC",
    "RolloutPolicy",
    "ValueAlgo",
    "ValuePlanner",
    "algo_class",
    "algo_factory",
    "algo_name_to_factory_func",
    "register_algo_factory_func",
    "registered_algos",
]

# robomimic has both in the module `algo`.
algo.HierarchicalAlgo = HierarchicalAlgo  # type: ignore[attr-defined]
algo.RolloutPolicy = RolloutPolicy  # type: ignore[attr-defined]
