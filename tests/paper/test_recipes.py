"""The paper's runs as values: lengths, clamps and heads are those it names."""

from pathlib import Path

import pytest

import ih_interp as ih
from ih_interp.paper import recipes
from ih_interp.paper.presets import PRESETS
from ih_interp.paper.recipes import RECIPES, Circuit, Context, choose_circuit
from ih_interp.paper.study import Figure, Networks, flat
from ih_interp.types import Head

PAPER = PRESETS["paper"]
CIRCUIT = Circuit(Head(1, 3), (Head(0, 2), Head(0, 5), Head(0, 1)), Head(0, 0))  # the paper's
CONTEXT = Context(PAPER, PAPER.exemplars, 5, CIRCUIT, {5: "runs/main-5", 6: "runs/main-6"})
OTHERS = ["L1H0", "L1H1", "L1H2", "L1H4", "L1H5", "L1H6", "L1H7"]


def names(heads):
    return [str(head) for head in heads]


def test_the_main_run_is_the_papers():
    config = recipes.main(CONTEXT)["main"]
    assert (config.n_steps, config.batch_size) == (31_250, 32)
    assert config.optimiser.learning_rate == 1e-5
    assert (config.task.n_train_classes, config.task.n_labels) == (50, 5)
    assert len(config.checkpoints.steps(config.n_steps, 32)) == 1_001
    assert len(config.evaluations.steps(config.n_steps, 32)) == 201


LENGTHS = {
    "main": {31_250},
    "single": {31_250},
    "pairs": {31_250},
    "clamped": {18_750},
    "data": {62_500, 9_375},
    "grafts": {25_000},
    "previous_token": {25_000},
    "strengths": {18_750},
}


@pytest.mark.parametrize("run_set", LENGTHS)
def test_lengths_are_the_papers(run_set):
    assert {config.n_steps for config in RECIPES[run_set](CONTEXT).values()} == LENGTHS[run_set]


def test_the_main_text_has_the_papers_number_of_runs_and_updates():
    """32 runs (paper.md A5), about 820,000 updates for one network."""
    figure = Figure("x", ("main", "single", "clamped", "data"), *[lambda *_: None] * 3)
    networks = Networks([figure], PAPER, PAPER.exemplars, seeds=1, root=Path("runs"))
    configs = networks.every({})
    assert len(configs) == 32
    assert sum(config.n_steps for config in configs) == 818_750


def test_runs_of_a_network_have_names_of_their_own_and_fit_its_task():
    configs = [config for recipe in RECIPES.values() for config in recipe(CONTEXT).values()]
    assert len({config.name for config in configs}) == len(configs)
    assert {config.seeds.init for config in configs} == {5}


def test_clamps_of_figure_5b():
    runs = recipes.clamped(CONTEXT)
    kinds = {name: [clamp.kind for clamp in run.clamps] for name, run in runs.items()}
    assert kinds == {
        "none": ["ablate_heads"],
        "previous token": ["previous_token_attention", "ablate_heads"],
        "layer 1": ["perfect_layer_one", "ablate_heads"],
        "match": ["induction_attention", "ablate_heads"],
        "copy": ["copy_from_attention"],
        "layer 1 + copy": ["perfect_layer_one", "copy_from_attention"],
    }
    assert names(runs["none"].clamps[0].heads) == OTHERS
    assert names(runs["previous token"].clamps[0].heads) == ["L0H2"]


def test_figure_6_varies_one_thing_at_a_time_and_borrows_the_rest_from_5b():
    runs = recipes.data(CONTEXT)
    assert len(runs) == 17
    sizes = {(run.task.n_train_classes, run.task.n_labels) for run in runs.values()}
    assert sizes == {(50, 5), (100, 5), (200, 5), (50, 10), (50, 15)}
    clamped = recipes.clamped(CONTEXT)
    for evolution, condition in recipes.EVOLUTIONS.items():
        run = runs[recipes.data_key(evolution, 100, 5)]
        assert run.clamps == clamped[condition].clamps
    assert recipes.data_key("normal", 50, 5) in runs
    assert recipes.data_key("C alone", 50, 5) not in runs


def test_single_heads_and_pairs_keep_the_heads_they_name():
    single = recipes.single(CONTEXT)
    assert names(single["L1H3"].clamps[0].heads) == OTHERS
    pairs = recipes.pairs(CONTEXT)
    assert list(pairs) == OTHERS
    assert names(pairs["L1H0"].clamps[0].heads) == [h for h in OTHERS if h != "L1H0"]


def test_figures_7_8_and_15():
    grafts = recipes.grafts(CONTEXT)
    assert {
        k: (g.clamps[0].run, g.clamps[0].step, g.clamps[0].layer) for k, g in grafts.items()
    } == {"5": ("runs/main-5", 31_250, 0), "6": ("runs/main-6", 31_250, 0)}
    heads = {k: names(r.clamps[0].heads) for k, r in recipes.previous_token(CONTEXT).items()}
    assert heads["best"] == ["L0H2"]
    assert heads["unlike"] == ["L0H0"]
    assert sorted(heads["like"]) == ["L0H1", "L0H2", "L0H5"]
    assert heads["all"] == [f"L0H{head}" for head in range(8)]
    strengths = recipes.strengths(CONTEXT)
    assert [run.clamps[0].strength for run in strengths.values()] == list(recipes.STRENGTHS)
    assert len(strengths) == 16
    assert all(len(run.clamps) == 1 for run in strengths.values())  # the other heads stay on


def test_heads_are_asked_for_before_they_are_known():
    with pytest.raises(ValueError, match="choose_circuit"):
        recipes.clamped(CONTEXT._replace(circuit=None))


@pytest.mark.parametrize(
    ("seeds", "trained", "donors"),
    [(1, [5, 6, 7], {5: "567"}), (4, [5, 6, 7, 8], {5: "567", 6: "657", 7: "756", 8: "856"})],
)
def test_grafts_have_three_donors_their_own_network_first(seeds, trained, donors):
    figure = Figure("7", ("grafts",), *[lambda *_: None] * 3)
    networks = Networks([figure], PAPER, PAPER.exemplars, seeds=seeds, root=Path("runs"))
    assert networks.trained == trained
    later = networks.configs(dict.fromkeys(networks.seeds, CIRCUIT))["grafts"]
    assert {seed: "".join(runs) for seed, runs in later.items()} == donors
    assert {config.name for config in flat(networks.configs())} == {
        f"main-{seed}" for seed in trained
    }


# The rules for heads


def test_circuits_follow_from_scores(small_run):
    circuit = choose_circuit(small_run)
    batch, model = small_run.task.enumerate("train"), small_run.model()
    assert circuit.induction == Head(1, int(ih.induction_strength(model, batch)[1].argmax()))
    scores = ih.heads.previous_token_score(model, batch, rows="labels")[0]
    assert circuit.previous_token[0] == Head(0, int(scores.argmax()))
    assert circuit.unlike == Head(0, int(scores.argmin()))


def test_planted_previous_token_heads_are_found(small_run, monkeypatch):
    batch, model = small_run.task.enumerate("train"), small_run.model()
    heads = ["L0H4", "L0H1"]
    clamp = ih.clamps.PreviousTokenAttention(heads=heads)
    with ih.clamped(model, [clamp], batch):
        monkeypatch.setattr(ih.Run, "model", lambda _: model)
        assert sorted(names(choose_circuit(small_run, batch).previous_token)) == sorted(heads)
