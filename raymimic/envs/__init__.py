"""Environments behind robomimic's interface, and the registry of their kinds."""
