"""The page of a run holds the package's own numbers, says what is missing, and stays small."""

import base64
import json
import re
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import torch
from small_runs import NARROW

import ih_interp as ih
from ih_interp.config import Grid
from ih_interp.page import _figures as figures, report as pages
from ih_interp.page._tables import cell, csv_link, shown_table
from ih_interp.page.contents import contents
from ih_interp.page.gates import clamp_in_words, clamps_by_head, gates
from ih_interp.page.patterns import measured_patterns
from ih_interp.page.subject import subject_of

pytest.importorskip("plotly")
pytestmark = pytest.mark.slow


def data_of(report):
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', report.html, re.S)
    return json.loads(text[1])


def csv_of(section, file):
    (found,) = [each for each in section.downloads if each.file == file]
    text = base64.b64decode(found.href.partition("base64,")[2])
    return pd.read_csv(BytesIO(text))


def sections_of(run):
    return {part.key: part for part in contents(run, "a run").sections}


@pytest.fixture(scope="module")
def narrow_run(tmp_path_factory):
    return ih.train(NARROW, tmp_path_factory.mktemp("runs"), progress=False)[0]


@pytest.fixture(scope="module")
def held_run(tmp_path_factory):
    """With L1H3's attention clamped: 0.7 on the correct label, 0.3 on the other."""
    clamp = ih.clamps.InductionAttention(heads=["L1H3"], strength=0.7)
    config = NARROW.replace(name="held", clamps=[clamp])
    return ih.train(config, tmp_path_factory.mktemp("runs"), progress=False)[0]


@pytest.fixture(scope="module")
def sections(narrow_run):
    return sections_of(narrow_run)


@pytest.fixture(scope="module")
def page(narrow_run):
    return ih.report(narrow_run)


def test_the_page_has_every_part_of_a_run(sections):
    assert list(sections) == [
        *("heads", "losses", "scores", "wiring"),
        *("patterns", "ablation", "redundancy", "configuration"),
    ]
    assert not any(part.missing for part in sections.values())


def test_tables_are_those_of_the_package(sections, narrow_run):
    subject = subject_of(narrow_run)
    given = {"batch": subject.batch, "steps": narrow_run.steps}
    scores = csv_of(sections["scores"], "scores.csv")
    for name, measure in (
        ("induction", ih.induction_strength),
        ("previous token", lambda m, b: ih.heads.previous_token_score(m, b, rows="labels")),
    ):
        traced = ih.trace(narrow_run, measure, **given)["value"]
        assert scores[scores["score"] == name]["value"].to_numpy() == pytest.approx(
            traced, abs=1e-5
        )
    wiring = csv_of(sections["wiring"], "wiring.csv")
    given["batch"] = subject.batch[:128]
    direct = ih.patching.wiring_over_training(narrow_run, ih.patching.swap_exemplars, **given)
    assert wiring["use"].to_numpy() == pytest.approx(direct["use"], abs=1e-5)
    heads = [f"L{layer}H{head}" for layer in range(2) for head in range(4)]
    model = narrow_run.model()
    table = ih.ablation.ablate_each_head(model, subject.batch, heads, metrics="loss")
    without = table[table["kept"] == "without"]["value"].to_numpy()
    (whole,) = table[table["kept"] == "all"]["value"]
    found = csv_of(sections["ablation"], "ablation.csv")
    assert found["without"].to_numpy() == pytest.approx(without, rel=1e-5)
    assert found["cost"].to_numpy() == pytest.approx(without - whole, abs=1e-5)
    metrics = csv_of(sections["losses"], "metrics.csv")
    assert metrics["loss"].to_numpy() == pytest.approx(narrow_run.metrics["loss"], rel=1e-5)


def test_the_wiring_shown_is_that_of_the_table(sections):
    figure, table = sections["wiring"].figure, csv_of(sections["wiring"], "wiring.csv")
    pair = figure["frames"]["0-1"]
    for place, step in enumerate(figure["steps"]):
        rows = table[(table["step"] == step) & (table["via"] == "q")]
        wide = rows.pivot_table(index="receiver", columns="sender", values="use")
        assert np.array(pair["via"]["q"][place]) == pytest.approx(wide.to_numpy(), abs=1e-5)
    assert figure["data"][0]["z"] == pair["via"]["k"][-1]


def test_patterns_are_the_model_s_own(narrow_run):
    subject = subject_of(narrow_run)
    found = measured_patterns(subject)
    _, cache = narrow_run.model(found.steps[1]).run_with_cache(subject.batch.tokens[:4])
    own = torch.stack([cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(2)], dim=1)
    torch.testing.assert_close(found.weights[1], own)
    numbers = np.frombuffer(base64.b64decode(figures.packed(found.weights)), "<u2") / 65_535
    n = found.weights.shape[-1]
    numbers = numbers.reshape(*found.weights.shape[:-2], n * (n + 1) // 2)
    rows, columns = np.tril_indices(n)
    assert numbers == pytest.approx(found.weights.detach().numpy()[..., rows, columns], abs=1e-5)


def test_under_clamps_everything_is_measured_under_them(held_run):
    found = sections_of(held_run)
    scores = csv_of(found["scores"], "scores.csv")
    held = scores[(scores["score"] == "induction") & (scores["name"] == "L1H3")]["value"]
    assert held.to_numpy() == pytest.approx(2 * 0.7 - 1, abs=1e-5)
    heads = csv_of(found["heads"], "heads.csv").set_index("head")
    assert heads.loc["L1H3", ["role", "clamped"]].to_list() == ["induction", "induction_attention"]
    assert heads.loc["L1H3", "since"] == 0
    assert {"gates.csv", "metrics.csv"} == {file.file for file in found["losses"].downloads}
    assert (csv_of(found["losses"], "gates.csv")["gate"] == 1).all()


def test_other_tasks_have_a_page(tmp_path):
    task = ih.tasks.RepeatedTokens(n_tokens=8, length=8, min_period=2, max_period=3)
    config = NARROW.replace(task=task, model=ih.ModelConfig(n_heads=2, d_model=16))
    (run,) = ih.train([config], tmp_path, progress=False)
    found = sections_of(run)
    assert not any(part.missing for part in found.values())
    wiring = csv_of(found["wiring"], "wiring.csv")
    given = {"metric": "loss", "ablation": "mean", "steps": run.steps}
    batch = subject_of(run).batch[:128]
    direct = ih.patching.wiring_over_training(run, lambda batch: batch, batch=batch, **given)
    assert wiring["use"].to_numpy() == pytest.approx(direct["use"], abs=1e-5)
    assert set(found["scores"].figure["choices"]) == {
        *("previous token", "induction", "duplicate token")
    }


def test_markov_chains_have_the_losses_of_ideal_predictors(tmp_path):
    task = ih.tasks.MarkovChains(n_states=3, length=8, n_chains=2)
    config = NARROW.replace(task=task, model=ih.ModelConfig(n_heads=2, d_model=16))
    (run,) = ih.train([config], tmp_path, progress=False)
    whole = contents(run, "a run")
    losses = task.reference_losses(subject_of(run).batch)
    curves = {curve["name"]: curve["y"] for curve in whole.sections[1].figure["data"]}
    for name, loss in losses.items():
        assert curves[name] == pytest.approx([float(loss.mean())] * 2, abs=1e-5)
        assert f"{name} {loss.mean():.3f}" in dict(whole.facts)["Ideal predictors"]
    assert "Learned" not in dict(whole.facts)
    fresh = ih.train([config.replace(name="fresh", task=task.replace(n_chains=None))], tmp_path)
    assert "bigram, optimal" in dict(contents(fresh[0], "fresh").facts)["Ideal predictors"]


def test_a_model_of_one_layer_has_no_wiring(tmp_path):
    config = NARROW.replace(model=ih.ModelConfig(n_layers=1, n_heads=2, d_model=16))
    (run,) = ih.train([config], tmp_path, progress=False)
    found = sections_of(run)
    assert {key for key, part in found.items() if part.missing} == {"wiring", "redundancy"}
    assert "one layer" in found["wiring"].missing


def test_a_run_without_checkpoints_says_so(narrow_run, tmp_path):
    folder = tmp_path / "begun"
    folder.mkdir()
    (folder / "config.json").write_bytes((narrow_run.folder / "config.json").read_bytes())
    page = ih.report(folder)
    assert "no checkpoints yet" in page.html
    assert "No evaluation is saved yet" in page.html
    assert narrow_run.config.fingerprint in page.html
    assert data_of(page)["runs"][0]["wiring"] is None


def test_a_damaged_checkpoint_is_told_and_the_rest_is_shown(narrow_run, tmp_path):
    folder = tmp_path / "damaged"
    for path in narrow_run.folder.rglob("*"):
        if path.is_file():
            copy = folder / path.relative_to(narrow_run.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    last = max(folder.joinpath("checkpoints").iterdir())
    last.write_bytes(last.read_bytes()[:100])
    found = sections_of(ih.Run(folder))
    assert last.name in found["scores"].missing
    assert found["losses"].figure is not None


def test_unfit_runs_are_refused_in_words(tmp_path):
    with pytest.raises(ValueError, match="at least one run"):
        ih.report([])
    with pytest.raises(FileNotFoundError):
        ih.report(tmp_path)


@pytest.mark.untyped
@pytest.mark.parametrize("wrong", [5, [5], ih.RunConfig()], ids=["a number", "a list", "a config"])
def test_other_values_than_runs_are_refused_in_words(wrong):
    with pytest.raises(TypeError, match=r"ih\.Run\b"):
        ih.report(wrong)


@pytest.mark.untyped
@pytest.mark.parametrize("many", [False, True], ids=["alone", "in a list"])
def test_other_checkpoints_are_sent_to_trace(narrow_run, many):
    series = ih.ModelSeries(narrow_run.model, steps=narrow_run.steps)
    with pytest.raises(TypeError, match=r"ModelSeries; ih\.trace"):
        ih.report([series] if many else series)


@pytest.mark.untyped
def test_a_title_is_text(narrow_run):
    with pytest.raises(TypeError, match="title"):
        ih.report(narrow_run, title=5)


def test_without_plotly_the_extra_is_named(monkeypatch, narrow_run):
    monkeypatch.setattr(pages, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install -c \S+ -e '\.\[report\]'"):
        ih.report(narrow_run)


def test_the_page_is_one_small_file_without_requests(page, tmp_path):
    path = page.save(tmp_path / "new" / "report.html")
    assert path.read_text() == page.html
    assert 4e6 < path.stat().st_size < 8e6
    body = page.html.replace(pages_plotly(), "")
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|url\(""", body)
    assert "default-src 'none'" in body
    assert page.html.count(pages_plotly()) == 1


def pages_plotly():
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def test_a_notebook_shows_the_page_in_a_frame(page):
    shown = page._repr_html_()
    assert shown.startswith("<iframe")
    assert "<script>" not in shown
    assert len(repr(page)) < 80


def test_names_are_text_and_never_markup(narrow_run):
    hostile = "</script><script>alert(1)</script>"
    page = ih.report(narrow_run, title=hostile)
    assert hostile not in page.html
    assert "&lt;script&gt;alert(1)" in page.html
    embedded = pages._embedded({"name": hostile})
    assert "<" not in embedded
    assert json.loads(embedded)["name"] == hostile


def test_several_runs_are_compared(narrow_run, held_run):
    page = ih.report([narrow_run, held_run.folder])
    data = data_of(page)
    assert [part is not None for part in (data["compared"], *data["runs"])] == [True] * 3
    curves = data["compared"]["data"]
    guess = curves.pop()
    assert guess["y"] == pytest.approx([np.log(2)] * 2, abs=1e-5)
    assert "meta" not in guess  # it is shown for each split
    assert page.html.count("0.693, ln 2") == 3  # the losses of all runs, and of each
    assert {curve["name"] for curve in curves} == {"narrow", "held"}
    assert {curve["meta"] for curve in curves} == set(narrow_run.metrics["split"])
    assert 'value="1">held</option>' in page.html


def test_runs_of_one_name_are_told_apart(narrow_run):
    assert pages.names_of([narrow_run, narrow_run]) == [
        f"{narrow_run.folder.parent.name}/narrow ({n})" for n in (1, 2)
    ]


def test_a_clamp_s_text_says_when_it_is_on(tmp_path):
    clamp = ih.clamps.PreviousTokenAttention(heads=["L0H0"], schedule=ih.clamps.during(0, 2))
    (run,) = ih.train([NARROW.replace(clamps=[clamp])], tmp_path, progress=False)
    found = sections_of(run)
    assert found["losses"].notes == (
        "Clamp 1: previous_token_attention(heads=['L0H0']), until update 2.",
    )
    saved = json.loads(found["configuration"].caption)["run"]["clamps"]
    assert saved == [clamp.model_dump(mode="json")]
    assert saved[0]["schedule"] == {"kind": "during", "start": 0, "stop": 2}
    assert clamps_by_head(run, 1) == {"L0H0": ["previous_token_attention"]}
    assert clamps_by_head(run, 4) == {"L0H0": ["previous_token_attention (off at the end)"]}
    heads = csv_of(found["heads"], "heads.csv").set_index("head")["clamped"].dropna()
    assert set(heads) <= {"previous_token_attention (off at the end)"}


LEVEL = ih.clamps.Level(head="L0H1", metric="previous_token_score", above=0.7, under="free")


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (ih.clamps.always(), "always"),
        (ih.clamps.during(), "from update 0"),
        (ih.clamps.during(5, 1_000), "from update 5 until update 1,000"),
        (ih.clamps.ramp(200, 1_200), "gate 0 to 1 from update 200 to 1,200"),
        (ih.clamps.pulses(100, duty=0.2), "the first 20% of every 100 updates"),
        (
            ih.clamps.from_level(below=0.3, until=LEVEL),
            "from loss below 0.3 on train until previous_token_score L0H1 above 0.7 on train, "
            "clamps off",
        ),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_schedules_are_said_in_words(schedule, words):
    clamp = ih.clamps.AblateHeads(heads=["L0H1"], schedule=schedule)
    assert clamp_in_words(clamp) == f"ablate_heads(heads=['L0H1']), {words}"


def test_gates_are_those_of_the_schedule(tmp_path):
    ramp = ih.clamps.ramp(1, 3)
    clamp = ih.clamps.PreviousTokenAttention(heads=["L0H0"], schedule=ramp)
    (run,) = ih.train([NARROW.replace(clamps=[clamp])], tmp_path, progress=False)
    table = gates(run, 4)
    assert table["gate"].to_list() == [ramp.gate(step) for step in range(4)]
    assert table["sequences"].to_list() == [8 * step for step in range(4)]


def test_a_gate_that_waits_for_a_level_is_the_run_s(tmp_path):
    level = ih.clamps.from_level(above=0.01, split="train")
    clamp = ih.clamps.PreviousTokenAttention(heads=["L0H0"], schedule=level)
    config = NARROW.replace(clamps=[clamp], evaluations=Grid(every=8))
    (run,) = ih.train([config], tmp_path, progress=False)
    assert gates(run, 4)["gate"].to_list() == [0.0, 1.0, 1.0, 1.0]


def test_cells_and_files_hold_the_same_numbers():
    table = pd.DataFrame({"head": ["L0H0", "L1H3"], "value": [0.123456789, np.nan]})
    shown = shown_table(table, {"head": "head", "value": "score"}, "A caption.")
    assert shown.columns == ["head", "score"]
    assert shown.rows == [["L0H0", "0.123"], ["L1H3", "-"]]
    link = csv_link("a.csv", table).href
    assert (
        base64.b64decode(link.partition("base64,")[2]).decode().splitlines()[1] == "L0H0,0.123457"
    )
    assert cell(-0.0001) == "0.000"
