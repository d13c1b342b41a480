"""Names that robomimic's tutorials import, and storage."""
