"""The heads that matter: which, in what role, since when, and fed by whom."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ih_interp.analysis.dynamics.emergence import half_of_end
from ih_interp.page._tables import two_digits
from ih_interp.page.ablation import Ablations
from ih_interp.page.wiring import INPUTS
from ih_interp.types import Head

ROLE, COST, MOST_ROWS = 0.25, 0.1, 12
"""The share of the way from chance to 1 from which a score is a role; the share of what all heads
cost from which a head matters; and the most rows."""

EDGE_SHARE, EDGE_REACH, MOST_EDGES = 0.1, 0.05, 3
"""Edges are named with these shares of their receiver's (or sender's) use and of the strongest."""

NOISE, TIMES_NOISE = 0.01, 2
"""Edges are named above so many times the size of this quantile of all uses, if below 0."""

COLUMNS = ["head", "role", "score", "chance", "since", "cost", "fed_by", "feeds", "clamped"]


def heads_that_matter(
    scores: pd.DataFrame,
    wiring: pd.DataFrame | None,
    ablations: Ablations | None,
    clamped: Mapping[str, Sequence[str]],
) -> pd.DataFrame:
    """Return the heads that have a role or cost much, by layer, the best wired of each first.

    Columns: `head`; `role`, the score that is furthest on its way from chance to 1, "" where none
    has come a quarter of it; `score` and `chance` of a role at the last checkpoint; `since`, in
    sequences, as the function of that name says; `cost` (nats) without it; `fed_by` and `feeds`,
    the edges that stand out in the wiring at the last checkpoint; `clamped`, the words that the
    argument has for it.

    Of more than 12, those are kept whose score, cost or use of edges is the largest share of what
    it could be. Heads of a layer are in the order of their use of edges, or of cost without wiring.
    """
    last = scores[scores["step"] == scores["step"].max()]
    height = (last["value"] - last["chance"]) / (1 - last["chance"])
    best = last.assign(height=height).sort_values("height", ascending=False).groupby("name").head(1)
    costs = {} if ablations is None else dict(ablations.heads.set_index("head")["cost"])
    whole = np.nan if ablations is None else ablations.nothing - ablations.everything
    uses = {} if wiring is None else uses_of_edges(wiring)
    rows: list[dict[str, object]] = []
    for row in best.to_dict("records"):
        name, has_role = str(row["name"]), row["height"] >= ROLE
        cost = float(costs.get(name, np.nan))
        of_costs = cost / whole if whole > 0 else np.nan
        if not has_role and not of_costs >= COST:
            continue
        role, use = str(row["score"]) if has_role else "", uses.get(name, 0.0)
        shares = (row["height"], of_costs, use / max(uses.values(), default=1))
        rows.append(
            {
                "head": name,
                "role": role,
                "score": row["value"] if has_role else np.nan,
                "chance": row["chance"] if has_role else np.nan,
                "since": since(scores, name, role) if has_role else np.nan,
                "cost": cost,
                "fed_by": "" if wiring is None else edges(wiring, name, "receiver"),
                "feeds": "" if wiring is None else edges(wiring, name, "sender"),
                "clamped": ", ".join(clamped.get(name, ())),
                "layer": Head.parse(name).layer,
                "use": use,
                "share": np.nanmax(shares),
            }
        )
    table = pd.DataFrame(rows, columns=[*COLUMNS, "layer", "use", "share"])
    table = table.sort_values("share", ascending=False).head(MOST_ROWS)
    table = table.sort_values(["layer", "use", "cost"], ascending=[True, False, False])
    return table[COLUMNS].reset_index(drop=True)


def uses_of_edges(wiring: pd.DataFrame) -> dict[str, float]:
    """Return by head the sum of its edges' use at the last checkpoint, of those that are used."""
    last = wiring[(wiring["step"] == wiring["step"].max()) & (wiring["use"] > 0)]
    ends = pd.concat([last.groupby(end)["use"].sum() for end in ("sender", "receiver")])
    return {str(name): float(use) for name, use in ends.groupby(level=0).sum().items()}


def since(scores: pd.DataFrame, name: str, score: str) -> float:
    """Return the sequences at which a head's score last rose above half of its end.

    It is `half_of_end` of score - chance from the last checkpoint on that is not above that level,
    for a score that falls and rises again; the first checkpoint, 0, where all are above.
    """
    curve = scores[(scores["name"] == name) & (scores["score"] == score)].sort_values("sequences")
    rise, sequences = (curve["value"] - curve["chance"]).to_numpy(), curve["sequences"].to_numpy()
    below = np.flatnonzero(rise <= rise[-1] / 2)
    if not len(below):
        return float(sequences[0])
    return half_of_end(sequences[below[-1] :], rise[below[-1] :], at_least=0).time


def edges(wiring: pd.DataFrame, head: str, end: str) -> str:
    """Return the edges that stand out among those at one end of which a head is.

    They are written as "L0H3 keys 0.42", with two digits that count, the strongest first; "" where
    none stands out.
    """
    last = wiring[wiring["step"] == wiring["step"].max()]
    other = "sender" if end == "receiver" else "receiver"
    own = last[(last[end] == head) & (last["use"] > 0)].sort_values("use", ascending=False)
    noise = -TIMES_NOISE * last["use"].quantile(NOISE)
    least = max(EDGE_SHARE * own["use"].sum(), EDGE_REACH * last["use"].max(), noise)
    strongest = own[own["use"] >= least].head(MOST_EDGES)
    parts = zip(strongest[other], strongest["via"], strongest["use"], strict=True)
    return ", ".join(f"{name} {INPUTS[via]} {two_digits(use)}" for name, via, use in parts)


def roles(matter: pd.DataFrame) -> dict[str, list[str]]:
    """Return the heads of each role, in their order."""
    with_role = matter[matter["role"] != ""]
    return {
        str(role): sorted(rows["head"], key=Head.parse)
        for role, rows in with_role.groupby("role", sort=False)
    }
