"""`python examples/convert.py ...`: the same as `treediff convert ...`."""

import sys

from modeling_treediff.cli.main import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
