"""What each subcommand of `treediff` can be told: dataclasses, in modules that import neither torch nor a model."""
