"""Sweeps: many trainings over hyperparameters and seeds, compared fairly."""
