"""`python examples/app.py ...`: the same as `treediff app ...`."""

import sys

from modeling_treediff.cli.main import main

if __name__ == "__main__":
    main(["app", *sys.argv[1:]])
