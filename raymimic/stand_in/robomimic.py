"""Stands for robomimic in processes that multiprocessing starts for a script.

They begin with the import path of the script, on which `raymimic.as_robomimic` puts this file's
folder, and without its finder. The first `import robomimic` finds this file, which is then replaced
by raymimic, and all further imports are the finder's.
"""

import sys

import raymimic
import raymimic.as_robomimic

sys.modules[__name__] = raymimic
