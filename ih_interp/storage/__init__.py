"""Files of a run on disk: written whole or not at all, and read with suspicion. Knows no model."""
