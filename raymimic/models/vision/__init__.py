"""Networks for images: backbones, pools, randomizers.

Importing it makes all of them known by their class names.
"""

from raymimic.models.vision import convolutions, pools, randomizers, resnets

__all__ = ["convolutions", "pools", "randomizers", "resnets"]
