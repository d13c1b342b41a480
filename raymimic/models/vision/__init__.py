"""Networks for images: backbones, pools, randomizers.

Importing it makes all of them known by their class names.
"""

from raymimic.models.vision import convolutions, pools, randomizers, resnets
from raymimic.models.vision.convolutions import register_backbone
from raymimic.models.vision.pools import register_pool
from raymimic.models.vision.randomizers import register_randomizer

__all__ = [
    "convolutions",
    "pools",
    "randomizers",
    "register_backbone",
    "register_pool",
    "register_randomizer",
    "resnets",
]
