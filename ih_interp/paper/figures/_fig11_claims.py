"""What the paper claims about Figures 11 and 12, Table 1, and composition before training."""

import warnings
from collections.abc import Callable

import pandas as pd
from scipy.stats import ConstantInputWarning, spearmanr

from ih_interp.paper.study import Claim, decimals, judged, over_seeds

GUESS = 0.5
"""Accuracy of one who knows the context's two labels and guesses between them."""

COSTS = 0.003
"""Accuracy that removing the direct path costs at most: 0.3 points."""

AGREES = 0.5
"""Rank correlation from which one quantity would be called a good prediction of another."""

ALIKE = 0.9
"""Rank correlation from which two maps would be called the same."""

PATHS = ("patterns", "values")
"""What layer 1 reads with: K-composition and V-composition."""


def map_claims(table: pd.DataFrame) -> list[Claim]:
    """Previous-token heads work through patterns, others through values; many serve many."""
    left = table[table["map"] == "one left"]
    networks = [rows for _, rows in left.groupby("seed")]
    matches = [rows[rows["through"] == "patterns"] for rows in networks]
    served = [_partners(rows[rows["previous_token"]], "sender") for rows in matches]
    fed = [_partners(rows, "receiver") for rows in matches]
    above = [float((rows["value"] > GUESS).sum()) for rows in matches]
    best = [float(rows["value"].max()) for rows in matches]
    return [
        _roles_claim(networks),
        judged(
            "11",
            "wired many to many: induction heads that the previous-token head with most serves, and"
            " heads of layer 0 that the induction head with most is served by (a pair alone, acting"
            " through patterns, above a guess between the two labels, 0.5); each two or more",
            paper="4, 4",
            ours=f"{over_seeds([max(n) for n in served])}, {over_seeds([max(n) for n in fed])}",
            holds=[max(s) > 1 and max(f) > 1 for s, f in zip(served, fed, strict=True)],
        ),
        judged(
            "11",
            "one pair of heads, one a layer, is often far above chance: pairs of 64 above 0.5, and"
            " the best pair's accuracy (two pairs or more)",
            paper="8, 0.91",
            ours=f"{over_seeds(above)}, {over_seeds(best, decimals(2))}",
            holds=[pairs >= 2 for pairs in above],
        ),
        _agreement_claim(table),
    ]


def direct_claims(table: pd.DataFrame) -> list[Claim]:
    """At the end layer 0 does not contribute to the output directly; while learning it may."""
    direct = [rows for _, rows in table[table["removed"] == "direct path"].groupby("seed")]
    last = [rows for _, rows in table[table["removed"] == "last layer"].groupby("seed")]
    cost = [-float(_at_end(rows)["accuracy_change"]) for rows in direct]
    most = [float(rows.loc[rows["sequences"] > 0, "loss_change"].max()) for rows in direct]
    end = [float(_at_end(rows)["loss_change"]) for rows in direct]
    of_last = [float(_at_end(rows)["loss_change"]) for rows in last]
    return [
        judged(
            "12",
            "at the end layer 0's direct path to the output does not matter: points of accuracy "
            "that removing it costs (less than 0.3)",
            paper="0.013; in its other networks 0.009 to 0.26",
            ours=over_seeds([100 * points for points in cost], decimals(3)),
            holds=[points < COSTS for points in cost],
        ),
        judged(
            "12",
            "while learning it matters for a time: loss that removing it costs, most after the "
            "untrained start, and at the end (nats; a fifth or less at the end)",
            paper="0.165, 0.0016",
            ours=f"{over_seeds(most, decimals(3))}, {over_seeds(end, decimals(4))}",
            holds=[top > 0 and final <= top / 5 for top, final in zip(most, end, strict=True)],
        ),
        judged(
            "12",
            "the heads of the last layer come to carry the answer: loss without them, less that "
            "with them, at the end (nats; over 1)",
            paper="1.89",
            ours=over_seeds(of_last, decimals(2)),
            holds=[change > 1 for change in of_last],
        ),
    ]


def preserving_claims(table: pd.DataFrame) -> list[Claim]:
    """Each group of heads is missed where the input it acts through is left open."""
    wide = table.pivot_table(
        index="seed", columns=["group", "preserved"], values="accuracy", dropna=False
    )
    paper = {"previous-token": "0.9985, 0.6987", "others": "0.3427, 0.9932"}
    acts = {"previous-token": "patterns", "others": "values"}
    claims: list[Claim] = []
    for group, through in acts.items():
        kept, lost = (wide[group, what] for what in ("patterns", "values"))
        open_path, other = (lost, kept) if through == "patterns" else (kept, lost)
        claims.append(
            judged(
                "table 1",
                f"{group.replace('others', 'the other')} heads act through {through}: accuracy "
                "without them, patterns preserved, values preserved (over twice the errors "
                f"where they are missed, with {'values' if through == 'patterns' else 'patterns'}"
                " preserved)",
                paper=paper[group],
                ours=", ".join(over_seeds(c.tolist(), decimals(4)) for c in (kept, lost)),
                holds=(1 - open_path > 2 * (1 - other)).tolist(),
            )
        )
    return claims


def composition_claims(table: pd.DataFrame) -> list[Claim]:
    """Where pairs of heads come to work, composition before training does not tell which will."""
    found = {
        through: [r for _, r in table[table["through"] == through].groupby("seed")]
        for through in PATHS
    }
    function = _each(found, lambda rows: rank_correlation(rows["start"], rows["accuracy"]))
    stays = _each(found, lambda rows: rank_correlation(rows["start"], rows["end"]))
    strongest, excess = _each(found, _rank), _each(found, _excess)
    best = _each(found, lambda rows: float(rows["accuracy"].max()))

    def holds(values: dict[str, list[float]], rule: Callable[[float], bool]) -> list[bool]:
        networks = range(len(found["patterns"]))
        return [all(best[p][n] > GUESS and rule(values[p][n]) for p in PATHS) for n in networks]

    return [
        judged(
            "11 init",
            "composition before training does not tell which pairs work, the best above a guess: "
            f"rank correlation with a pair's accuracy alone, K and V (both within {AGREES} of 0)",
            paper="no (no number)",
            ours=f"{_told(function, decimals(2))}; with composition at the end "
            f"{_told(stays, decimals(2))}",
            holds=holds(function, lambda correlation: abs(correlation) < AGREES),
        ),
        judged(
            "11 init",
            "the pair that works best, above a guess, was not the one that composed most before "
            "training: its rank then of 64, K and V (neither is 1)",
            paper="neither is",
            ours=_told(strongest, decimals(0)),
            holds=holds(strongest, lambda rank: rank > 1),
        ),
        judged(
            "11 init",
            "the pair that works best, above a guess, even composed less than the average pair "
            "before training: its composition then less the mean, K and V (both below 0)",
            paper="both below 0 (no number)",
            ours=_told(excess, lambda value: f"{value:+.3f}"),
            holds=holds(excess, lambda value: value < 0),
        ),
    ]


def rank_correlation(first: pd.Series, second: pd.Series) -> float:
    """Spearman's, in [-1, 1]; NaN where either does not vary."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        return float(spearmanr(first, second)[0])  # pyright: ignore[reportArgumentType]


def _roles_claim(networks: list[pd.DataFrame]) -> Claim:
    """Means over pairs, of previous-token heads less of others, through patterns and values."""
    gaps: dict[str, list[float]] = {
        through: [
            float(
                rows.loc[rows["previous_token"], "value"].mean()
                - rows.loc[~rows["previous_token"], "value"].mean()
            )
            for rows in (network[network["through"] == through] for network in networks)
        ]
        for through in PATHS
    }
    return judged(
        "11",
        "previous-token heads act through patterns, the others through values: a pair's mean "
        "accuracy alone, with previous-token heads less with others, through each",
        paper="+0.09, -0.14",
        ours=_told(gaps, lambda value: f"{value:+.2f}"),
        holds=[p > 0 > v for p, v in zip(gaps["patterns"], gaps["values"], strict=True)],
    )


def _agreement_claim(table: pd.DataFrame) -> Claim:
    pairs = ["seed", "through", "sender", "receiver"]
    both = table[table["map"] != "one ablated"].pivot_table(
        index=pairs, columns="map", values="value"
    )
    found = {
        through: [
            rank_correlation(rows["composition"], rows["one left"])
            for _, rows in both.xs(through, level="through").groupby("seed")
        ]
        for through in PATHS
    }
    return judged(
        "11",
        "composition scores agree with the causal maps only in part: rank correlation with a pair's"
        f" accuracy alone, K and V (both between 0 and {ALIKE})",
        paper="in part (no number)",
        ours=_told(found, decimals(2)),
        holds=[
            0 < k < ALIKE and 0 < v < ALIKE
            for k, v in zip(found["patterns"], found["values"], strict=True)
        ],
    )


def _partners(rows: pd.DataFrame, of: str) -> list[float]:
    """For every head of a column, with how many others it makes a pair above a guess."""
    return (rows["value"] > GUESS).groupby(rows[of]).sum().astype(float).tolist()


def _each(
    found: dict[str, list[pd.DataFrame]], measure: Callable[[pd.DataFrame], float]
) -> dict[str, list[float]]:
    return {through: [measure(rows) for rows in networks] for through, networks in found.items()}


def _rank(rows: pd.DataFrame) -> float:
    """Place at the start, 1 the strongest, of the pair that works best at the end."""
    best = rows["start"].to_numpy()[int(rows["accuracy"].to_numpy().argmax())]
    return float(1 + (rows["start"] > best).sum())


def _excess(rows: pd.DataFrame) -> float:
    """Composition at the start of the pair that works best at the end, less the mean pair's."""
    best = rows["start"].to_numpy()[int(rows["accuracy"].to_numpy().argmax())]
    return float(best - rows["start"].mean())


def _told(values: dict[str, list[float]], form: Callable[[float], str]) -> str:
    return ", ".join(over_seeds(found, form) for found in values.values())


def _at_end(rows: pd.DataFrame) -> pd.Series:
    return rows.sort_values("sequences").iloc[-1]
