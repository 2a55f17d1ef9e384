"""`claims.csv`: what the paper found, what these runs found, and whether it is the same."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ih_interp.paper.study import Claim

FILE = "claims.csv"
COLUMNS = ["figure", "claim", "paper", "ours", "networks", "holds", "varies in the paper"]


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
                "yes" if claim.holds else "no",
                "yes" if claim.varies else "no",
            )
            for claim in claims
        ],
        columns=COLUMNS,
    )


def merge_claims(folder: Path, claims: Sequence[Claim]) -> Path:
    """Write the claims beside the figures; those of other figures written earlier stay."""
    path = folder / FILE
    table = claims_table(claims)
    if path.is_file():
        before = pd.read_csv(path, dtype=str, keep_default_na=False)
        if list(before.columns) != COLUMNS:
            raise ValueError(
                f"{path} is no table of claims: its columns are {', '.join(before.columns)}. "
                "Move it away, or draw into another folder."
            )
        others = before[~before["figure"].isin(table["figure"])]
        table = pd.concat([table, others], ignore_index=True)
    table = table.sort_values("figure", key=lambda names: names.map(_place), kind="stable")
    table.to_csv(path, index=False)
    return path


def _place(name: str) -> tuple[bool, int, str]:
    """Figures in order, then tables, then what is not the paper's."""
    number = "".join(letter for letter in name if letter.isdigit())
    return name.startswith("table") or not number, int(number or 999), name


def claims_markdown(folder: Path) -> str:
    """The claims of a folder of figures as a table for a README."""
    table = pd.read_csv(folder / FILE, dtype=str, keep_default_na=False)
    lines = ["| figure | claim | paper | here | networks | holds |", "|---|---|---|---|---|---|"]
    for row in table.itertuples(index=False):
        figure, claim, paper, ours, networks, holds, varies = map(str, row)
        verdict = "**no**" if holds == "no" else "yes"
        if varies == "yes":
            verdict += ", varies"
        lines.append(f"| {figure} | {claim} | {paper} | {ours} | {networks} | {verdict} |")
    return "\n".join(lines)
