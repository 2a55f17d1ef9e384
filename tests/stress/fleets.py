"""Trains fleets of three runs, and each of their runs alone, and compares all that they leave.

python tests/stress/fleets.py --updates 500 [--only "graft in" "graft out"]

Losses at every update, weights at the end and metrics: compiled, evaluation and all, at the paper's
model, batch and exemplars. The runs of a fleet differ in their initial weights, their data, their
learning rate, and the heads, strengths, schedules and donors of their clamps. Combinations cover
every kind of clamp and of schedule. Each takes three compilations, which is two minutes where they
are new.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import ih_interp as ih
from ih_interp import clamps
from ih_interp.clamps import AbstractClamp
from ih_interp.config import Grid, RunConfig, Seeds
from ih_interp.runs import create_run
from ih_interp.tasks.exemplars import Exemplars, GaussianSource
from ih_interp.training import evaluating as evaluation
from ih_interp.training._signals import deferred_interrupts
from ih_interp.training.fleet import Fleet, trace_key
from ih_interp.training.loop import measure
from ih_interp.training.train import one_thread

PLACES = (1, 2, 3)
"""The runs of a fleet, by which they differ."""


def combinations(donors: Path) -> dict[str, Callable[[int], Sequence[AbstractClamp]]]:
    """Clamps of the run at a place, by the combination's name; donors have a checkpoint at 20."""
    return {
        "patterns": lambda place: (
            clamps.PreviousTokenAttention(
                heads=[f"L0H{place}"],
                strength=0.3 + place / 10,
                schedule=clamps.ramp(10 * place, 200),
            ),
            clamps.InductionAttention(
                heads=[f"L1H{place}"],
                strength=0.9 - place / 10,
                schedule=clamps.from_level("loss", below=1.6 - place / 20),
            ),
        ),
        "forbidden and matched": lambda place: (
            clamps.ForbidPreviousToken(heads=[f"L0H{place}", f"L0H{place + 1}"]),
            clamps.SimilarityAttention(
                heads=[f"L1H{place + 2}"], schedule=clamps.during(20 * place, 400)
            ),
        ),
        "scores and ablation": lambda place: (
            clamps.AttentionTemperature(heads=[f"L0H{place}"], temperature=0.6 + place / 4),
            clamps.AttendLabelsOnly(heads=[f"L1H{place}"]),
            clamps.AblateHeads(heads=[f"L1H{place + 3}"], schedule=clamps.pulses(40 + place)),
        ),
        "graft in": lambda place: (
            clamps.GraftIn(run=str(donors / f"run-{place}"), step=20, layer=0),
        ),
        "graft out": lambda place: (
            clamps.GraftOut(run=str(donors / f"run-{place}"), step=20, layer=0),
        ),
        "preserved": lambda place: (
            clamps.Preserve(what=["values", "queries"]),
            clamps.AblateEmbedding(schedule=clamps.during(10 * place, 30 * place)),
        ),
        "frozen": lambda place: (
            clamps.Freeze(
                heads=[f"L0H{place}"], parts="qk", schedule=clamps.during(10 * place, 300)
            ),
        ),
        "a alone": lambda _: clamps.a_alone(),
        "b alone": lambda place: clamps.b_alone(f"L1H{place}"),
        "c alone": lambda place: clamps.c_alone(f"L1H{place}"),
    }


def config(place: int, chosen: Sequence[AbstractClamp], updates: int) -> RunConfig:
    """The paper's run, with what differs at this place; it ends after so many updates."""
    return RunConfig(
        name=f"run-{place}",
        seeds=Seeds(init=place, data=place),
        clamps=[clamp.pinned() for clamp in chosen],
        optimiser=ih.Adam(learning_rate=1e-4 * place),
        sequences=32 * updates,
        evaluations=Grid(every=32 * 25),
        evaluation_size=100,
        checkpoints=Grid(),
    )


class Trained(NamedTuple):
    """What one run left."""

    losses: torch.Tensor
    """`[update]`."""
    weights: bytes
    """At the end."""
    rows: list[dict[str, Any]]
    """Of its metrics."""


def trained(folder: Path, configs: Sequence[RunConfig], updates: int) -> list[Trained]:
    """The runs of one compiled fleet, in order."""
    assert len(set(map(trace_key, configs))) == 1
    task = ih.FewShotTask(Exemplars.from_source(GaussianSource()), configs[0].task)
    fleet = Fleet(
        [create_run(folder / each.name, each, task, engine="compiled") for each in configs],
        compiled=True,
    )
    losses: list[torch.Tensor] = []
    with deferred_interrupts() as interrupted:
        for _ in range(updates):
            measure(fleet, None, interrupted)
            losses.append(fleet.advance())
    for run in fleet.runs:
        run.writer.settle()
    table = torch.stack(losses)
    return [
        Trained(
            table[:, place],
            b"".join(tensor.numpy().tobytes() for tensor in fleet.weights(place).values()),
            run.rows,
        )
        for place, run in enumerate(fleet.runs)
    ]


def compared(root: Path, clamps_of: Callable[[int], Sequence[AbstractClamp]], updates: int) -> str:
    """In words, how a fleet and its runs alone differ; empty where they are the same to the bit."""
    configs = [config(place, clamps_of(place), updates) for place in PLACES]
    together = trained(root / "together", configs, updates)
    found: list[str] = []
    for each, one in zip(configs, together, strict=True):
        (other,) = trained(root / "alone", [each], updates)
        if not torch.equal(one.losses, other.losses):
            difference = float((one.losses - other.losses).abs().max())
            found.append(f"{each.name}'s losses differ by up to {difference:.0e}")
        if one.weights != other.weights:
            found.append(f"{each.name}'s weights differ")
        if one.rows != other.rows or not one.rows:
            found.append(f"{each.name}'s metrics differ")
        if not bool(one.losses.isfinite().all()):
            found.append(f"{each.name}'s losses are not finite")
    return ", ".join(found)


def main() -> int:
    """Exit status 1 where a run in a fleet is not the run alone, to the bit."""
    names = list(combinations(Path()))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    given = parser.parse_args()
    warnings.filterwarnings("error", message=".*slower")  # eager after all
    warnings.filterwarnings("ignore", category=clamps.ClampUnchangedWarning)
    evaluation.WORTH_COMPILING = 0
    differing = 0
    with one_thread(), tempfile.TemporaryDirectory() as name:
        root = Path(name)
        donors = [
            config(place, [clamps.AblateHeads(heads=[f"L0H{place}"])], 20) for place in PLACES
        ]
        ih.train(donors, root / "donors", engine="eager", workers=1, progress=False)
        for what in given.only:
            found = compared(root / what, combinations(root / "donors")[what], given.updates)
            differing += bool(found)
            told = found or f"{len(PLACES)} runs are as alone, {given.updates} losses and all"
            sys.stdout.write(f"{what}: {told}\n")
            sys.stdout.flush()
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
