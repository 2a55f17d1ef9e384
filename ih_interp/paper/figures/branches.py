"""Figures 7, 8 and 15: other ways to perfect a part of the circuit in training."""

import math
from itertools import pairwise

import numpy as np
import pandas as pd

from ih_interp.analysis.emergence import LEARNED, first_below
from ih_interp.clamps import PreviousTokenAttention
from ih_interp.paper.study import Claim, Figure, Study, curves, decimals, judged, over_seeds
from ih_interp.plots.seeds import plot_each_network
from ih_interp.plots.style import DONOR_LINES
from ih_interp.plots.subcircuits import plot_grafts, plot_match_strengths, plot_previous_token

HALF_GUESS = math.log(2) / 2
"""The loss that Figure 15 is read at, as the paper's numbers are."""


def graft_table(study: Study) -> pd.DataFrame:
    """Training losses with trained first layers grafted in, and without.

    Columns: `seed`, `run`, `donor` (the seed whose embedding and layer 0 it is, or "none"), `whose`
    (a key of `plots.style.DONOR_LINES`), `sequences`, `loss`.
    """
    grafted = study.losses("grafts").rename(columns={"condition": "donor"})
    free = study.losses("main").assign(donor="none")
    table = pd.concat([free, grafted], ignore_index=True)
    table["whose"] = _whose(table)
    return table[["seed", "run", "donor", "whose", "sequences", "loss"]]


def graft_claims(table: pd.DataFrame) -> list[Claim]:
    """Which trained layer is grafted in decides how fast the rest is learned."""
    networks = curves(table, "whose").values()
    times = [{name: first_below(*line, LEARNED) for name, line in n.items()} for n in networks]
    others = [max(t[w] for w in t if w not in ("none", "own")) for t in times]
    until = f"sequences until the loss is below {LEARNED:.3f}"
    return [
        judged(
            "7",
            f"a network's own trained first layer shortens training to a third or less: {until}",
            paper="its own 27k, none 273k",
            ours=f"its own {over_seeds([t['own'] for t in times])}, "
            f"none {over_seeds([t['none'] for t in times])}",
            holds=[3 * t["own"] < t["none"] for t in times],
        ),
        judged(
            "7",
            "which trained first layer it is matters greatly, the slowest donor taking three times "
            f"as long as its own: {until}",
            paper="its own 27k, others 243k and 214k",
            ours=f"its own {over_seeds([t['own'] for t in times])}, "
            f"the slowest {over_seeds(others)}",
            holds=[3 * t["own"] < other for t, other in zip(times, others, strict=True)],
        ),
    ]


def previous_token_table(study: Study) -> pd.DataFrame:
    """Training losses with heads of layer 0 attending perfectly, one induction head active.

    Columns: `seed`, `run`, `condition` (a key of `plots.style.PREVIOUS_TOKEN_LINES`), `heads`, as
    "L0H2, L0H5", `sequences`, `loss`. "none" is the network with that one head.
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
    networks = curves(table, "condition").values()
    times = [{name: first_below(*line, LEARNED) for name, line in n.items()} for n in networks]
    some = [[t[name] for name in ("best", "unlike", "like")] for t in times]
    until = f"sequences until the loss is below {LEARNED:.3f}"

    def told(*names: str) -> str:
        return ", ".join(f"{name} {over_seeds([t[name] for t in times])}" for name in names)

    return [
        judged(
            "8",
            "one head or several, whichever, the slowest takes less than twice as long as the "
            f"fastest: {until}",
            paper="best 216k, unlike 280k, like 187k; one network",
            ours=told("best", "unlike", "like"),
            holds=[max(t) < np.inf and max(t) < 2 * min(t) for t in some],
            varies=True,
        ),
        judged(
            "8",
            f"all eight heads at once take longer than any of these: {until}",
            paper="all 564k; one network",
            ours=told("all"),
            holds=[t["all"] > max(of_some) for t, of_some in zip(times, some, strict=True)],
            varies=True,
        ),
        judged(
            "8",
            f"all eight heads at once take longer even than none clamped: {until}",
            paper="all 564k, none 310k; one network",
            ours=told("all", "none"),
            holds=[t["all"] > t["none"] for t in times],
            varies=True,
        ),
    ]


def strength_table(study: Study) -> pd.DataFrame:
    """Losses with the induction head's attention clamped, other heads active.

    Columns: `seed`, `run`, `strength` (attention on the correct label, from 0 to 1; the rest is on
    the other), `split`, `sequences`, `loss`.
    """
    table = study.losses("strengths", ("train", "test_relabel", "test_exemplars"))
    table = table.assign(strength=table["condition"].astype(float))
    return table[["seed", "run", "strength", "split", "sequences", "loss"]]


def strength_claims(table: pd.DataFrame) -> list[Claim]:
    """Stronger is faster; attention to the wrong label learns what does not transfer."""
    by_split = {
        split: [
            {float(strength): line for strength, line in network.items()}
            for network in curves(rows, "strength").values()
        ]
        for split, rows in table.groupby("split")
    }
    trains = by_split["train"]
    times = [{s: first_below(*line, HALF_GUESS) for s, line in n.items()} for n in trains]
    right = sorted(s for s in times[0] if s >= 0.5)
    wrong = sorted(s for s in times[0] if s < 0.5)
    claims = [
        judged(
            "15",
            "from even attention up, stronger is faster at every step of strength: sequences until "
            f"the training loss is below {HALF_GUESS:.3f}",
            paper="strength 1 25k, 0.9 36k, 0.75 48k, 0.6 124k, 0.5 292k",
            ours=", ".join(
                f"{'strength ' if s == 1 else ''}{s:g} {over_seeds([t[s] for t in times])}"
                for s in (1, 0.9, 0.75, 0.6, 0.5)
            ),
            holds=[all(t[s] > t[more] for s, more in pairwise(right)) for t in times],
        ),
    ]
    if "test_relabel" in by_split:  # features with no label set held out have none
        claims.append(_wrong_way(times, by_split["test_relabel"], right, wrong))
    return claims


def _wrong_way(
    times: list[dict[float, float]],
    relabel: list[dict[float, tuple[np.ndarray, np.ndarray]]],
    right: list[float],
    wrong: list[float],
) -> Claim:
    ends = [{s: float(loss[-1]) for s, (_, loss) in network.items()} for network in relabel]
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
            max(time[s] for s in wrong) < np.inf
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
