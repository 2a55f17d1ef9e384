"""What results print: arrays as shapes, so that the last line of a cell is a line."""

import dataclasses
import inspect
import re
from typing import NamedTuple, get_args

import numpy as np
import pandas as pd
import pytest
import torch

import ih_interp as ih
from ih_interp._reprs import short_repr
from ih_interp.analysis import statistics
from ih_interp.analysis.ablation import interactions
from ih_interp.analysis.dynamics import survival
from ih_interp.analysis.dynamics.emergence import Crossing
from ih_interp.analysis.heads import copying

HEADS = ["L1H0", "L1H1"]


@short_repr
class Two(NamedTuple):
    first: object
    second: object = 0


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (torch.zeros(3, 4), "Tensor[3, 4]"),
        (np.zeros((1, 2), np.float32), "ndarray[1, 2]"),
        (torch.zeros(9), "Tensor[9]"),
        (torch.tensor([0.123456, 2.0]), "[0.1235, 2]"),
        (np.array([1, 20_000]), "[1, 20000]"),
        (torch.tensor(1 / 3), "0.3333"),
        (np.float64(1e-12), "1e-12"),
        (torch.zeros(2, requires_grad=True), "[0, 0]"),
        (torch.zeros(2, device="meta"), "Tensor[2]"),
        (torch.zeros(0), "[]"),
        (pd.DataFrame({"a": range(300), "b": 0}), "DataFrame[300, 2]"),
        ({"W": torch.zeros(5, 5), "n": 2}, "{'W': Tensor[5, 5], 'n': 2}"),
        ((ih.Head(1, 3), ih.Head(1, 0)), "[L1H3, L1H0]"),
        ("zero", "'zero'"),
        (None, "None"),
        (torch.nn.ReLU(), "ReLU()"),
        (torch.nn.Sequential(torch.nn.ReLU()), "Sequential"),
        (list(range(1_000)), "[1,000 items]"),
        (dict.fromkeys("abcd", "x" * 90), "[4 items]"),
        ("x" * 200, "str"),
        (Two(torch.zeros(9, 9)), "Two(first=Tensor[9, 9], second=0)"),
    ],
)
def test_arrays_are_shapes_and_few_numbers_are_numbers(value, shown):
    assert repr(Two(value)) == f"Two(first={shown}, second=0)"
    if shown.startswith("{"):
        mapping = short_repr(type("Named", (dict,), {}))(value)
        assert repr(mapping) == "Named(W=Tensor[5, 5], n=2)"


def test_inside_of_a_vmap_too():
    seen = []
    torch.vmap(lambda row: seen.append(repr(Two(row))) or row)(torch.zeros(2, 3))
    assert seen == ["Two(first=Tensor[3], second=0)"]


@pytest.fixture(scope="module")
def results(task):
    """One of everything that holds arrays and comes back from a public function."""
    model = ih.build_model(task, seed=0)
    batch = task.sample("train", 64, generator=torch.Generator().manual_seed(1))
    games_of_heads = ih.coalitions(model, batch, HEADS, per_sequence=True)
    wiring = ih.wiring_map(model, batch, ih.patching.swap_exemplars(batch), per_sequence=True)
    times = {seed: Crossing(float(seed + 1), True) for seed in range(3)}
    return [
        batch,
        task,
        task.exemplars,
        ih.evaluate(model, batch),
        ih.patching.self_repair(model, batch, HEADS),
        ih.patching.direct_path_removed(model, batch),
        ih.patching.preserving_map(model, batch, preserve="values", per_sequence=True),
        ih.patching.preserving_ablation(model, batch, HEADS, preserve="values"),
        games_of_heads,
        ih.additivity_test(model, batch, HEADS, n_resamples=9, n_permutations=9),
        wiring,
        ih.patching.many_to_many(wiring.through("k")),
        ih.patching.effective_senders(wiring.through("k")),
        interactions.spectrum_by_order(games_of_heads.values),
        interactions.additive_fit(games_of_heads.values),
        survival.kaplan_meier(list(times.values())),
        survival.paired_times(times, times),
        ih.heads.copying_score_diag(model),
        ih.clamps.Setting(model, batch, dict(model.named_parameters())),
    ]


def test_results_are_a_short_line(results):
    for result in results:
        shown = repr(result)
        assert "\n" not in shown
        assert len(shown) < 400, shown
        assert "tensor(" not in shown
        assert "array(" not in shown
        assert shown.startswith(f"{type(result).__name__}(")


def test_what_they_show(results):
    shown = {type(result).__name__: repr(result) for result in results}
    assert shown["Batch"] == "Batch(tokens=Tensor[64, 5], targets=Tensor[64, 5])"
    assert shown["Wiring"] == (
        "Wiring(effects=Tensor[64, 3, 8, 8], via=['q', 'k', 'v'], sender_layer=0, "
        "receiver_layer=1, higher_is_used=False)"
    )
    assert shown["SequenceMetrics"].startswith(
        "SequenceMetrics(loss=Tensor[64], accuracy=Tensor[64], "
    )
    assert re.match(
        r"AdditivityReport\(heads=\[L1H0, L1H1\], .*numbers=DataFrame\[", shown["AdditivityReport"]
    )
    assert "values=[" in shown["Coalitions"]  # four subsets: the numbers themselves
    assert "per_sequence=ndarray[64, 4]" in shown["Coalitions"]


def classes_of(annotation):
    if inspect.isclass(annotation):
        yield annotation
    for part in get_args(annotation):
        yield from classes_of(part)


def test_every_class_that_a_public_function_returns_is_short(results):
    modules = [ih, ih.clamps, copying, interactions, statistics, survival]
    public = [getattr(module, name) for module in modules for name in dir(module) if name[0] != "_"]
    functions = [value for value in public if inspect.isfunction(value)]
    returned = [inspect.signature(function).return_annotation for function in functions]
    ours = {
        found
        for annotation in [*returned, *filter(inspect.isclass, public)]
        for found in classes_of(annotation)
        if found.__module__.startswith("ih_interp")
        and (dataclasses.is_dataclass(found) or hasattr(found, "_fields"))
        and re.search(r"Tensor|ndarray|DataFrame", str(found.__annotations__))
    }
    assert len(ours) > 10
    assert {found.__name__ for found in ours} <= {type(result).__name__ for result in results}


def test_means_and_tables_of_metrics(task):
    model = ih.build_model(task, seed=0)
    batch = task.sample("train", 7, generator=torch.Generator().manual_seed(1))
    found = ih.evaluate(model, batch)
    table = found.table()
    assert list(table) == list(found)
    assert len(table) == 7
    assert table["loss"].tolist() == found.loss.tolist()
    assert found.mean()["loss"] == pytest.approx(sum(found.loss.tolist()) / 7, abs=1e-15)
    assert found.mean() == pytest.approx(table.mean().to_dict(), abs=1e-15)
