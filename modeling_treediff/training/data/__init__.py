"""Training data: windows of text as batches of corrupted tokens."""
