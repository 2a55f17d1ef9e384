"""The comparison of fleets with their runs alone (`tests/stress/fleets.py`) leaves no clamp out."""

from pathlib import Path

import fleets
import pytest

from ih_interp import clamps
from ih_interp.clamps.schedules import AbstractSchedule
from ih_interp.registry import kinds

pytestmark = pytest.mark.slow


def own_kinds(family):
    """The kinds of this package; other tests have registered theirs."""
    return {kind for kind in kinds(family).values() if kind.__module__.startswith("ih_interp.")}


@pytest.fixture(scope="module")
def chosen():
    made = fleets.combinations(Path("donors")).values()
    return [clamp for clamps_of in made for clamp in clamps_of(fleets.PLACES[0])]


def test_every_kind_of_clamp_is_compared(chosen):
    in_files = own_kinds(clamps.AbstractClamp) - {clamps.Function}
    assert {type(clamp) for clamp in chosen} == in_files


def test_every_kind_of_schedule_is_compared(chosen):
    assert {type(clamp.schedule) for clamp in chosen} == own_kinds(AbstractSchedule)
