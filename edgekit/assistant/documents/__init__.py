"""Your documents: files are read, cut into passages, indexed, searched and cited."""
