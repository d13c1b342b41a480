"""robomimic's `macros`: settings of a whole process.

Attributes:
    DEBUG: whether `extract_class_init_kwargs_from_dict` logs arguments that it leaves out.
"""

DEBUG = False
