"""`python examples/evaluate.py ...`: the same as `treediff evaluate ...`."""

import sys

from modeling_treediff.cli.main import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
