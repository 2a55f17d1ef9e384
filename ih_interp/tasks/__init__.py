"""What models are trained on: tasks, their exemplars and how sequences are sampled."""
