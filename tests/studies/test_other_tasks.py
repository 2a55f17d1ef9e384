"""Figure 5b on other tasks: its runs, its measures against slow oracles, planted orders."""

import math

import numpy as np
import pandas as pd
import pytest

import ih_interp as ih
from ih_interp.analysis.dynamics.emergence import Crossing
from ih_interp.plots._style import CLAMP_LINES
from ih_interp.studies import STUDIES, _clamped_tasks, other_tasks
from ih_interp.studies._clamped_tasks import KINDS
from ih_interp.studies.findings import judge
from ih_interp.studies.run import draw_study
from ih_interp.studies.study import guess_loss, learned_level

STUDY = STUDIES["other tasks"]
TIMES = {
    "none": 40_000,
    "previous token": 32_000,
    "layer 1": 20_000,
    "copy": 12_000,
    "match": 1_000,
    "layer 1 + copy": 3_000,
}
EVERY, END = 500, 60_000


def planted(times, *, spread=0.1, n_seeds=8, tasks=tuple(KINDS), chance=1):
    """Return losses that wait at a guess and then fall at given times, and end when learned."""
    rng, rows = np.random.default_rng(chance), []
    for task in tasks:
        guess, level = guess_loss(KINDS[task].task), learned_level(KINDS[task].task)
        for clamp, time in times.items():
            for seed in range(5, 5 + n_seeds):
                fall = time * math.exp(spread * rng.normal())
                key = {"task": task, "clamp": clamp, "seed": seed}
                key |= {"run": f"{task}-{clamp}-{seed}", "config": "0"}
                for x in range(0, END + 1, EVERY):
                    loss = guess * (1.0 if x < fall else 0.1)
                    rows.append({**key, "sequences": x, "loss": loss})
                    if loss < level:
                        break
    return pd.DataFrame(rows)


def test_every_network_has_every_clamp_in_every_task():
    scale = STUDY.scales["quick"]
    trials = _clamped_tasks.clamped_runs(scale, pd.DataFrame())
    names = [trial.config.name for trial in trials]
    assert len(names) == len(set(names)) == len(KINDS) * len(CLAMP_LINES) * len(scale.seeds)
    conditions = {(t.condition["task"], t.condition["clamp"]) for t in trials}
    assert conditions == {(task, clamp) for task in KINDS for clamp in CLAMP_LINES}
    for trial in trials:
        assert bool(trial.config.clamps) == (trial.condition["clamp"] != "none")
        assert not any(clamp.is_scheduled for clamp in trial.config.clamps)
    lengths = {(t.condition["task"], t.config.sequences) for t in trials}
    assert len({*lengths}) == len(KINDS)  # one per task, so that censored times can be compared


def test_tasks_of_pairs_differ_in_the_number_of_pairs_alone():
    of_pairs = [kind.task for name, kind in KINDS.items() if "pairs" in name]
    assert [task.n_pairs for task in of_pairs] == [2, 4, 8]
    assert len({task.replace(n_pairs=2) for task in of_pairs}) == 1
    for kind in KINDS.values():  # a network starts above its plateau
        assert math.log(kind.task.d_vocab_out) > kind.band[1] > guess_loss(kind.task) > kind.band[0]


def test_clamps_put_the_answer_where_repeated_tokens_ask_for_it():
    task = KINDS["repeated tokens"].task
    batch = task.sample("train", 50, seed=0)
    model = ih.build_model(task, ih.ModelConfig(), seed=0)
    with ih.clamped(model, [ih.clamps.match("L1H0")], batch):
        _, cache = model.run_with_cache(batch.tokens)
    weight = (cache["blocks.1.attn.hook_pattern"][:, 0] * batch.answers).sum(-1)
    assert (weight[batch.asked] > 0.999).all()
    with ih.clamped(model, [ih.clamps.copy("L1H0")], batch):
        logits = model(batch.tokens)
    for sequence, row in batch.asked.nonzero()[::97].tolist():
        seen = set(batch.tokens[sequence, 1 : row + 1].tolist())
        on = logits[sequence, row].softmax(-1) > 1e-6
        assert set(on.nonzero().flatten().tolist()) == seen


def test_times_are_those_of_a_loop():
    table = planted(TIMES, n_seeds=2)
    times, plateaus = _clamped_tasks.learning_times(table), _clamped_tasks.plateau_times(table)
    for found, level_of in (
        (times, lambda kind: learned_level(kind.task)),
        (plateaus, lambda kind: kind.band[0]),
    ):
        for row in found.itertuples():
            level = level_of(KINDS[row.task])
            of_run = (table[key] == getattr(row, key) for key in ("task", "clamp", "seed"))
            rows = table[np.logical_and.reduce([*of_run])]
            (x0, y0), (x1, y1) = rows[["sequences", "loss"]].iloc[-2:].to_numpy()
            assert row.observed
            assert row.time == pytest.approx(max(x0 + (y0 - level) / (y0 - y1) * (x1 - x0), EVERY))


@pytest.mark.parametrize(
    ("slow", "fast", "ratio"),
    [
        (Crossing(8, True), Crossing(2, True), 2.0),
        (Crossing(8, False), Crossing(2, True), 2.0),
        (Crossing(2, True), Crossing(8, False), -2.0),
        (Crossing(8, True), Crossing(2, False), math.nan),
        (Crossing(2, False), Crossing(8, True), math.nan),
        (Crossing(8, False), Crossing(8, False), math.nan),
    ],
)
def test_censored_ratios_are_bounds_or_unknown(slow, fast, ratio):
    assert other_tasks.log_ratio(slow, fast) == pytest.approx(ratio, nan_ok=True)


def test_a_planted_order_is_found_its_reverse_refused_and_no_order_open():
    assert {finding.verdict for finding in STUDY.judge(planted(TIMES))} == {"yes"}
    one = ("4 pairs",)
    reverse = dict(zip(TIMES, [1_000, 3_000, 12_000, 40_000, 20_000, 32_000], strict=True))
    verdicts = {f.claim: f.verdict for f in STUDY.judge(planted(reverse, tasks=one))}
    assert (
        verdicts["4 pairs: with layer 1 perfect it is learned earlier than without a clamp"] == "no"
    )
    assert verdicts["4 pairs: with match perfect the plateau is less than 1/8 as long"] == "no"
    tests = other_tasks.tested(planted(dict.fromkeys(TIMES, 20_000), spread=0.3, tasks=one))
    order = judge([test for test in tests if "earlier" in test.claim])
    # So in 187 of 200 draws; not in that of chance=0.
    assert {finding.verdict for finding in order} == {"open"}
    assert len(tests) == 8


def test_networks_that_never_learn_count_as_slow_and_are_drawn():
    table = planted({**TIMES, "none": 10 * END}, tasks=("8 pairs",))
    assert {finding.verdict for finding in STUDY.judge(table)} == {"yes"}
    summary = STUDY.summarise(table).set_index("clamp")
    assert summary.loc["none", "n_observed"] == 0
    assert math.isinf(summary.loc["none", "median"])
    assert summary.loc["none", "run"].split()[0] == "8"
    canvas = draw_study(STUDY, table)
    words = [text.get_text() for ax in canvas.axes for text in ax.texts]
    assert "median not reached" in words


def test_the_median_ends_when_half_of_the_networks_have_learned():
    table = planted({"none": 20_000}, tasks=("2 pairs",), n_seeds=5)
    median = other_tasks.median_until_half(table)
    ends = table.groupby("seed")["sequences"].max().sort_values()
    assert median["sequences"].max() == ends.iloc[2]
    before = median[median["sequences"] < ends.iloc[0]]
    wide = table.pivot(index="sequences", columns="seed", values="loss").median(axis=1)
    np.testing.assert_allclose(before["loss"], wide.loc[before["sequences"]])
