"""`python examples/plan_memory.py ...`: the same as `treediff plan-memory ...`."""

import sys

from modeling_treediff.cli.main import main

if __name__ == "__main__":
    main(["plan-memory", *sys.argv[1:]])
