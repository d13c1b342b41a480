"""`python -m raymimic.scripts.train --config … --dataset …`: robomimic's name for training."""

import sys

if __name__ == "__main__":
    from raymimic.cli import main

    main(["train", *sys.argv[1:]])
