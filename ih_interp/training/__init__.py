"""Training: one update of a fleet, which runs train together, and when to evaluate, save, stop."""

from ih_interp._systems import refuse_other_systems

refuse_other_systems()
