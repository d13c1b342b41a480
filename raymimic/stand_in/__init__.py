"""The folder that child processes of a script find robomimic in, see `robomimic.py`."""
