"""The command line: one module a subcommand of `treediff`."""
