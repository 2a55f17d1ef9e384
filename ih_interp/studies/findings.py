"""Findings of a study: its claims are judged over networks, and written beside its figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray
from numpy.typing import ArrayLike
from scipy import stats

from ih_interp.analysis.statistics import adjusted_for_discoveries, bootstrap, sign_flip_test
from ih_interp.paper.claims import README, replace_tables

FILE = "findings.csv"
BEGIN, END = "<!-- findings -->", "<!-- end of findings -->"
"""Lines of a README between which the tables of findings stand."""
PERMUTATIONS = 9_999
LIKELY = 0.05  # the adjusted p below which a claim is decided

HEADING = """# Studies beyond the paper, by `ih-interp study`

Each study has a table with a row per run (csv), a summary with intervals, and a figure. Claims were
written before the runs. One is decided where its p, two-sided and adjusted for all claims of its
study (Benjamini and Hochberg), is below 0.05, and open otherwise. Of eight networks the least p
before adjustment is 0.008.
"""


class Tested(NamedTuple):
    """A claim, what the data say, and how often they would if there were no effect."""

    claim: str
    known: str
    """What was known before, with its source, or "nothing"."""
    found: str
    agrees: bool
    """Whether the effect has the claimed sign."""
    p: float
    """Two-sided, not adjusted; NaN where the data cannot tell."""


class Finding(NamedTuple):
    """A claim and its verdict."""

    claim: str
    known: str
    found: str
    p: float
    """Two-sided, adjusted for all claims of the study."""
    verdict: str
    """ "yes", "no" or "open"; "not judged" where the runs can learn nothing."""


def above_zero(
    claim: str,
    effects: ArrayLike,
    *,
    words: str,
    known: str = "nothing",
    units: str = "networks",
    spec: str = ".2f",
) -> Tested:
    """Test that effects, one per network, are above 0, by sign flips.

    `words` say what an effect is, and `{}` in them is its mean with a bootstrap interval over
    networks, or other `units`. Effects of NaN are left out, and counted in words; with fewer than
    two left nothing is tested.
    """
    given = np.asarray(effects, dtype=float)
    there = given[~np.isnan(given)]
    missing = f"; {len(given) - len(there)} without a number" if len(there) < len(given) else ""
    if len(there) < 2:
        return Tested(claim, known, f"not measured{missing}", False, np.nan)
    mean, low, high = (float(end) for end in bootstrap(there))
    told = f"{mean:{spec}} ({low:{spec}} to {high:{spec}}, {len(there)} {units}{missing})"
    p = float(sign_flip_test(there[:, None])[0])
    return Tested(claim, known, words.format(told), mean > 0, p)


def unlearned(*conditions: pd.DataFrame) -> str:
    """Return words on runs of these conditions that did not learn, if there are some."""
    observed = pd.concat([rows["observed"].astype(bool) for rows in conditions])
    if observed.all():
        return ""
    lost = f"{(~observed).sum()} of {len(observed)} runs"
    return f"; {lost} did not learn, and count with their length"


def flatness(values: Float[ndarray, "network condition"], *, seed: int = 0) -> float:
    """Return p of the hypothesis that networks are alike under all conditions, by permutation.

    The statistic is Friedman's: the variance of conditions' mean ranks, with ranks within each
    network, in which equal values tie. Values are shuffled among the conditions of each network;
    p = (1 + shuffles with at least that variance) / (1 + shuffles), NaN where a value is missing.
    """
    if values.size == 0 or np.isnan(values).any():
        return np.nan
    ranks = np.tile(stats.rankdata(values, axis=1), (PERMUTATIONS, 1, 1))
    shuffled = np.random.default_rng(seed).permuted(ranks, axis=2).mean(axis=1).var(axis=1)
    spread = ranks[0].mean(axis=0).var()
    return float(1 + (shuffled >= spread - 1e-12).sum()) / (1 + PERMUTATIONS)


def judge(tests: Sequence[Tested]) -> list[Finding]:
    """Return the verdicts of a study's tests, with p adjusted for their number."""
    adjusted = adjusted_for_discoveries([test.p for test in tests])
    return [
        Finding(test.claim, test.known, test.found, float(p), _verdict(test.agrees, float(p)))
        for test, p in zip(tests, adjusted, strict=True)
    ]


def _verdict(agrees: bool, p: float) -> str:
    if not p < LIKELY:
        return "open"
    return "yes" if agrees else "no"


def write_findings(folder: Path, study: str, findings: Sequence[Finding], *, command: str) -> None:
    """Write a study's findings into `findings.csv` and `README.md`; those of others stay.

    A `README.md` without the lines `BEGIN` and `END` stays as it is.
    """
    path = folder / FILE
    table = pd.DataFrame(findings, columns=Finding._fields)
    table.insert(0, "study", study)
    table.insert(1, "command", command)
    if path.is_file():
        before = read_findings(folder)
        table = pd.concat([before[before["study"] != study], table], ignore_index=True)
        table = table.sort_values("study", kind="stable")
    table.to_csv(path, index=False)
    readme = folder / README
    text = readme.read_text() if readme.is_file() else f"{HEADING}\n{BEGIN}\n{END}\n"
    tables = [_markdown(rows) for _, rows in table.groupby(["study", "command"])]
    readme.write_text(replace_tables(text, tables, between=(BEGIN, END)))


def read_findings(folder: Path) -> pd.DataFrame:
    """Return the findings of a folder: `study`, `command` and the fields of `Finding`."""
    return pd.read_csv(folder / FILE, converters={"claim": str, "known": str, "found": str})


def told(p: float) -> str:
    """Return an adjusted p in words."""
    return "not tested" if np.isnan(p) else f"{p:.2g}"


def _markdown(table: pd.DataFrame) -> str:
    study, command = table[["study", "command"]].iloc[0]
    rows = table.assign(p=table["p"].map(told))[[*Finding._fields]]
    title = f"### {study.capitalize()}\n\nBy `{command}`\n"
    head = ["| expected | known before | found | p, adjusted | holds |", "|---|---|---|---|---|"]
    return "\n".join([title, *head, *(f"| {' | '.join(row)} |" for row in rows.to_numpy())])
