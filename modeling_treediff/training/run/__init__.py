"""A training run: settings, the loop, checkpoints, logs."""
