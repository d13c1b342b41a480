"""Entry points under robomimic's names."""
