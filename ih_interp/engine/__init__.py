"""The model's forward pass as a compiled graph: the same numbers for less work."""
