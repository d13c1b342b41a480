"""`python -m raymimic.scripts.train --config … --dataset …`: robomimic's name for training."""

import sys

from raymimic.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
