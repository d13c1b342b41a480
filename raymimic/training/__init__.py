"""The training loop, its driver, and what they promise each other."""
