"""Datasets: what a valid one is, demonstrations in memory, sampling order, batches, statistics."""
