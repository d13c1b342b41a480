"""Plays environments to write datasets, and draws pictures of datasets."""
