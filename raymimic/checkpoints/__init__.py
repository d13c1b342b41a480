"""Checkpoints: their content, reading and writing them, policies out of them, export."""
