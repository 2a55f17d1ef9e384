"""The benchmark on the slowest contender alone: what it measures, and what it writes."""

import numpy as np
import pytest
from typer.testing import CliRunner

from ih_interp.bench.bench import Contender, Process, bench, contenders, write
from ih_interp.bench.contender import make_fleet, matrix_flops, matrix_peak
from ih_interp.cli import app

pytestmark = pytest.mark.slow


def test_one_contender_end_to_end(tmp_path):
    said = []
    table = bench([Contender("eager", 1, "eager")], repeats=1, say=said.append)
    (row,) = table.to_dict("records")
    assert row["name"] == "eager"
    assert row["ratio"] == row["ratio_low"] == row["ratio_high"] == 1
    assert 1 < row["updates_per_second"] < 10_000
    assert 1 < row["first_update"] < 300
    assert 0 < row["overhead"] < 10
    assert 1e8 < row["memory"] < 4e9
    assert 0 < row["matrix_share"] < 1
    assert len(said) == 2
    paths = write(table, tmp_path)
    assert sorted(path.name for path in paths) == ["bench.csv", "bench.pdf", "bench.png"]
    assert all(path.stat().st_size > 100 for path in paths)


def test_a_dead_process_is_told_of(tmp_path):
    with pytest.raises(RuntimeError, match="died"):
        Process(Contender("none", 0, "eager"), tmp_path)


def test_contenders_are_eager_compiled_and_fleets():
    names = [entrant.name for entrant in contenders((2, 8))]
    assert names[:4] == ["eager", "compiled", "fleet of 2", "fleet of 8"]
    assert contenders((2, 8))[0].engine == "eager"


def test_operations_are_those_of_the_models_products(tmp_path):
    """Forward passes of the paper's model by hand; a gradient costs at most twice as much again."""
    fleet = make_fleet(2, "eager", tmp_path)
    rows, features, positions, d = 32, 50, 5, 64
    linear = 2 * features * 512 * d + 2 * 4 * 2 * rows * positions * d * d
    attention = 2 * 2 * 2 * rows * 8 * positions * positions * 8
    forward = linear + attention + 2 * rows * d * 5
    found = matrix_flops(fleet, compiled=False) / 2
    assert 2.5 * forward < found < 3.2 * forward
    assert matrix_flops(fleet, compiled=True) / 2 < found


def test_the_peak_is_that_of_one_large_product():
    peaks = [matrix_peak(5) for _ in range(3)]
    assert 1e9 < np.median(peaks) < 1e13


def test_sizes_are_checked_before_anything_starts():
    result = CliRunner().invoke(app, ["bench", "--sizes", "2,one"])
    assert result.exit_code == 2
    assert "whole numbers from 2 on were expected" in result.output
