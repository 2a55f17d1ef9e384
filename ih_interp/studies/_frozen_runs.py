"""The runs of the study "frozen weights", and their times in those of the network left free.

A weight is one of Q, K, V and O of all heads of a layer, "L0 Q" to "L1 O"; layers count from 0. The
circuit has four stages, each with two weights that carry it and a clamp that makes it perfect. The
clamps are nested: "layer 1" contains "previous token", and under "match" neither is needed.
"""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from ih_interp.analysis.heads.attention import induction_strength, previous_token_score
from ih_interp.clamps import AbstractClamp, Freeze, during
from ih_interp.clamps.schedules import ALWAYS as ALWAYS_ON
from ih_interp.config import Grid, RunConfig
from ih_interp.runs import Run
from ih_interp.studies.study import CLAMPS, Scale, Trial, time_rows, training_curve

WEIGHTS = tuple(f"L{layer} {part}" for layer in (0, 1) for part in "QKVO")
"""Q, K, V and O of every head of layer 0, then of layer 1."""


class CircuitStage(NamedTuple):
    """A stage of the circuit: what carries it, and the clamp that makes it perfect."""

    weights: tuple[str, str]
    clamp: AbstractClamp


STAGES: Mapping[str, CircuitStage] = {
    "previous token": CircuitStage(("L0 Q", "L0 K"), CLAMPS["previous token"](ALWAYS_ON)),
    "layer 1": CircuitStage(("L0 V", "L0 O"), CLAMPS["layer 1"](ALWAYS_ON)),
    "match": CircuitStage(("L1 Q", "L1 K"), CLAMPS["match"](ALWAYS_ON)),
    "copy": CircuitStage(("L1 V", "L1 O"), CLAMPS["copy"](ALWAYS_ON)),
}
"""By the name of the clamp, in the order in which information passes."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "all Q and K": ("L0 Q", "L0 K", "L1 Q", "L1 K"),
    "all V and O": ("L0 V", "L0 O", "L1 V", "L1 O"),
    "all of layer 0": WEIGHTS[:4],
    "all of layer 1": WEIGHTS[4:],
}
"""Four weights that are frozen together, by their name."""

NOTHING, ALWAYS = "nothing", float("inf")
"""What is frozen or clamped in free runs, and the time of a thaw that never comes."""

THAWED = (0.5, 1.0)  # times at which stages are thawed, in those of the network with nothing frozen
LIMIT = 2.0  # free times after which a run that has not learned ends, counted from the thaw
BY = ["kind", "what", "until"]


def joined(weights: tuple[str, ...]) -> str:
    """Return the name of weights that are frozen together: a group's, or "L0 Q + L0 K"."""
    names = {group: name for name, group in GROUPS.items()}
    return names.get(weights, " + ".join(weights))


def parameters(weights: Iterable[str]) -> tuple[str, ...]:
    """Return the model's names of weights: "blocks.0.attn.W_Q" for "L0 Q"."""
    return tuple(f"blocks.{weight[1]}.attn.W_{weight[-1]}" for weight in weights)


def free_runs(scale: Scale, _: pd.DataFrame) -> list[Trial]:
    """Return one run per network with nothing frozen."""
    condition = {"kind": "free", "what": NOTHING, "until": 0.0}
    often = Grid(every=scale.every)
    return [Trial(condition, scale.run("free", seed, checkpoints=often)) for seed in scale.seeds]


def held_runs(scale: Scale, table: pd.DataFrame) -> list[Trial]:
    """Return the runs under freezes and clamps, at most `LIMIT` free times long after the thaw.

    Columns: `kind` ("frozen" or "clamped"), `what` (names of weights, or a key of `STAGES`) and
    `until`, the free times after which weights are thawed (`ALWAYS`, infinity: never).
    """
    free = table[table["kind"] == "free"].set_index("seed")["time"]
    singles = [(weight,) for weight in WEIGHTS]
    throughout = [*singles, *combinations(WEIGHTS, 2), *GROUPS.values()]
    frozen = [(weights, ALWAYS) for weights in throughout]
    frozen += [(stage.weights, until) for stage in STAGES.values() for until in THAWED]
    trials: list[Trial] = []
    for seed in scale.seeds:
        time = float(free[seed])
        trials += [_frozen(scale, seed, time, *which) for which in frozen]
        trials += [_clamped(scale, seed, time, name) for name in STAGES]
    return trials


def _frozen(scale: Scale, seed: int, free: float, weights: tuple[str, ...], until: float) -> Trial:
    clamp, name, after = Freeze(parameters=parameters(weights)), joined(weights), 0.0
    label = f"frozen-{name.replace(' ', '')}"
    if until < ALWAYS:
        schedule = during(0, max(1, round(until * free / scale.batch_size)))
        clamp, label, after = clamp.replace(schedule=schedule), f"{label}-until-{until}", until
    condition = {"kind": "frozen", "what": name, "until": until}
    return Trial(condition, _run(scale, label, seed, clamp, (after + LIMIT) * free))


def _clamped(scale: Scale, seed: int, free: float, name: str) -> Trial:
    condition = {"kind": "clamped", "what": name, "until": ALWAYS}
    label = f"clamped-{name.replace(' ', '-')}"
    return Trial(condition, _run(scale, label, seed, STAGES[name].clamp, LIMIT * free))


def _run(scale: Scale, label: str, seed: int, clamp: AbstractClamp, sequences: float) -> RunConfig:
    whole = scale.batch_size * int(np.ceil(sequences / scale.batch_size))
    own = {"sequences": whole, "checkpoints": Grid(every=scale.every)}
    return scale.run(label, seed, [clamp], **own)


def scored_rows(trial: Trial, run: Run) -> list[dict[str, Any]]:
    """Return a run's row of `time_rows`, and what heads do once it has learned, without clamps.

    Columns: `induction`, the largest `induction_strength` of a head of layer 1, in [-1, 1], and
    `previous_token`, the largest `previous_token_score` at labels of one of layer 0, in [0, 1];
    over as many training sequences as an evaluation has.
    """
    model = run.model(int(training_curve(run)["step"].max()))
    generator = torch.Generator().manual_seed(run.config.seeds.evaluation)
    batch = run.task.sample(run.task.splits[0], run.config.evaluation_size, generator=generator)
    induction = float(induction_strength(model, batch)[-1].max())
    previous = float(previous_token_score(model, batch, rows="labels")[0].max())
    (row,) = time_rows(trial, run)
    return [{**row, "induction": induction, "previous_token": previous}]


def relative(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with times in those of the same network with nothing frozen.

    New columns: `time` so divided, and `free_induction`, the induction strength of that network.
    Networks that do not learn even with nothing frozen have no unit, and are left out.
    """
    free = table[(table["kind"] == "free") & table["observed"].astype(bool)]
    units = free[["seed", "time", "induction"]].set_axis(
        ["seed", "unit", "free_induction"], axis="columns"
    )
    times = table.merge(units, on="seed", validate="many_to_one")
    return times.assign(time=times["time"] / times["unit"]).drop(columns="unit")


def of(times: pd.DataFrame, what: str, until: float = ALWAYS) -> pd.DataFrame:
    """Return one condition's rows, by seed."""
    rows = times[(times["what"] == what) & (times["until"] == until)]
    return rows.set_index("seed").sort_index()
