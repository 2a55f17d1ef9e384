"""Claims of the paper: judged network by network, and told in `claims.csv` and `README.md`."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from ih_interp.analysis.dynamics.emergence import LEARNED, Crossing, learned
from ih_interp.plots._style import short_count

FINDINGS = pd.read_csv(
    Path(__file__).with_name("findings.csv"), dtype=str, keep_default_na=False
).set_index(["figure", "rule"])
"""The paper's findings by figure and by the rule that tells whether a network shows one.

Columns: `claim`; `paper`, its numbers; `ours`, a format string of `Measured` names, in which
`over_seeds` writes each value and each element of a list; `varies`, "yes" or "no", as in `Claim`.
"""

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
Measured: TypeAlias = Mapping[str, Any]  # numbers and times (`Crossing`) of one network, by name
Rule: TypeAlias = Callable[[Measured], object]  # whether one network shows a finding


def judge(figure: str, networks: Sequence[Measured], rules: Mapping[str, Rule]) -> list[Claim]:
    """Return one claim per rule; ValueError without networks: all rules would hold.

    Rules about numbers that networks lack, as of a split that no task has, are left out.
    """
    if not networks:
        raise ValueError(f"Figure {figure}: expected at least one network to judge, got none.")
    words = {name: _Words([network[name] for network in networks]) for name in networks[0]}
    claims: list[Claim] = []
    for name, holds in rules.items():
        finding: Any = FINDINGS.loc[(figure, name)]
        claim, paper, ours, varies = finding
        if {field for _, field, *_ in Formatter().parse(ours) if field} <= words.keys():
            held = sum(bool(holds(network)) for network in networks)
            ours = ours.format_map(words)
            claims.append(Claim(figure, claim, paper, ours, held, len(networks), varies == "yes"))
    return claims


def by_rules(figure: str, measure: Callable[[pd.DataFrame], Measured], **rules: Rule) -> Judging:
    """Return the function that judges a figure's table; `measure` takes one network's rows."""
    return lambda table: judge(figure, [measure(rows) for rows in by_seed(table)], rules)


class _Words(list[Any]):
    """One value per network, written by `over_seeds` in a format string."""

    def __format__(self, spec: str) -> str:
        if isinstance(self[0], list):
            return "; ".join(over_seeds(values, spec) for values in zip(*self, strict=True))
        return over_seeds(self, spec)


def over_seeds(values: Sequence[float] | Sequence[int] | Sequence[Crossing], spec: str = "") -> str:
    """Return the median over networks and, of several, the range; NaN is counted apart.

    `spec` is a format such as ".2f"; by default counts are written short. Times may be `Crossing`s:
    those not observed are "never".

    >>> over_seeds([310e3, 250e3, 400e3])
    '310k (250k to 400k)'
    >>> over_seeds([0.126, float("nan")], ".2f")
    '0.13; none in 1 of 2'
    """
    numbers = [when(value) if isinstance(value, Crossing) else float(value) for value in values]
    known = [number for number in numbers if not math.isnan(number)]
    if not known:
        return "none"
    median, low, high = (
        format(number, spec) if spec else short_count(number)
        for number in (float(np.median(known)), min(known), max(known))
    )
    told = median if low == high else f"{median} ({low} to {high})"
    missing = len(numbers) - len(known)
    return f"{told}; none in {missing} of {len(numbers)}" if missing else told


def by_seed(table: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the rows of each network, seeds ascending."""
    return [rows for _, rows in table.groupby("seed")]


def curves(network: pd.DataFrame, by: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return sequences and losses of each of a network's curves, by the column `by`."""
    rows = network.sort_values("sequences", kind="stable")
    return {
        str(name): (curve["sequences"].to_numpy(dtype=float), curve["loss"].to_numpy(dtype=float))
        for name, curve in rows.groupby(by, sort=False, dropna=False)
    }


def times_of(network: pd.DataFrame, by: str, *, level: float = LEARNED) -> dict[str, Crossing]:
    """Return when each of a network's losses falls below a level, by the column `by`."""
    return {name: learned(*curve, level=level) for name, curve in curves(network, by).items()}


def outlasts(slow: Crossing, fast: Crossing, *, factor: float | int = 1) -> bool:
    """Return whether a time is more than `factor` times another, as far as the runs show.

    For a slow run that has not learned, its length counts; a fast one that has not gives False.

    >>> outlasts(Crossing(384e3, False), Crossing(200e3, True), factor=2)  # 1.92 times or more
    False
    """
    return fast.observed and slow.time > factor * fast.time


def ascend(times: Sequence[Crossing]) -> bool:
    """Return whether each is later than the one before; only the last may be never."""
    return all(outlasts(late, early) for early, late in pairwise(times))


def when(crossing: Crossing) -> float:
    """Return a time as a number, infinity if not observed: to sort and write, not to judge."""
    return crossing.time if crossing.observed else math.inf


def correlation(x: Sequence[float] | pd.Series, y: Sequence[float] | pd.Series) -> float:
    """Return Pearson's r, in [-1, 1], 0 for unrelated numbers; NaN where either is constant."""
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(xs) < 2 or np.ptp(xs) == 0 or np.ptp(ys) == 0:
        return float("nan")
    return float(np.corrcoef(xs, ys)[0, 1])


def spearman(x: pd.Series, y: pd.Series) -> float:
    """Return Spearman's rank correlation, in [-1, 1]; NaN where either is constant."""
    return correlation(x.rank(), y.rank())


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
    tables = [f"Runs: `{runs}`\n\n{_markdown(t)}" for runs, t in _read(folder).groupby(RUNS)]
    path.write_text(replace_tables(text, tables))
    return path


def replace_tables(
    text: str, tables: Sequence[str], *, between: tuple[str, str] = (BEGIN, END)
) -> str:
    """Return the text with these tables between two lines, where it has both."""
    before, begin, rest = text.partition(between[0])
    _, end, after = rest.partition(between[1])
    if not (begin and end):
        return text
    return "\n\n".join([f"{before}{begin}", *tables, f"{end}{after}"])


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
