"""`claims.csv`: what the paper found, what these runs found, and whether it is the same."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ih_interp.paper.study import Claim

FILE = "claims.csv"
COLUMNS = ["figure", "claim", "paper", "ours", "networks", "holds", "varies in the paper"]
RUNS = "runs"  # the column of the file that says of which folder of runs a claim is


def claims_table(claims: Sequence[Claim]) -> pd.DataFrame:
    """One row a claim; `networks` is in how many of them it holds, as "3 of 3"."""
    return pd.DataFrame(
        [
            (
                claim.figure,
                claim.claim,
                claim.paper,
                claim.ours,
                f"{claim.held} of {claim.of}",
                claim.verdict,
                "yes" if claim.varies else "no",
            )
            for claim in claims
        ],
        columns=COLUMNS,
    )


def merge_claims(folder: Path, claims: Sequence[Claim], *, drawn: Sequence[str], runs: str) -> Path:
    """Write the claims of the figures just drawn; those of other figures in the folder stay.

    `runs` names what the figures were drawn from, as "paper-omniglot_features".
    """
    path = folder / FILE
    table = claims_table(claims).assign(**{RUNS: runs})
    if path.is_file():
        before = pd.read_csv(path, dtype=str, keep_default_na=False)
        if list(before.columns) != [*COLUMNS, RUNS]:
            raise ValueError(
                f"{path} is no table of claims: its columns are {', '.join(before.columns)}. "
                "Move it away, or draw into another folder."
            )
        table = pd.concat([table, before[~before["figure"].isin(drawn)]], ignore_index=True)
    table = table.sort_values("figure", key=lambda names: names.map(_place), kind="stable")
    table.to_csv(path, index=False)
    return path


def _place(name: str) -> tuple[bool, int, str]:
    """Figures in order, then tables, then what is not the paper's."""
    number = "".join(letter for letter in name if letter.isdigit())
    return name.startswith("table") or not number, int(number or 999), name


def claims_markdown(folder: Path) -> str:
    """The claims of a folder of figures as a table for a README.

    Raises ValueError where the figures were drawn from runs of several presets or features.
    """
    table = pd.read_csv(folder / FILE, dtype=str, keep_default_na=False)
    if table[RUNS].nunique() > 1:
        several = ", ".join(sorted(set(table[RUNS])))
        raise ValueError(f"{folder} has figures of {several}; draw each into a folder of its own.")
    lines = ["| figure | claim | paper | here | networks | holds |", "|---|---|---|---|---|---|"]
    for row in table[COLUMNS].itertuples(index=False):
        figure, claim, paper, ours, networks, holds, varies = map(str, row)
        verdict = "**no**" if holds == "no" else holds
        if varies == "yes":
            verdict += ", varies"
        lines.append(f"| {figure} | {claim} | {paper} | {ours} | {networks} | {verdict} |")
    return "\n".join(lines)
