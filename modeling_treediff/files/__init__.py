"""Files on this machine: written whole or not at all, with what made them."""
