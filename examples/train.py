"""`accelerate launch --quiet examples/train.py ...`: the same as `treediff train ...`."""

import sys

from modeling_treediff.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
