"""Converters of datasets under robomimic's names; `raymimic dataset convert` knows more formats."""
