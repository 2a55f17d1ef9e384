"""Training: one update of a fleet, which runs train together, and when to evaluate, save, stop."""
