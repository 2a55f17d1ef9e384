import math

import numpy as np
import pandas as pd
import pytest

from ih_interp.analysis.emergence import LEARNED, first_below, time_on_plateau


def test_a_planted_crossing_is_found():
    sequences = np.arange(0.0, 100.0, 10.0)
    line = 2 - sequences / 50
    for level in (0.3, 1.0, 1.77):
        assert first_below(sequences, line, level) == pytest.approx(50 * (2 - level))


def test_a_curve_below_from_the_start_and_one_that_never_is():
    sequences = np.array([0.0, 1.0])
    assert first_below(sequences, np.array([0.1, 0.0]), 0.5) == 0.0
    assert first_below(sequences, np.array([2.0, 1.0]), 0.5) == math.inf


def test_the_first_of_several_crossings_counts():
    curve = np.array([2.0, 0.0, 2.0, 0.0])
    assert first_below(np.arange(4.0), curve, 1.0) == pytest.approx(0.5)


def test_time_on_a_planted_plateau():
    sequences = np.arange(0.0, 1_000.0)
    loss = np.where(sequences <= 100, 2 - 0.012 * sequences, 0.75)
    loss = np.where(sequences > 600, 0.75 - 0.01 * (sequences - 600), loss)
    # Below 0.8 at 100, below 0.6 at 615.
    assert time_on_plateau(sequences, loss) == pytest.approx(515, abs=0.1)
    assert time_on_plateau(sequences, np.full(1_000, 0.7)) == math.inf


def test_the_papers_level():
    assert pytest.approx(0.4 * math.log(2)) == LEARNED


def test_columns_cut_from_a_table_are_read_by_place():
    """Their index starts anywhere: read by it, a crossing would lie elsewhere, or nowhere."""
    table = pd.DataFrame({"split": ["test", "train"] * 4, "sequences": np.repeat(np.arange(4), 2)})
    table["loss"] = [9.0, 2.0, 9.0, 1.0, 9.0, 0.0, 9.0, 0.0]
    rows = table[table["split"] == "train"]
    assert first_below(rows["sequences"], rows["loss"], 0.5) == pytest.approx(1.5)
    assert first_below([0, 1, 2], [2, 1, 0], 0.5) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("sequences", "curve", "words"),
    [
        ([0, 1, 2], [2, 1], r"sequences have shape \(3,\) and the curve \(2,\); \[point\] each"),
        ([[0, 1]], [[2, 1]], r"\[point\] each was expected"),
        ([0, 2, 1], [2, 1, 0], "do not ascend; sort"),
        ([0, 1, 0, 1], [2, 1, 2, 1], "one run's at a time"),
        ([0, 1, 2], [2, np.nan, 0], "1 values of the curve are NaN"),
    ],
)
def test_what_is_no_curve_is_refused(sequences, curve, words):
    for measure in (time_on_plateau, lambda x, y: first_below(x, y, 0.5)):
        with pytest.raises(ValueError, match=words):
            measure(sequences, curve)
