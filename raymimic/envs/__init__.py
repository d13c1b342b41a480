"""Environments behind robomimic's interface."""
