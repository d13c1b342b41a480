"""Columns of datasets as files on the node's own disk, one copy for all of its processes.

`column_file.py` defines the form of such a file, `build.py` writes it in one pass over a dataset,
`room.py` keeps the folder within its limit, `read.py` reads rows from it.
"""
