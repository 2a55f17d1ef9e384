"""Trainings that are killed end with the bytes of one that is not."""

import os
import random

import pytest
from kills import Killer

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("IH_KILLS", "25"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # forking beside threads of other tests
def test_killed_at_any_moment_a_fleet_ends_with_the_same_bytes(tmp_path):
    """More with `IH_KILLS=200`; `tests/stress/kills.py` has other engines."""
    seed = int(os.environ.get("IH_KILLS_SEED", random.SystemRandom().randrange(10**6)))
    killer = Killer(tmp_path, engine="eager", workers=1, seed=seed)
    differing = killer.kill(KILLS)
    told = f"IH_KILLS_SEED={seed}, after {killer.survived} kills at {killer.moments}"
    assert differing == [], told
    assert killer.survived >= KILLS, told
    names = {name.split("/")[1] for name in killer.expected}
    assert names == {"config.json", "metrics.jsonl", "checkpoints", "state.safetensors"}
