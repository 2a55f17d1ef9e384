"""Tables 2 and 3: mistakes of the strongest head alone that another head corrects."""

from collections.abc import Callable
from functools import partial

import pandas as pd
from matplotlib.figure import Figure as Canvas

from ih_interp.analysis.ablation.single_heads import mistakes_corrected
from ih_interp.paper.study import Claim, Figure, Study, decimals, judged, over_seeds
from ih_interp.plots import plot_corrected
from ih_interp.plots.seeds import plot_each_network


def corrected_table(study: Study, *, perfect_match: bool) -> pd.DataFrame:
    """Mistakes of the strongest head alone that another corrects: `seed`, `run`, `base` ...

    The columns of `mistakes_corrected`; `value` is a share, in [0, 1]: the head's `accuracy` if
    mistakes were independent.
    """
    return study.each_network(
        lambda model, batch: mistakes_corrected(model, batch, perfect_match=perfect_match)
    )


def draw_corrected(table: pd.DataFrame, canvas: Canvas) -> None:
    """The first network large, the others small."""
    plot_each_network(table, canvas, plot_corrected)


def corrected_claims(table: pd.DataFrame) -> list[Claim]:
    """Other heads correct many mistakes, though fewer than if mistakes were independent."""
    networks, others = _with_mistakes(table)
    if not networks:
        return []
    best = [float(rows["value"].max()) for rows in networks]
    fewer = [float((rows["value"] < rows["accuracy"]).sum()) for rows in networks]
    return [
        judged(
            "table 2",
            "heads complement each other: one of the others alone corrects more than half of the "
            "strongest's mistakes",
            paper="72%",
            ours=over_seeds(best, _percent) + others,
            holds=[share > 0.5 for share in best],
        ),
        judged(
            "table 2",
            "they fail on the same sequences more than independence has it: most of the 7 correct "
            "fewer than their accuracy",
            paper="7",
            ours=over_seeds(fewer) + others,
            holds=[count > len(rows) / 2 for count, rows in zip(fewer, networks, strict=True)],
        ),
    ]


def perfect_claims(table: pd.DataFrame) -> list[Claim]:
    """With the match perfect, who corrects a mistake is no matter of how good a head is."""
    networks, others = _with_mistakes(table)
    if not networks:
        return []
    ratios = [rows["value"] / rows["accuracy"] for rows in networks]
    told = [
        float(((rows["low"] > rows["accuracy"]) | (rows["high"] < rows["accuracy"])).sum())
        for rows in networks
    ]
    ends: tuple[Callable[[pd.Series], float], ...] = (lambda x: x.min(), lambda x: x.max())
    return [
        judged(
            "table 3",
            "with a perfect match too, shares corrected differ from accuracies, as copying of "
            "some labels makes them: the interval of most of the 7 leaves the accuracy out; least "
            "and largest ratio of the two",
            paper="0.00, 1.04",
            ours=", ".join(over_seeds([end(r) for r in ratios], decimals(2)) for end in ends)
            + f"; {over_seeds(told)} of 7{others}",
            holds=[count > len(rows) / 2 for count, rows in zip(told, networks, strict=True)],
        )
    ]


def _with_mistakes(table: pd.DataFrame) -> tuple[list[pd.DataFrame], str]:
    """Networks whose strongest head makes mistakes alone, and words that count the others."""
    networks = [rows for _, rows in table[table["mistakes"] > 0].groupby("seed")]
    others = table["seed"].nunique() - len(networks)
    return networks, {0: "", 1: "; 1 network makes no mistake"}.get(
        others, f"; {others} networks make no mistake"
    )


def _percent(share: float) -> str:
    return f"{share:.0%}"


FIGURES = (
    Figure(
        "table 2",
        ("main",),
        partial(corrected_table, perfect_match=False),
        draw_corrected,
        corrected_claims,
        size=(9.0, 3.8),
    ),
    Figure(
        "table 3",
        ("main",),
        partial(corrected_table, perfect_match=True),
        draw_corrected,
        perfect_claims,
        size=(9.0, 3.8),
    ),
)
