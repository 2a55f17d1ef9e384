"""Studies beyond the paper: a question, the runs that answer it, and what was expected of them.

`ih-interp study NAME` runs one; `ih_interp.studies.run.run_study` is the same as a function.
"""

from collections.abc import Mapping
from importlib import import_module

from ih_interp.studies.study import Study

_MODULES = ("critical_periods", "emergence_law", "frozen_weights", "other_tasks")

STUDIES: Mapping[str, Study] = {
    study.name: study
    for study in (import_module(f"{__name__}.{module}").STUDY for module in _MODULES)
}
"""By name, as "critical periods"."""
