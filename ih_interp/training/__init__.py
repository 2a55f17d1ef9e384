"""Training: which runs train together, and when to evaluate, save and stop."""
