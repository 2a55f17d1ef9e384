"""`python -m ih_interp` is `ih-interp`."""

from ih_interp.cli import main

main()
