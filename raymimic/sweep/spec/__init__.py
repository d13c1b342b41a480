"""The description of a sweep: its settings, its space, and every check before it starts."""
