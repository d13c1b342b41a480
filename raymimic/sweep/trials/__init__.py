"""How a sweep runs: its trials under Ray Tune, their scores, schedulers and records."""
