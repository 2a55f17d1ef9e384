"""The paper's runs and figures, at the smoke preset, and their claims on planted curves."""

import numpy as np
import pandas as pd
import pytest

import ih_interp as ih
from ih_interp.paper.figures import FIGURES, clamped_claims, loss_claims, strength_claims
from ih_interp.paper.recipes import PRESETS, Circuit, choose_circuit, clamped_runs, main_run
from ih_interp.paper.reproduce import reproduce
from ih_interp.types import Head


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduced")
    said = []
    claims = reproduce(
        preset="smoke", runs=folder / "runs", folder=folder / "figures", say=said.append
    )
    return folder, claims, said


def test_every_figure_is_written_three_times(drawn):
    folder, _, _ = drawn
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {f"fig{name}.{kind}" for name in FIGURES for kind in ("pdf", "png", "csv")}


def test_claims_of_every_figure_are_told(drawn):
    _, claims, _ = drawn
    assert {claim.figure for claim in claims} == set(FIGURES)
    assert all(claim.paper and claim.ours for claim in claims)


def test_the_toy_claim_is_the_papers_number(drawn):
    _, claims, _ = drawn
    (toy,) = (claim for claim in claims if claim.figure == "5a")
    assert toy.holds
    assert toy.ours == toy.paper


def test_numbers_drawn_are_those_of_the_runs(drawn):
    folder, _, _ = drawn
    table = pd.read_csv(folder / "figures" / "fig5b.csv")
    for name, rows in table.groupby("run"):
        run = ih.Run(folder / "runs" / "smoke-synthetic" / name)
        recorded = run.metrics.query("split == 'train'")["loss"].to_numpy()
        assert rows["loss"].to_numpy() == pytest.approx(recorded, rel=1e-5)
    assert set(table["clamp"]) == {
        "none", "previous token", "layer 1", "match", "copy", "layer 1 + copy",
    }  # fmt: skip


def test_finished_runs_are_used_again(drawn, monkeypatch):
    from ih_interp.training.fleet import Fleet

    folder, _, _ = drawn
    monkeypatch.setattr(Fleet, "advance", lambda fleet: pytest.fail("trained again"))
    before = (folder / "figures" / "fig3a.csv").read_bytes()
    reproduce(["3a", "5b"], preset="smoke", runs=folder / "runs", folder=folder / "again")
    assert (folder / "again" / "fig3a.csv").read_bytes() == before
    assert not (folder / "again" / "fig3b.csv").exists()


def test_the_toy_needs_no_training(tmp_path):
    reproduce(["5a"], runs=tmp_path / "runs", folder=tmp_path / "figures")
    assert not (tmp_path / "runs").exists()


def test_heads_follow_from_rules(drawn):
    folder, _, said = drawn
    run = ih.Run(folder / "runs" / "smoke-synthetic" / "main-5")
    circuit = choose_circuit(run)
    batch = run.task.enumerate("train")
    strength = ih.induction_strength(run.model(), batch)[1]
    previous = ih.previous_token_score(run.model(), batch, rows="labels")[0]
    assert circuit == Circuit(Head(0, int(previous.argmax())), Head(1, int(strength.argmax())))
    assert any(str(circuit.induction) in line for line in said)


def test_the_paper_preset_is_the_papers_schedule():
    preset = PRESETS["paper"]
    main = main_run(preset, preset.exemplars, 5)
    assert (main.n_steps, main.batch_size) == (31_250, 32)
    assert main.optimiser.learning_rate == 1e-5
    assert (main.task.n_train_classes, main.task.n_labels) == (50, 5)
    runs = clamped_runs(preset, preset.exemplars, 5, Circuit(Head(0, 2), Head(1, 3)))
    assert {run.n_steps for run in runs.values()} == {18_750}
    kinds = {name: [clamp.kind for clamp in run.clamps] for name, run in runs.items()}
    assert kinds == {
        "none": ["ablate_heads"],
        "previous token": ["previous_token_attention", "ablate_heads"],
        "layer 1": ["perfect_layer_one", "ablate_heads"],
        "match": ["induction_attention", "ablate_heads"],
        "copy": ["copy_from_attention"],
        "layer 1 + copy": ["perfect_layer_one", "copy_from_attention"],
    }
    assert [str(head) for head in runs["none"].clamps[0].heads] == [
        "L1H0", "L1H1", "L1H2", "L1H4", "L1H5", "L1H6", "L1H7",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"figures": ["3c"]}, "There is no figure 3c; choose from 3a, 3b"),
        ({"preset": "fast"}, "There is no preset 'fast'"),
        ({"seeds": 0}, "at least one network"),
        ({"exemplars": "no.h5"}, "There is no feature file"),
    ],
)
def test_wrong_words_are_refused_before_anything_happens(arguments, words, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        reproduce(**arguments, runs=tmp_path / "runs", folder=tmp_path / "figures")
    assert list(tmp_path.iterdir()) == []


def curve(**columns):
    """A loss that waits at `pause` until `until` sequences and then falls over `fall` of them."""
    sequences = np.arange(0, 600_001, 5_000.0)
    pause, until, fall = columns.pop("pause"), columns.pop("until"), columns.pop("fall")
    early = np.maximum(pause, 2 - 1.3 * sequences / 20_000)
    loss = np.where(
        sequences < until, early, pause * np.exp(-np.maximum(sequences - until, 0) / fall)
    )
    return pd.DataFrame(
        {"sequences": sequences, "loss": loss, "accuracy": 0.5, "seed": 5, **columns}
    )


def test_a_planted_plateau_holds_and_a_slide_does_not():
    def table(**shape):
        splits = ("train", "test_exemplars", "test_relabel")
        return pd.concat([curve(**shape, split=split) for split in splits])

    good = loss_claims(table(pause=0.72, until=200_000, fall=50_000))
    assert [claim.holds for claim in good] == [True, True]
    slide = loss_claims(table(pause=0.79, until=5_000, fall=200_000))
    assert [claim.holds for claim in slide] == [False, True]
    never = loss_claims(table(pause=0.72, until=1e9, fall=1.0))
    assert [claim.holds for claim in never] == [False, False]
    assert never[0].ours == "never, never"


def test_planted_orders_hold_and_swapped_ones_do_not():
    ends = {
        "none": 300_000, "previous token": 200_000, "layer 1": 80_000, "copy": 40_000,
        "match": 22_000, "layer 1 + copy": 20_000,
    }  # fmt: skip

    def table(ends):
        parts = [curve(pause=0.7, until=t, fall=5_000, clamp=name) for name, t in ends.items()]
        return pd.concat(parts)

    assert [claim.holds for claim in clamped_claims(table(ends))] == [True, True]
    swapped = {**ends, "layer 1": ends["copy"], "copy": ends["layer 1"]}
    assert [claim.holds for claim in clamped_claims(table(swapped))] == [False, True]
    slow = {**ends, "match": 150_000}
    assert [claim.holds for claim in clamped_claims(table(slow))] == [False, False]


def test_one_strong_head_is_not_several():
    def table(strengths):
        return pd.DataFrame(
            [
                {"seed": 5, "sequences": s, "name": f"L1H{h}", "value": v * s}
                for h, v in enumerate(strengths)
                for s in (0, 1)
            ]
        )

    assert [c.holds for c in strength_claims(table([0.8, 0.5, 0.3, 0.1]))] == [True, True]
    assert [c.holds for c in strength_claims(table([0.8, 0.1, 0.1, 0.1]))] == [False, True]
    assert [c.holds for c in strength_claims(table([0.5, 0.5, 0.5, 0.5]))] == [True, False]
