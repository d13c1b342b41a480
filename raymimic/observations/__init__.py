"""Observations: modalities, shapes, normalisation."""
