"""`python examples/generate.py ...`: the same as `treediff generate ...`."""

import sys

from modeling_treediff.cli.main import main

if __name__ == "__main__":
    main(["generate", *sys.argv[1:]])
