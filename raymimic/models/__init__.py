"""Networks: blocks, observation encoders, policies and value functions.

Names of parameters and their shapes are robomimic's, so that checkpoints load in both directions.
Networks for images are in `vision` here, and in `base_nets` and `obs_core` in robomimic; some
policies have moved too. The modules of robomimic's names still export them.
"""

from raymimic.models import base_nets, obs_core, policy_nets, transformers, vae_nets
from raymimic.models.obs_core import EncoderCore
from raymimic.models.vision import convolutions, pools, randomizers, resnets
from raymimic.models.vision.randomizers import Randomizer

__all__ = ["EncoderCore", "Randomizer"]

for _module, _home, _names in (
    (base_nets, convolutions, ("Conv1dBase", "ConvBase", "CoordConv2d", "ShallowConv")),
    (base_nets, pools, ("FeatureAggregator", "SpatialMeanPool", "SpatialSoftmax")),
    (base_nets, resnets, ("R3MConv", "ResNet18Conv", "ResNet18ConvFiLM", "ResNet50Conv")),
    (base_nets, transformers, ("transformer_args_from_config",)),
    (policy_nets, transformers, ("TransformerActorNetwork", "TransformerGMMActorNetwork")),
    (policy_nets, vae_nets, ("VAEActor",)),
    (
        obs_core,
        randomizers,
        ("ColorRandomizer", "CropRandomizer", "GaussianNoiseRandomizer", "Randomizer"),
    ),
):
    for _name in _names:
        setattr(_module, _name, getattr(_home, _name))
# The place of robomimic 0.2.
base_nets.CropRandomizer = randomizers.CropRandomizer  # type: ignore[attr-defined]
