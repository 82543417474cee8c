"""`python examples/inspect_tree.py ...`: the same as `treediff inspect-tree ...`."""

import sys

from modeling_treediff.cli.main import main

if __name__ == "__main__":
    main(["inspect-tree", *sys.argv[1:]])
