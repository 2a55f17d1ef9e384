"""The cost of heads at the last checkpoint, alone and together, and whether costs add up."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd

from ih_interp.analysis.ablation.additivity import additivity_test
from ih_interp.analysis.ablation.coalitions import set_redundancy
from ih_interp.analysis.ablation.single_heads import ablate_each_head
from ih_interp.page.subject import Subject
from ih_interp.types import Head

MOST_HEADS, MOST_ADDED = 64, 8
"""Heads of which each is ablated alone, and of which all subsets are."""

N_RESAMPLES = 200


class Ablations(NamedTuple):
    """The losses with heads ablated, one row per head, in nats."""

    heads: pd.DataFrame
    """Columns `head`, `without` (with `low`, `high`), `cost` (without it - with all), `only`."""
    everything: float
    """The loss with every head on."""
    nothing: float
    """The loss with all of these heads ablated."""


def heads_of(subject: Subject) -> list[str]:
    """Return every head of the model or, of more than 64, those of the last layer."""
    config = subject.run.config.model
    few = config.n_layers * config.n_heads <= MOST_HEADS
    layers = range(config.n_layers) if few else [config.n_layers - 1]
    return [str(Head(*place)) for place in product(layers, range(config.n_heads))]


def measured_ablations(subject: Subject) -> Ablations:
    """Return the loss without each head, and with it alone, as `ablate_each_head` measures them."""
    return _ablations(subject, heads_of(subject))


def _ablations(subject: Subject, heads: Sequence[str]) -> Ablations:
    with subject.at_end() as model:
        table = ablate_each_head(model, subject.batch, heads, metrics="loss")
    kept = {name: rows.set_index("head") for name, rows in table.groupby("kept", sort=False)}
    ends = {name: float(kept[name]["value"].iloc[0]) for name in ("all", "none")}
    without = kept["without"]
    found = without[["value", "low", "high"]].rename(columns={"value": "without"})
    found["cost"] = found["without"] - ends["all"]
    found["only"] = kept["only"]["value"]
    return Ablations(found.rename_axis("head").reset_index(), ends["all"], ends["none"])


def set_costs(subject: Subject, sets: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Return what sets of heads cost together, beside the sum of what each costs alone.

    Columns `set`, `heads`, `joint` (loss with all of them ablated - with none, nats), `sum` (of the
    costs of each alone), `redundancy` (`set_redundancy`: 1 - sum / joint). Sets of one head are
    left out.
    """
    rows: list[dict[str, object]] = []
    for name, heads in sets.items():
        if len(heads) < 2:
            continue
        found = _ablations(subject, heads)
        costs, joint = found.heads["cost"].to_numpy(), found.nothing - found.everything
        redundancy = float(set_redundancy(costs, np.asarray(joint)).value)
        row = {"set": name, "heads": " ".join(heads), "joint": joint, "sum": float(costs.sum())}
        rows.append({**row, "redundancy": redundancy})
    return pd.DataFrame(rows, columns=["set", "heads", "joint", "sum", "redundancy"])


def measured_additivity(subject: Subject, heads: Sequence[str]) -> pd.DataFrame:
    """Return the numbers of `additivity_test` over these heads, all of their subsets."""
    metrics = ("logit_difference", "loss") if subject.swaps else ("probability", "loss")
    with subject.at_end() as model:
        report = additivity_test(
            model, subject.batch, heads, metrics=metrics, n_resamples=N_RESAMPLES
        )
    return report.numbers


def costliest_of_last_layer(subject: Subject, ablations: Ablations) -> list[str]:
    """Return heads of the last layer, at most eight, those that cost most alone."""
    last = f"L{subject.run.config.model.n_layers - 1}H"
    table = ablations.heads
    rows = table[table["head"].str.startswith(last)].sort_values("cost", ascending=False)
    return sorted(rows["head"].iloc[:MOST_ADDED], key=Head.parse)
