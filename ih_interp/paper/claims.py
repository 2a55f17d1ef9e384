"""Claims of the paper beside what these runs show, as a table in `claims.csv` and `README.md`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import pandas as pd

FILE = "claims.csv"
COLUMNS = ["figure", "claim", "paper", "ours", "networks", "holds", "varies in the paper"]
RUNS = "runs"  # the column of the file that names the folder of runs behind a claim

README = "README.md"
BEGIN, END = "<!-- claims -->", "<!-- end of claims -->"
"""Lines of a README between which the table of claims stands."""

HEADING = """# Figures drawn by `ih-interp reproduce`

Every figure is here as pdf and png with its numbers as csv; the table says what the paper found and
what these runs found (medians over networks, ranges in brackets).
"""


class Claim(NamedTuple):
    """A finding of the paper, its numbers here, and in how many networks it holds."""

    figure: str
    claim: str
    paper: str
    ours: str
    held: int
    """The number of networks in which it holds."""
    of: int
    varies: bool = False
    """Whether it varies from network to network in the paper too; most of them suffice then."""
    judged: bool = True
    """Whether these runs can tell; those of the smoke preset learn nothing."""

    @property
    def verdict(self) -> str:
        """Return "yes", "no" or "not judged"."""
        return ("yes" if self.holds else "no") if self.judged else "not judged"

    @property
    def holds(self) -> bool:
        """Return whether it holds in every network, or in most if the paper's own vary."""
        return self.held > self.of / 2 if self.varies else self.held == self.of


Judging: TypeAlias = Callable[[pd.DataFrame], list[Claim]]  # what a figure's table shows


def claims_table(claims: Sequence[Claim]) -> pd.DataFrame:
    """Return one row per claim; `networks` says in how many of them it holds, as "3 of 3"."""
    rows = [
        (*claim[:4], f"{claim.held} of {claim.of}", claim.verdict, "yes" if claim.varies else "no")
        for claim in claims
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def merge_claims(folder: Path, claims: Sequence[Claim], *, drawn: Sequence[str], runs: str) -> Path:
    """Write the claims of the figures just drawn; those of other figures in the folder stay.

    `runs` names what the figures were drawn from, as "paper-omniglot_features". Raises ValueError
    where the folder has another file of that name.
    """
    path = folder / FILE
    table = claims_table(claims).assign(**{RUNS: runs})
    if path.is_file():
        before = _read(folder)
        table = pd.concat([table, before[~before["figure"].isin(drawn)]], ignore_index=True)
    table = table.sort_values("figure", key=lambda names: names.map(_place), kind="stable")
    table.to_csv(path, index=False)
    return path


def write_readme(folder: Path) -> Path:
    """Write the claims of a folder of figures into its `README.md`, a table per set of runs.

    A file that is there keeps its words: the tables replace what stands between the lines `BEGIN`
    and `END`, and a file without these lines stays as it is.
    """
    path = folder / README
    text = path.read_text() if path.is_file() else f"{HEADING}\n{BEGIN}\n{END}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        tables = [f"Runs: `{runs}`\n\n{_markdown(t)}" for runs, t in _read(folder).groupby(RUNS)]
        path.write_text("\n\n".join([f"{before}{BEGIN}", *tables, f"{END}{after}"]))
    return path


def _read(folder: Path) -> pd.DataFrame:
    path = folder / FILE
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if list(table.columns) != [*COLUMNS, RUNS]:
        raise ValueError(
            f"{path}: expected a table of claims, got the columns {', '.join(table.columns)}. "
            "Move it away, or draw into another folder."
        )
    return table


def _markdown(table: pd.DataFrame) -> str:
    varies = table[COLUMNS[-1]].map({"yes": ", varies", "no": ""})
    rows = table[COLUMNS[:-1]].assign(holds=table["holds"].replace("no", "**no**") + varies)
    lines = ["| figure | claim | paper | here | networks | holds |", "|---|---|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows.to_numpy())])


def _place(name: str) -> tuple[bool, int, str]:
    """Return the place of a figure: figures in order, then tables, then what is not the paper's."""
    number = "".join(letter for letter in name if letter.isdigit())
    return name.startswith("table") or not number, int(number or 999), name
