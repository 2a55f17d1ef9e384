"""Trains fleets of three runs, and each of their runs alone, and compares losses at every update.

python tests/fleets.py --updates 500 [--only grafts ...]

Compiled, at the paper's model, batch and exemplars; the runs of a fleet differ in their initial
weights, their data, their learning rate, and the heads, strengths and schedules of their clamps.
Combinations cover every kind of clamp and of schedule. Each takes two compilations, which is one to
two minutes where they are new.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

import ih_interp as ih
from ih_interp import clamps
from ih_interp.clamps import AbstractClamp
from ih_interp.config import AdamConfig, Grid, RunConfig, Seeds
from ih_interp.exemplars import Exemplars, GaussianSource
from ih_interp.runs import create_run
from ih_interp.training.fleet import Fleet, fleets
from ih_interp.training.loop import measure
from ih_interp.training.signals import deferred_interrupts
from ih_interp.training.train import one_thread

PLACES = (1, 2, 3)
"""The runs of a fleet, by which they differ."""

LIMIT = 1e-6


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
            clamps.MatchAttention(
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
        "a alone": lambda _: clamps.a_alone(),
        "b alone": lambda place: clamps.b_alone(f"L1H{place}"),
        "c alone": lambda place: clamps.c_alone(f"L1H{place}"),
    }


def config(place: int, chosen: Sequence[AbstractClamp], updates: int) -> RunConfig:
    """The paper's run, with what differs at this place; it ends after so many updates."""
    return RunConfig(
        name=f"run-{place}",
        exemplars=GaussianSource(),
        seeds=Seeds(init=place, data=place),
        clamps=[clamp.pinned() for clamp in chosen],
        optimiser=AdamConfig(learning_rate=1e-4 * place),
        sequences=32 * updates,
        evaluations=Grid(every=32 * 25),
        evaluation_size=100,
        checkpoints=Grid(),
    )


class Losses(NamedTuple):
    """Losses of runs, and the bytes of their weights at the end."""

    table: torch.Tensor
    """`[update, run]`."""
    weights: list[bytes]


def trained(folder: Path, configs: Sequence[RunConfig], updates: int) -> Losses:
    """One fleet, compiled, evaluated as it trains."""
    (together,) = fleets(configs, len(configs))
    task = ih.FewShotTask(Exemplars.from_source(GaussianSource()), together[0].task)
    fleet = Fleet(
        [create_run(folder / each.name, each, task, engine="compiled") for each in together],
        compiled=True,
    )
    losses: list[torch.Tensor] = []
    with deferred_interrupts() as interrupted:
        for _ in range(updates):
            measure(fleet, None, interrupted)
            losses.append(fleet.advance())
    fleet.writer.settle()
    weights = [
        b"".join(tensor.numpy().tobytes() for tensor in fleet.weights(place).values())
        for place in range(len(configs))
    ]
    return Losses(torch.stack(losses), weights)


def main() -> int:
    """Exit status 1 where a loss differs by more than 1e-6."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--only", nargs="*", help="names of combinations")
    given = parser.parse_args()
    worst = 0.0
    with one_thread(), tempfile.TemporaryDirectory() as name:
        root = Path(name)
        donors = [
            config(place, [clamps.AblateHeads(heads=[f"L0H{place}"])], 20) for place in PLACES
        ]
        ih.train(donors, root / "donors", engine="eager", workers=1, progress=False)
        for what, clamps_of in combinations(root / "donors").items():
            if given.only and what not in given.only:
                continue
            configs = [config(place, clamps_of(place), given.updates) for place in PLACES]
            together = trained(root / what / "together", configs, given.updates)
            alone = [trained(root / what / "alone", [each], given.updates) for each in configs]
            apart = torch.cat([one.table for one in alone], dim=1)
            largest = float((together.table - apart).abs().max())
            same = sum(a == b.weights[0] for a, b in zip(together.weights, alone, strict=True))
            worst = max(worst, largest)
            sys.stdout.write(
                f"{what}: losses of {given.updates} updates differ by {largest:.0e} at most; "
                f"{same} of {len(configs)} runs end with the same bytes as alone\n"
            )
            sys.stdout.flush()
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
