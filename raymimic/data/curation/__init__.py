"""Describes the files of datasets, finds their faults, and changes them: the `dataset` commands.

`summary.py` and `profile.py` describe a file, `validate.py` lists its faults. `masks.py` writes
filter keys into it; `repair.py` and `merge.py` write new files, by `copying.py`.
"""
