"""The benchmark of training speed on this machine: `ih-interp bench`."""
