"""Networks: blocks, observation encoders, policies and value functions.

Names of parameters and their shapes are robomimic's, so that checkpoints go both ways.
"""
