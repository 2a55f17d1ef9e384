"""Tables 2 and 3: mistakes of the strongest head alone that another head corrects."""

from functools import partial

import pandas as pd

from ih_interp.analysis.ablation.single_heads import mistakes_corrected
from ih_interp.paper.claims import Claim, Judging
from ih_interp.paper.drawing import networks_beside
from ih_interp.paper.judging import Measured, Rule, by_seed, judge
from ih_interp.paper.study import Figure, Study
from ih_interp.plots import plot_corrected


def corrected_table(study: Study, *, perfect_match: bool) -> pd.DataFrame:
    """Return the strongest head's mistakes that another corrects: `seed`, `run`, `base` ...

    The columns of `mistakes_corrected`; `value` is a share, in [0, 1]: the head's `accuracy` if
    mistakes were independent.
    """
    return study.each_network(
        lambda model, batch: mistakes_corrected(model, batch, perfect_match=perfect_match)
    )


def _by_rules(figure: str, *rules: Rule) -> Judging:
    """Return the function that judges networks whose strongest head alone makes mistakes.

    The claims count the other networks in words.
    """

    def claims(table: pd.DataFrame) -> list[Claim]:
        networks = [_measure(rows) for rows in by_seed(table[table["mistakes"] > 0])]
        if not networks:
            return []
        others = table["seed"].nunique() - len(networks)
        words = {0: "", 1: "; 1 network makes no mistake"}
        told = words.get(others, f"; {others} networks make no mistake")
        return [c._replace(ours=c.ours + told) for c in judge(figure, networks, *rules)]

    return claims


corrected_claims = _by_rules(
    "table 2",
    Rule(
        "heads complement each other: one of the others alone corrects more than half of the "
        "strongest's mistakes",
        "72%",
        "{best:.0%}",
        lambda n: n["best"] > 0.5,
    ),
    Rule(
        "they fail on the same sequences more than independence has it: most of the 7 correct "
        "fewer than their accuracy",
        "7",
        "{fewer}",
        lambda n: n["fewer"] > n["heads"] / 2,
    ),
)

perfect_claims = _by_rules(
    "table 3",
    Rule(
        "with a perfect match too, shares corrected differ from accuracies, as copying of "
        "some labels makes them: the interval of most of the 7 leaves the accuracy out; least "
        "and largest ratio of the two",
        "0.00, 1.04",
        "{least:.2f}, {largest:.2f}; {differ} of 7",
        lambda n: n["differ"] > n["heads"] / 2,
    ),
)


def _measure(rows: pd.DataFrame) -> Measured:
    share, accuracy = rows["value"], rows["accuracy"]
    return {
        "heads": len(rows),
        "best": float(share.max()),
        "fewer": float((share < accuracy).sum()),
        "least": float((share / accuracy).min()),
        "largest": float((share / accuracy).max()),
        "differ": float(((rows["low"] > accuracy) | (rows["high"] < accuracy)).sum()),
    }


def _figure(name: str, claims: Judging, *, perfect_match: bool) -> Figure:
    table = partial(corrected_table, perfect_match=perfect_match)
    return Figure(name, ("main",), table, networks_beside(plot_corrected), claims, (9.0, 3.8))


FIGURES = (
    _figure("table 2", corrected_claims, perfect_match=False),
    _figure("table 3", perfect_claims, perfect_match=True),
)
