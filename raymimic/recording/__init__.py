"""Plays environments in order to write a dataset."""
