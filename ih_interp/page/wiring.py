"""The wiring between layers over the checkpoints of a run, and its redundancy at the end."""

from itertools import combinations

import pandas as pd

from ih_interp.analysis.patching.redundancy import redundancy_over_training
from ih_interp.analysis.patching.wiring import wiring_over_training
from ih_interp.batch import Batch
from ih_interp.page.subject import Subject, chosen_steps

MOST_STEPS, MOST_SEQUENCES, MOST_TOKENS = 21, 128, 1_024
"""Checkpoints, sequences and their tokens of which paths are patched."""

MOST_EDGES, MOST_CLAMPED_EDGES = 20_000, 1_000
"""Edges over all checkpoints; under clamps each is a pass of the model."""

INPUTS = {"q": "queries", "k": "keys", "v": "values"}


def wiring_steps(subject: Subject) -> list[int]:
    """Return the checkpoints at which the wiring is measured: fewer for models of many edges."""
    config = subject.run.config.model
    n_edges = len(layer_pairs(config.n_layers)) * 3 * config.n_heads**2
    n_allowed = MOST_CLAMPED_EDGES if subject.run.clamps else MOST_EDGES
    most = min(MOST_STEPS, max(2, n_allowed // n_edges))
    return chosen_steps(subject.run.steps, most)


def patched_batch(subject: Subject) -> Batch:
    """Return the sequences of which paths are patched, the first of those that are measured."""
    n_positions = subject.batch.tokens.shape[1]
    return subject.batch[: min(MOST_SEQUENCES, max(8, MOST_TOKENS // n_positions))]


def layer_pairs(n_layers: int) -> list[tuple[int, int]]:
    """Return all pairs of up to four layers, and neighbours alone of more.

    >>> layer_pairs(3)
    [(0, 1), (0, 2), (1, 2)]
    """
    pairs = list(combinations(range(n_layers), 2))
    return pairs if n_layers <= 4 else [(low, high) for low, high in pairs if high == low + 1]


def measured_wiring(subject: Subject) -> pd.DataFrame:
    """Return `wiring_over_training` of pairs of layers; ValueError for a model of one layer."""
    pairs = layer_pairs(subject.run.config.model.n_layers)
    if not pairs:
        raise ValueError("The model has one layer: there are no edges between heads to patch.")
    steps, batch = wiring_steps(subject), patched_batch(subject)
    parts = [
        wiring_over_training(
            subject.run,
            subject.corrupt,
            batch=batch,
            steps=steps,
            sender_layer=sender,
            receiver_layer=receiver,
            **subject.patching,
        )
        for sender, receiver in pairs
    ]
    return pd.concat(parts, ignore_index=True)


def measured_redundancy(subject: Subject) -> pd.DataFrame:
    """Return `redundancy_over_training` at the last checkpoint, from the first layer to the last.

    Raises ValueError for a model of one layer.
    """
    if subject.run.config.model.n_layers < 2:
        raise ValueError("The model has one layer: there are no edges between heads to patch.")
    return redundancy_over_training(
        subject.run,
        subject.corrupt,
        batch=patched_batch(subject),
        steps=[subject.last],
        **subject.patching,
    )
