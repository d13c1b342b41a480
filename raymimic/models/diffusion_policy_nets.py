"""robomimic's name for the U-Net of Diffusion Policy."""

from raymimic.models.diffusion_nets import ConditionalUnet1D

__all__ = ["ConditionalUnet1D"]
