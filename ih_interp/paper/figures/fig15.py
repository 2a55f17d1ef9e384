"""Figures 7, 8 and 15: other ways to perfect a part of the circuit in training."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import pandas as pd

from ih_interp.analysis.dynamics.emergence import Crossing
from ih_interp.clamps import PreviousTokenAttention
from ih_interp.paper.figures._fig15_drawing import (
    plot_grafts,
    plot_match_strengths,
    plot_previous_token,
)
from ih_interp.paper.study import (
    UNTIL_LEARNED,
    Claim,
    Figure,
    Study,
    curves,
    decimals,
    judged,
    over_seeds,
    over_times,
    surely_longer,
    times_of,
    told,
    when,
)
from ih_interp.plots._style import DONOR_LINES
from ih_interp.plots.seeds import plot_each_network

HALF_GUESS = math.log(2) / 2
"""The loss that Figure 15 is read at, as the paper's numbers are."""

EVEN = 0.5
"""Strength of attention that is on the correct label no more than on the other."""


def graft_table(study: Study) -> pd.DataFrame:
    """Training losses with trained first layers grafted in, and without.

    Columns: `seed`, `run`, `donor` (the seed whose embedding and layer 0 it is, or "none"), `whose`
    (a key of `plots.style.DONOR_LINES`), `sequences`, `loss` as in `Study.losses`.
    """
    grafted = study.losses("grafts").rename(columns={"condition": "donor"})
    free = study.losses("main").assign(donor="none")
    table = pd.concat([free, grafted], ignore_index=True)
    table["whose"] = _whose(table)
    return table[["seed", "run", "donor", "whose", "sequences", "loss"]]


def graft_claims(table: pd.DataFrame) -> list[Claim]:
    """Which trained layer is grafted in decides how fast the rest is learned."""
    times = times_of(table, "whose")
    others = [[t[whose] for whose in t if whose not in ("none", "own")] for t in times]
    slowest = over_times(max(donors, key=when) for donors in others)
    return [
        judged(
            "7",
            "a network's own trained first layer shortens training to less than a third: "
            f"{UNTIL_LEARNED}",
            paper="own 27k, none 273k",
            ours=told(times, ("own", "none")),
            holds=[surely_longer(t["none"], t["own"], factor=3) for t in times],
        ),
        judged(
            "7",
            "which trained first layer it is matters greatly, the slowest donor taking over three "
            f"times as long as its own: {UNTIL_LEARNED}",
            paper="own 27k, others 243k and 214k",
            ours=f"{told(times, ['own'])}, the slowest {slowest}",
            holds=[
                any(surely_longer(donor, t["own"], factor=3) for donor in donors)
                for t, donors in zip(times, others, strict=True)
            ],
        ),
    ]


def previous_token_table(study: Study) -> pd.DataFrame:
    """Training losses with heads of layer 0 attending perfectly, one induction head active.

    Columns: `seed`, `run`, `condition` (a key of `plots.style.PREVIOUS_TOKEN_LINES`), `heads`, as
    "L0H2, L0H5", `sequences`, `loss` as in `Study.losses`. "none" is the network with that one
    head.
    """
    clamped = study.losses("previous_token")
    single = study.losses("single")
    heads = {seed: str(circuit.induction) for seed, circuit in study.circuits.items()}
    free = single[single["condition"] == single["seed"].map(heads)].assign(condition="none")
    table = pd.concat([free, clamped], ignore_index=True)
    table["heads"] = [
        _heads(study, seed, condition)
        for seed, condition in zip(table["seed"], table["condition"], strict=True)
    ]
    return table[["seed", "run", "condition", "heads", "sequences", "loss"]]


def previous_token_claims(table: pd.DataFrame) -> list[Claim]:
    """Which heads attend perfectly matters little, unless it is every head of the layer."""
    times = times_of(table, "condition")
    some = ("best", "unlike", "like")
    return [
        judged(
            "8",
            "one head or several, whichever, the slowest takes less than twice as long as the "
            f"fastest: {UNTIL_LEARNED}",
            paper="best 216k, unlike 280k, like 187k; one network",
            ours=told(times, some),
            holds=[
                all(surely_longer(t[one], t[other], factor=1 / 2) for one in some for other in some)
                for t in times
            ],
            varies=True,
        ),
        judged(
            "8",
            f"all eight heads at once take longer than any of these: {UNTIL_LEARNED}",
            paper="all 564k; one network",
            ours=told(times, ["all"]),
            holds=[all(surely_longer(t["all"], t[name]) for name in some) for t in times],
            varies=True,
        ),
        judged(
            "8",
            f"all eight heads at once take longer even than none clamped: {UNTIL_LEARNED}",
            paper="all 564k, none 310k; one network",
            ours=told(times, ("all", "none")),
            holds=[surely_longer(t["all"], t["none"]) for t in times],
            varies=True,
        ),
    ]


def strength_table(study: Study) -> pd.DataFrame:
    """Losses with the induction head's attention clamped, other heads active.

    Columns: `seed`, `run`, `strength` (attention on the correct label, from 0 to 1; the rest is on
    the other), `split`, `sequences`, `loss` as in `Study.losses`.
    """
    table = study.losses("strengths", ("train", "test_relabel", "test_exemplars"))
    table = table.assign(strength=table["condition"].astype(float))
    return table[["seed", "run", "strength", "split", "sequences", "loss"]]


def strength_claims(table: pd.DataFrame) -> list[Claim]:
    """Stronger is faster; attention to the wrong label learns what does not transfer."""
    splits = {str(split): rows for split, rows in table.groupby("split")}
    networks = times_of(splits["train"], "strength", level=HALF_GUESS)
    times = [{float(s): time for s, time in network.items()} for network in networks]
    claims = [_stronger_is_faster(times)]
    if "test_relabel" in splits:  # features with no label set held out have none
        relabel = curves(splits["test_relabel"], "strength").values()
        ends = [{float(s): float(loss[-1]) for s, (_, loss) in n.items()} for n in relabel]
        claims.append(_wrong_way(times, ends))
    return claims


def _stronger_is_faster(times: Sequence[Mapping[float, Crossing]]) -> Claim:
    right = sorted(s for s in times[0] if s >= EVEN)
    return judged(
        "15",
        "from even attention up, stronger is faster at every step of strength: sequences until "
        f"the training loss is below {HALF_GUESS:.3f}",
        paper="strength 1 25k, 0.9 36k, 0.75 48k, 0.6 124k, 0.5 292k",
        ours=", ".join(
            f"{'strength ' if s == 1 else ''}{s:g} {over_times(t[s] for t in times)}"
            for s in (1, 0.9, 0.75, 0.6, 0.5)
        ),
        holds=[
            all(surely_longer(t[weak], t[strong]) for weak, strong in pairwise(right))
            for t in times
        ],
    )


def _wrong_way(
    times: Sequence[Mapping[float, Crossing]], ends: Sequence[Mapping[float, float]]
) -> Claim:
    right = [s for s in times[0] if s >= EVEN]
    wrong = [s for s in times[0] if s < EVEN]
    return judged(
        "15",
        "attention to the wrong label learns the training pairs of labels and fails on held-out "
        "ones: loss on these ends above ln 2, from even attention up below (best of the wrong, "
        "worst of the right)",
        paper="0.98, 0.42",
        ours=", ".join(
            over_seeds([pick(end[s] for s in some) for end in ends], decimals(2))
            for pick, some in ((min, wrong), (max, right))
        ),
        holds=[
            all(time[s].observed for s in wrong)
            and min(end[s] for s in wrong) > math.log(2) > max(end[s] for s in right)
            for time, end in zip(times, ends, strict=True)
        ],
    )


def _whose(table: pd.DataFrame) -> pd.Series:
    """Of each row's donor: "none", "own", and the others of a network in order of their seeds."""
    others = [name for name in DONOR_LINES if name not in ("none", "own")]
    pairs = table[["seed", "donor"]].drop_duplicates()
    names: dict[tuple[int, str], str] = {}
    for seed, donors in pairs.groupby("seed")["donor"]:
        own = str(seed)
        strangers = sorted((d for d in donors if d not in ("none", own)), key=int)
        named = {"none": "none", own: "own", **dict(zip(strangers, others, strict=False))}
        names |= {(int(own), donor): name for donor, name in named.items()}
    keys = zip(table["seed"], table["donor"], strict=True)
    return pd.Series([names[key] for key in keys], index=table.index)


def _heads(study: Study, seed: int, condition: str) -> str:
    """Which heads of layer 0 a condition of Figure 8 clamps: read from the run itself."""
    if condition == "none":
        return ""
    run = study.runs["previous_token"][seed][condition]
    return ", ".join(
        str(head)
        for clamp in run.clamps
        if isinstance(clamp, PreviousTokenAttention)
        for head in sorted(clamp.heads)
    )


FIGURES = (
    Figure(
        "7",
        ("main", "grafts"),
        graft_table,
        lambda table, canvas: plot_each_network(table, canvas, plot_grafts),
        graft_claims,
        size=(8.4, 3.6),
        needs_donors=True,
    ),
    Figure(
        "8",
        ("single", "previous_token"),
        previous_token_table,
        lambda table, canvas: plot_previous_token(table, canvas.subplots()),
        previous_token_claims,
    ),
    Figure(
        "15",
        ("strengths",),
        strength_table,
        lambda table, canvas: plot_match_strengths(table, canvas.subplots(1, 3, sharey=True)),
        strength_claims,
        size=(9.6, 3.2),
    ),
)
