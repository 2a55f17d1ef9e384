"""The heads that matter: which, in what role, since when, and fed by whom."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from ih_interp.analysis.dynamics.emergence import Crossing, half_of_end
from ih_interp.clamps import AbstractClamp, Shape
from ih_interp.page.ablation import Ablations
from ih_interp.page.wiring import INPUTS
from ih_interp.types import Head

ROLE, COST, MOST_ROWS = 0.25, 0.1, 12
"""The share of the way from chance to 1 from which a score is a role; the share of what all heads
cost from which a head matters; and the most rows."""

EDGE_SHARE, EDGE_REACH, MOST_EDGES = 0.1, 0.05, 3
"""Edges are named with these shares of their receiver's (or sender's) use and of the strongest."""

COLUMNS = ["head", "role", "score", "chance", "since", "cost", "fed_by", "feeds", "clamped"]


def heads_that_matter(
    scores: pd.DataFrame,
    wiring: pd.DataFrame | None,
    ablations: Ablations | None,
    clamps: Iterable[AbstractClamp],
    shape: Shape,
) -> pd.DataFrame:
    """Return the heads that have a role or cost much, the costliest first.

    Columns: `head`; `role`, the score that is furthest on its way from chance to 1, "" where none
    has come a quarter of it; `score` and `chance` at the last checkpoint; `since`, in sequences, as
    `half_of_end` finds it in score - chance, NaN where it does not; `cost` (nats) without it;
    `fed_by` and `feeds`, the strongest edges of the wiring at the last checkpoint; `clamped`, the
    kinds of the clamps on it.
    """
    last = scores[scores["step"] == scores["step"].max()]
    height = (last["value"] - last["chance"]) / (1 - last["chance"])
    best = last.assign(height=height).sort_values("height", ascending=False).groupby("name").head(1)
    costs = {} if ablations is None else dict(ablations.heads.set_index("head")["cost"])
    whole = np.nan if ablations is None else ablations.nothing - ablations.everything
    clamped = clamps_by_head(clamps, shape)
    rows: list[dict[str, object]] = []
    for row in best.to_dict("records"):
        name, has_role = str(row["name"]), row["height"] >= ROLE
        cost = float(costs.get(name, np.nan))
        if not has_role and not cost >= COST * whole > 0:
            continue
        score = str(row["score"])
        rows.append(
            {
                "head": name,
                "role": score if has_role else "",
                "score": row["value"],
                "chance": row["chance"],
                "height": row["height"],
                "since": since(scores, name, score) if has_role else np.nan,
                "cost": cost,
                "fed_by": "" if wiring is None else edges(wiring, name, "receiver"),
                "feeds": "" if wiring is None else edges(wiring, name, "sender"),
                "clamped": ", ".join(clamped.get(name, ())),
            }
        )
    table = pd.DataFrame(rows, columns=[*COLUMNS, "height"])
    table = table.sort_values(["cost", "height"], ascending=False)
    return table[COLUMNS].head(MOST_ROWS).reset_index(drop=True)


def since(scores: pd.DataFrame, name: str, score: str) -> float:
    """Return the sequences at which a head's score - chance passed half of its end, or NaN."""
    crossing = crossing_of(scores, name, score)
    return crossing.time if crossing.observed else np.nan


def crossing_of(scores: pd.DataFrame, name: str, score: str) -> Crossing:
    """Return `half_of_end` of a head's score - chance; not observed where the score fell."""
    curve = scores[(scores["name"] == name) & (scores["score"] == score)].sort_values("sequences")
    rise = (curve["value"] - curve["chance"]).to_numpy()
    try:
        return half_of_end(curve["sequences"].to_numpy(), rise)
    except ValueError:  # it falls: it was there, more so, before the first checkpoint
        return Crossing(float(curve["sequences"].iloc[-1]), observed=False)


def edges(wiring: pd.DataFrame, head: str, end: str) -> str:
    """Return the strongest edges at one end of which a head is, as "L0H3 keys 0.42"."""
    last = wiring[wiring["step"] == wiring["step"].max()]
    other = "sender" if end == "receiver" else "receiver"
    own = last[(last[end] == head) & (last["use"] > 0)].sort_values("use", ascending=False)
    least = max(EDGE_SHARE * own["use"].sum(), EDGE_REACH * last["use"].max())
    strongest = own[own["use"] >= least].head(MOST_EDGES)
    parts = zip(strongest[other], strongest["via"], strongest["use"], strict=True)
    return ", ".join(f"{name} {INPUTS[via]} {use:.2f}" for name, via, use in parts)


def clamps_by_head(clamps: Iterable[AbstractClamp], shape: Shape) -> dict[str, list[str]]:
    """Return the kinds of the clamps that set something of a head, by its name."""
    found: dict[str, list[str]] = {}
    for clamp in clamps:
        sites = {site for site in clamp.sites(shape) if 0 <= site.layer < shape.n_layers}
        for site in sites:
            heads = range(shape.n_heads) if site.head is None else [site.head]
            for head in heads:
                kinds = found.setdefault(str(Head(site.layer, head)), [])
                if clamp.kind not in kinds:
                    kinds.append(clamp.kind)
    return found


def roles(matter: pd.DataFrame) -> dict[str, list[str]]:
    """Return the heads of each role, in their order."""
    with_role = matter[matter["role"] != ""]
    return {
        str(role): sorted(rows["head"], key=Head.parse)
        for role, rows in with_role.groupby("role", sort=False)
    }
