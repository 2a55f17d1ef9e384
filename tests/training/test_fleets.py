"""The comparison of fleets with their runs alone (`tests/stress/fleets.py`) leaves no clamp out."""

from pathlib import Path
from typing import get_args

import fleets
import pytest

from ih_interp import clamps
from ih_interp.clamps.schedules import Schedule

pytestmark = pytest.mark.slow

KINDS = get_args(get_args(clamps.Clamp)[0])


@pytest.fixture(scope="module")
def chosen():
    made = fleets.combinations(Path("donors")).values()
    return [clamp for clamps_of in made for clamp in clamps_of(fleets.PLACES[0])]


def test_every_kind_of_clamp_is_compared(chosen):
    assert {type(clamp) for clamp in chosen} == set(KINDS)


def test_every_kind_of_schedule_is_compared(chosen):
    every = set(get_args(get_args(Schedule)[0]))
    assert {type(clamp.schedule) for clamp in chosen} == every
