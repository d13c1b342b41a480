"""Datasets: reading, checking and writing them, demonstrations in memory, batches, statistics."""
