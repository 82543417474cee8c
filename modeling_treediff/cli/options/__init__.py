"""The options of each subcommand of `treediff`: dataclasses, in modules that import neither torch nor a model."""
