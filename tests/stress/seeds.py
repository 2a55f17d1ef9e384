"""Figure 5b's six conditions for eight seeds: how long 48 runs take, evaluations and all.

python tests/stress/seeds.py --runs FOLDER [--seeds 8]

18,750 updates each, evaluated and saved as often as the paper's main run: every 5,000 and every
1,000 sequences.
Heads are those of one network, as clamps of the same head for every seed cost the same as others.
Begun in an empty folder it says what all of it takes; begun again, it goes on.
"""

import argparse
import sys
import time
from pathlib import Path

import ih_interp as ih
from ih_interp.config import RunConfig
from ih_interp.paper.presets import PRESETS
from ih_interp.paper.recipes import Circuit, Context, clamped
from ih_interp.types import Head

PAPER = PRESETS["paper"]
FIRST_SEED = 21
CIRCUIT = Circuit(induction=Head(1, 3), previous_token=(Head(0, 1),), unlike=Head(0, 2))


def conditions(seed: int) -> list[RunConfig]:
    """One network's runs, as densely evaluated and saved as its main run."""
    context = Context(preset=PAPER, exemplars=PAPER.exemplars, seed=seed, circuit=CIRCUIT)
    return [
        run.replace(evaluations=PAPER.evaluations, checkpoints=PAPER.checkpoints)
        for run in clamped(context).values()
    ]


def main() -> None:
    """Trains them and prints the minutes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=8)
    given = parser.parse_args()
    runs = [run for seed in range(FIRST_SEED, FIRST_SEED + given.seeds) for run in conditions(seed)]
    start = time.monotonic()
    ih.train(runs, given.runs)
    minutes = (time.monotonic() - start) / 60
    updates = sum(run.n_steps for run in runs)
    sys.stdout.write(f"{len(runs)} runs, {updates:,} updates: {minutes:.1f} minutes\n")


if __name__ == "__main__":
    main()
