"""How fast training is here: `ih-interp bench`."""
