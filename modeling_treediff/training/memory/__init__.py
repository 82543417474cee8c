"""Memory of a training step: measured, planned, and what to do when it runs out."""
