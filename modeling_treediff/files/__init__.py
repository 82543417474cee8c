"""Files: atomic writes, JSON, fingerprints, and records of measurements."""
