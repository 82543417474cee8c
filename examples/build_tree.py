"""`python examples/build_tree.py ...`: the same as `treediff build-tree ...`."""

import sys

from modeling_treediff.cli.main import main

if __name__ == "__main__":
    main(["build-tree", *sys.argv[1:]])
