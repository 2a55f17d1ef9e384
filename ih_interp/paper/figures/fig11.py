"""Figure 11: which head of layer 0 serves which head of layer 1, and how.

Layer 1 reads layer 0 in two ways: through its patterns, where values are preserved, and through its
values, where patterns are. Layers count from 0 here, from 1 in the paper.
"""

from collections.abc import Iterable

import pandas as pd
import torch
from transformer_lens import HookedTransformer

from ih_interp.analysis.heads.composition import (
    Kind,
    pair_table,
    wo_composition,
    wo_composition_chance,
)
from ih_interp.analysis.patching.preserving import Keep, Kept, preserving_map
from ih_interp.paper.claims import Claim
from ih_interp.paper.figures._fig11_drawing import PATHS, plot_wiring_maps
from ih_interp.paper.judging import Measured, Rule, by_seed, judge, rank_correlation
from ih_interp.paper.study import Figure, Study
from ih_interp.types import Batch

THROUGH: tuple[tuple[str, Kept, Kind], ...] = (
    ("patterns", "values", "K"),
    ("values", "patterns", "V"),
)
"""What layer 1 reads with, what is preserved so that it alone is left, and its composition."""

LEFT: dict[str, Keep] = {"one ablated": "all_but_one", "one left": "one"}
"""Heads of layer 0: the first and the second column of Figure 11."""

GUESS = 0.5
"""Accuracy of a guess between the context's two labels."""

ALIKE = 0.9
"""Rank correlation from which two maps would be called the same."""


def map_table(study: Study) -> pd.DataFrame:
    """Return the six maps of Figure 11, of every network at its end.

    Columns: those of `Study.each_run`, `map` ("one ablated": accuracy less that with every head of
    layer 0; "one left": accuracy; "composition"), `through` ("patterns" or "values"), `sender`,
    `previous_token` (whether the sender is one), `receiver`, `value`, and `neutral`, which says
    nothing: 0, chance 1/L, and composition of random matrices.
    """

    def measure(model: HookedTransformer, batch: Batch) -> pd.DataFrame:
        causal = causal_maps(model, batch, LEFT).assign(n_sequences=len(batch))
        return pd.concat([causal, composition_maps(model)], ignore_index=True)  # of weights alone

    table = study.each_network(measure)
    return table.assign(
        previous_token=[
            sender in map(str, study.circuits[seed].previous_token)
            for seed, sender in zip(table["seed"], table["sender"], strict=True)
        ]
    )


def causal_maps(model: HookedTransformer, batch: Batch, names: Iterable[str]) -> pd.DataFrame:
    """Return the causal maps of these names, keys of `LEFT`, as rows of `map_table`."""
    parts: list[pd.DataFrame] = []
    for through, kept, _ in THROUGH:
        for name in names:
            found = preserving_map(model, batch, preserve=kept, keep=LEFT[name]).table()
            column = "accuracy_change" if name == "one ablated" else "accuracy"
            neutral = 0.0 if name == "one ablated" else 1 / model.cfg.d_vocab_out
            rows = found[["sender", "receiver", column]].rename(columns={column: "value"})
            parts.append(rows.assign(map=name, through=through, neutral=neutral))
    return pd.concat(parts, ignore_index=True)


def composition_maps(model: HookedTransformer) -> pd.DataFrame:
    """Return the two maps of composition, as rows of `map_table`."""
    chance = wo_composition_chance(model, generator=torch.Generator().manual_seed(0)).mean
    return pd.concat(
        [
            pair_table(wo_composition(model, kind))
            .rename(columns={"source": "sender", "name": "receiver"})
            .assign(map="composition", through=through, neutral=chance)
            for through, _, kind in THROUGH
        ],
        ignore_index=True,
    )


def map_claims(table: pd.DataFrame) -> list[Claim]:
    """Judge through what heads of layer 0 work, and whether many serve many."""
    return judge("11", [_measure(rows) for rows in by_seed(table)], *RULES)


RULES = (
    Rule(
        "previous-token heads act through patterns, the others through values: a pair's mean "
        "accuracy alone, with previous-token heads less with others, through each",
        "+0.09, -0.14",
        "{patterns gap:+.2f}, {values gap:+.2f}",
        lambda n: n["patterns gap"] > 0 > n["values gap"],
    ),
    Rule(
        "wired many to many: induction heads that the previous-token head with most serves, and"
        " heads of layer 0 that the induction head with most is served by (a pair alone, acting"
        " through patterns, above a guess between the two labels, 0.5); each two or more",
        "4, 4",
        "{served}, {fed}",
        lambda n: n["served"] > 1 and n["fed"] > 1,
    ),
    Rule(
        "one pair of heads, one a layer, is often far above chance: pairs of 64 above 0.5, and"
        " the best pair's accuracy (two pairs or more)",
        "8, 0.91",
        "{above}, {best:.2f}",
        lambda n: n["above"] >= 2,
    ),
    Rule(
        "composition scores agree with the causal maps only in part: rank correlation with a pair's"
        f" accuracy alone, K and V (both between 0 and {ALIKE})",
        "in part (no number)",
        "{patterns agreement:.2f}, {values agreement:.2f}",
        lambda n: all(0 < n[f"{through} agreement"] < ALIKE for through in PATHS),
    ),
)


def _measure(network: pd.DataFrame) -> Measured:
    """Return what one network's pairs of heads do alone, and how composition agrees with it."""
    found: dict[str, float] = {}
    for through in PATHS:
        rows = network[network["through"] == through]
        left, composition = (rows[rows["map"] == name] for name in ("one left", "composition"))
        previous = left["previous_token"]
        gap = left.loc[previous, "value"].mean() - left.loc[~previous, "value"].mean()
        both = left.merge(composition, on=["sender", "receiver"])
        agreement = rank_correlation(both["value_y"], both["value_x"])
        found |= {f"{through} gap": float(gap), f"{through} agreement": agreement}
        if through == "patterns":
            works = left["value"] > GUESS
            found |= {
                "served": float(works[previous].groupby(left["sender"]).sum().max()),
                "fed": float(works.groupby(left["receiver"]).sum().max()),
                "above": float(works.sum()),
                "best": float(left["value"].max()),
            }
    return found


FIGURES = (Figure("11", ("main",), map_table, plot_wiring_maps, map_claims, size=(11.0, 7.2)),)
