"""Files: atomic writes, JSON, fingerprints, kinds of texts, and records of measurements."""
