"""Training: which runs train together, and when to evaluate, save and stop."""

from ih_interp._systems import refuse_other_systems

refuse_other_systems()
