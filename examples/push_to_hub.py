"""`python examples/push_to_hub.py ...`: the same as `treediff push ...`."""

import sys

from modeling_treediff.cli.main import main

if __name__ == "__main__":
    main(["push", *sys.argv[1:]])
