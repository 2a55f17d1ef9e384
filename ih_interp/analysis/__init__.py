"""Reading checkpoints: scores of heads, and one loop over a run's checkpoints."""
