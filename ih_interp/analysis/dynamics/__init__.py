"""Measures over checkpoints, and when a network learned."""
