"""`reproduce` from an empty folder, at the smoke preset: what it trains, writes and says."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

import ih_interp as ih
from ih_interp.analysis.dynamics.emergence import LEARNED
from ih_interp.paper import reproduce as module
from ih_interp.paper.claims import (
    BEGIN,
    COLUMNS,
    END,
    FINDINGS,
    Claim,
    claims_table,
    merge_claims,
    over_seeds,
    write_readme,
)
from ih_interp.paper.figures import FIGURES
from ih_interp.paper.figures.fig03 import STRONG
from ih_interp.paper.figures.fig04_13_17_18 import LINEAR
from ih_interp.paper.figures.fig06 import UNCHANGED
from ih_interp.paper.figures.fig07_08_15 import HALF_GUESS
from ih_interp.paper.figures.fig11 import AGREES, ALIKE
from ih_interp.paper.figures.fig14_16_tables2_3 import ADDITIVE
from ih_interp.paper.recipes import choose_circuit
from ih_interp.paper.reproduce import draw, prepare, redraw, reproduce

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduced")
    said = []
    claims = reproduce(
        ["all"], preset="smoke", runs=folder / "runs", folder=folder / "figures", say=said.append
    )
    return folder, claims, said


def test_every_figure_is_written_three_times(drawn):
    folder, _, _ = drawn
    names = {path.name for path in (folder / "figures").iterdir()}
    kinds = ("pdf", "png", "csv")
    expected = {f"{figure.file_name}.{kind}" for figure in FIGURES.values() for kind in kinds}
    assert names == expected | {"claims.csv", "README.md"}


def test_claims_are_written_as_they_are_told(drawn):
    folder, claims, _ = drawn
    written = pd.read_csv(folder / "figures" / "claims.csv", dtype=str, keep_default_na=False)
    assert list(written.columns) == [*COLUMNS, "runs"]
    key = ["figure", "claim", "ours"]
    told = claims_table(claims)
    assert {*map(tuple, written[key].to_numpy())} == {*map(tuple, told[key].to_numpy())}
    assert all(claim.paper and claim.ours and claim.of for claim in claims)


def test_every_finding_of_the_paper_is_judged(drawn):
    _, claims, _ = drawn
    found = {(figure, row["claim"]) for (figure, _), row in FINDINGS.iterrows()}
    assert {(claim.figure, claim.claim) for claim in claims} == found


@pytest.mark.parametrize(
    ("figure", "number"),
    [("3b", STRONG), ("4a", LINEAR), ("6", UNCHANGED), ("6", f"{LEARNED:.3f}"), ("11", ALIKE),
     ("11 init", AGREES), ("15", f"{HALF_GUESS:.3f}"), ("additivity", ADDITIVE)],
)  # fmt: skip
def test_claims_name_the_numbers_that_they_are_judged_by(figure, number):
    assert FINDINGS.loc[figure]["claim"].str.contains(str(number), regex=False).any()


def test_every_row_is_traced_to_a_run_by_its_fingerprint(drawn):
    folder, _, _ = drawn
    traced = 0
    for figure in FIGURES.values():
        table = pd.read_csv(folder / "figures" / f"{figure.file_name}.csv")
        if not figure.needs:
            continue
        for name, config in set(zip(table["run"], table["config"], strict=True)):
            run = ih.Run(folder / "runs" / "smoke-synthetic" / name)
            assert run.config.fingerprint == config
            traced += 1
    assert traced > 90


def test_the_toy_claim_is_the_papers_number(drawn):
    _, claims, _ = drawn
    toy = next(claim for claim in claims if claim.figure == "5a")
    assert toy.holds
    assert toy.ours == toy.paper


ABOUT_ANY_NETWORK = {"13", "14", "16", "11", "table 2", "table 3", "additivity"}
"""Figures with a claim that compares heads, and so may hold before anything is learned."""


def test_no_claim_about_learning_holds_where_nothing_is_learned(drawn):
    _, claims, _ = drawn
    held = {
        claim.figure for claim in claims if claim.holds and "by construction" not in claim.claim
    }
    assert held - {"5a", "9"} <= ABOUT_ANY_NETWORK  # the toy of 5a and 9 learns at every preset


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


def test_runs_may_be_moved(drawn, tmp_path, monkeypatch):
    """Grafts name the folders of other runs; which weights they mean is told by a digest."""
    from ih_interp.training.fleet import Fleet

    folder, _, _ = drawn
    moved = tmp_path / "moved"
    (folder / "runs").rename(moved)
    try:
        monkeypatch.setattr(Fleet, "advance", lambda fleet: pytest.fail("trained again"))
        study = prepare(["7"], preset="smoke", runs=moved)
        graft = next(iter(study.runs["grafts"][5].values()))
        assert graft.config.clamps[0].run.startswith(str(moved))
        assert len(graft.metrics)
        graft.config.clamps[0].prepare(graft.model())
    finally:
        moved.rename(folder / "runs")


def test_the_toy_needs_no_training(tmp_path):
    reproduce(["5a"], runs=tmp_path / "runs", folder=tmp_path / "figures")
    assert not (tmp_path / "runs").exists()


def test_a_caption_is_the_command_that_draws_its_figure(tmp_path, monkeypatch):
    captions = []

    def noted(figure, table, *, caption):
        captions.append(caption)
        return draw(figure, table, caption=caption)

    monkeypatch.setattr(module, "draw", noted)
    toys = {"runs": tmp_path / "runs", "folder": tmp_path / "figures"}
    reproduce(["5a", "9"], **toys)
    reproduce(["9"], preset="paper", seeds=3, **toys)
    assert captions == [
        "ih-interp reproduce 5a",
        "ih-interp reproduce 9",
        "ih-interp reproduce 9 --preset paper --seeds 3",
    ]


def test_the_main_text_is_the_default_and_a_number_means_all_its_parts(drawn):
    folder, _, _ = drawn
    study = prepare(["3"], preset="smoke", runs=folder / "runs")
    assert set(study.runs) == {"main"}
    study = prepare(["Figure 4"], preset="smoke", runs=folder / "runs")
    assert set(study.runs) == {"main", "single"}
    study = prepare(preset="smoke", runs=folder / "runs")
    assert set(study.runs) == {"main", "single", "clamped", "data"}


def test_a_figure_can_be_drawn_from_its_table(drawn):
    folder, _, _ = drawn
    study = prepare(["3a"], preset="smoke", runs=folder / "runs")
    canvas = draw("3a", FIGURES["3a"].table(study), caption="a test")
    assert "a test" in canvas.get_supxlabel()


@pytest.mark.parametrize(("name", "words"), [("3", "3a, 3b"), ("99", "99")])
def test_one_figure_is_drawn_at_a_time(name, words):
    with pytest.raises(ValueError, match=words):
        draw(name, pd.DataFrame())


def test_the_plan_says_what_is_left_and_the_heads_chosen(drawn):
    folder, _, said = drawn
    (plan,) = (line for line in said if "updates" in line)
    assert "0 run(s) finished already" in plan
    again = []
    prepare(["3"], preset="smoke", runs=folder / "runs", say=again.append)
    assert any("1 run(s), 20 updates, 1 run(s) finished already" in line for line in again)
    run = ih.Run(folder / "runs" / "smoke-synthetic" / "main-5")
    assert any(str(choose_circuit(run)) in line for line in said)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"figures": ["3c"]}, "3c"),
        ({"preset": "fast"}, "fast"),
        ({"seeds": 0}, "seeds=0"),
        ({"exemplars": "no.h5"}, "no.h5"),
    ],
)
def test_wrong_words_are_refused_before_anything_happens(arguments, words, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        reproduce(**arguments, runs=tmp_path / "runs", folder=tmp_path / "figures")
    assert list(tmp_path.iterdir()) == []


# Claims


def claim(figure="3a", ours="1", *, held=2, of=3, varies=False):
    return Claim(figure, "it falls", "2", ours, held, of, varies)


def merged(folder, *claims, drawn=(), runs="paper-synthetic"):
    drawn = {*drawn, *(claim.figure for claim in claims)}
    return merge_claims(folder, claims, drawn=sorted(drawn), runs=runs)


def test_a_claim_holds_in_every_network_or_in_most_where_the_papers_vary():
    assert not claim(held=2, of=3).holds
    assert claim(held=3, of=3).holds
    assert claim(held=2, of=3, varies=True).holds
    assert not claim(held=1, of=2, varies=True).holds


def test_claims_of_figures_drawn_earlier_stay_and_new_ones_replace(tmp_path):
    merged(tmp_path, claim("table 1", "old"), claim("10", "old"), claim("3a", "old"))
    merged(tmp_path, claim("3a", "new"), claim("4b", "new"))
    table = pd.read_csv(tmp_path / "claims.csv", dtype=str)
    assert list(zip(table["figure"], table["ours"], strict=True)) == [
        ("3a", "new"), ("4b", "new"), ("10", "old"), ("table 1", "old"),
    ]  # fmt: skip


def test_a_figure_redrawn_without_claims_loses_its_old_ones(tmp_path):
    merged(tmp_path, claim("3a"), claim("table 2"))
    merged(tmp_path, claim("3b"), drawn=["table 2"])
    assert pd.read_csv(tmp_path / "claims.csv")["figure"].tolist() == ["3a", "3b"]


def test_claims_of_other_runs_are_told_apart(tmp_path):
    merged(tmp_path, claim("3a"), claim("3b"), runs="paper-omniglot")
    merged(tmp_path, claim("3a"), runs="smoke-synthetic")
    table = pd.read_csv(tmp_path / "claims.csv")
    assert table["runs"].tolist() == ["smoke-synthetic", "paper-omniglot"]
    text = write_readme(tmp_path).read_text()
    assert [text.count(f"Runs: `{runs}`") for runs in set(table["runs"])] == [1, 1]


def test_another_file_of_that_name_is_not_overwritten(tmp_path):
    (tmp_path / "claims.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="a, b"):
        merged(tmp_path, claim())
    assert (tmp_path / "claims.csv").read_text() == "a,b\n1,2\n"


def test_several_networks_are_told_by_median_and_range():
    assert over_seeds([3e5]) == "300k"
    assert over_seeds([3e5, 1e5, float("inf")]) == "300k (100k to never)"


def test_claims_as_a_table_for_the_readme(tmp_path):
    merged(tmp_path, claim("10", held=1), claim("3a", held=3, varies=True))
    lines = write_readme(tmp_path).read_text().splitlines()
    assert [line for line in lines if "it falls" in line] == [
        "| 3a | it falls | 2 | 1 | 3 of 3 | yes, varies |",
        "| 10 | it falls | 2 | 1 | 1 of 3 | **no** |",
    ]


def test_a_readme_keeps_its_words_around_the_claims(tmp_path):
    merged(tmp_path, claim("3a"))
    path = write_readme(tmp_path)
    path.write_text(f"# Mine\n\n{BEGIN}\nstale\n{END}\n\nMore.\n")
    merged(tmp_path, claim("3b"), runs="smoke-synthetic")
    for _ in range(2):  # the second time nothing changes
        write_readme(tmp_path)
        text = path.read_text()
        assert text.startswith("# Mine\n\n")
        assert text.endswith(f"{END}\n\nMore.\n")
        assert "stale" not in text
        assert text.count("| it falls |") == 2  # a table per set of runs
    path.write_text("No place for claims.")
    write_readme(tmp_path)
    assert path.read_text() == "No place for claims."


def test_the_readme_of_the_committed_figures_shows_their_claims(tmp_path):
    folder = Path(__file__).parents[2] / "figures" / "omniglot"
    for name in ("claims.csv", "README.md"):
        shutil.copy(folder / name, tmp_path)
    assert write_readme(tmp_path).read_text() == (folder / "README.md").read_text()


def test_figures_are_drawn_again_from_their_csv_alone(drawn, tmp_path):
    folder, claims, _ = drawn
    names = ["3a", "8", "table 1"]
    files = [f"{FIGURES[name].file_name}.csv" for name in names]
    for file in files:
        (tmp_path / file).write_bytes((folder / "figures" / file).read_bytes())
    told = redraw(["all"], preset="smoke", folder=tmp_path)
    assert told == [claim for claim in claims if claim.figure in names]
    for file in files:
        assert (tmp_path / file).read_bytes() == (folder / "figures" / file).read_bytes()
        png = file.replace("csv", "png")
        assert (tmp_path / png).read_bytes() == (folder / "figures" / png).read_bytes()
    assert not (tmp_path / "fig3b.png").exists()
    with pytest.raises(FileNotFoundError, match="fig9"):
        redraw(["9"], folder=tmp_path)
