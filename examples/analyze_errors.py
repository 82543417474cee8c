"""`python examples/analyze_errors.py ...`: the same as `treediff analyze-errors ...`."""

import sys

from modeling_treediff.cli.main import main

if __name__ == "__main__":
    main(["analyze-errors", *sys.argv[1:]])
