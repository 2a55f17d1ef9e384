"""Figures 11 and 12, Table 1, and composition before training: which head serves which, and how.

Layer 1 reads layer 0 in two ways: through its patterns, where values are preserved, and through its
values, where patterns are. Layers count from 0 here, from 1 in the paper.
"""

import math
from collections.abc import Iterable, Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from ih_interp._torch_state import plain_torch
from ih_interp.analysis._passes import recording
from ih_interp.analysis.dynamics.trace import trace
from ih_interp.analysis.heads.composition import (
    Kind,
    output_composition,
    output_composition_chance,
    pair_table,
)
from ih_interp.analysis.patching.preserving import Keep, Kept, preserving_ablation, preserving_map
from ih_interp.evaluation import query_metrics
from ih_interp.paper.circuit import Circuit
from ih_interp.paper.figures._fig11_claims import (
    composition_claims,
    direct_claims,
    map_claims,
    preserving_claims,
)
from ih_interp.paper.figures._fig11_drawing import (
    plot_composition_before,
    plot_preserving_groups,
    plot_removed,
    plot_wiring_maps,
)
from ih_interp.paper.study import Figure, Study, some_steps
from ih_interp.runs import Run
from ih_interp.types import Batch, Head

THROUGH: tuple[tuple[str, Kept, Kind], ...] = (
    ("patterns", "values", "K"),
    ("values", "patterns", "V"),
)
"""What layer 1 reads with, what is preserved so that it alone is left, and its composition."""

LEFT: dict[str, Keep] = {"one ablated": "all_but_one", "one left": "one"}
"""Heads of layer 0: the first and the second column of Figure 11."""


def map_table(study: Study) -> pd.DataFrame:
    """The six maps of Figure 11, of every network at its end.

    Columns: those of `Study.each_run`, `map` ("one ablated": accuracy less that with every head of
    layer 0; "one left": accuracy; "composition"), `through` ("patterns" or "values"), `sender`,
    `previous_token` (whether the sender is one), `receiver`, `value`, and `neutral`, which says
    nothing: 0, chance 1/L, and composition of random matrices.
    """

    def measure(model: HookedTransformer, batch: Batch) -> pd.DataFrame:
        causal = _accuracies(model, batch, LEFT).assign(n_sequences=len(batch))
        return pd.concat([causal, _compositions(model)], ignore_index=True)  # of weights alone

    table = study.each_network(measure)
    return table.assign(
        previous_token=[
            sender in map(str, study.circuits[seed].previous_token)
            for seed, sender in zip(table["seed"], table["sender"], strict=True)
        ]
    )


def removed_table(study: Study) -> pd.DataFrame:
    """Figure 12: what is lost without layer 0's direct path, and without the heads of layer 1.

    Columns: those of `Study.each_run`, `sequences`, `removed` ("direct path" or "last layer"),
    `loss`, `accuracy`, and `loss_change`, `accuracy_change` against the same checkpoint, whole, on
    the same sequences (the paper interpolates a loss on others): those of `curve_batch`, but of
    `batch` at the last step, where what is lost may be less than one sequence of a sample. Loss is
    in nats, ln 2 for a guess between the context's two labels, ln L for L labels and no idea;
    accuracy has chance 1/L, 1/2 for that guess. A part that does nothing changes them by 0.
    """

    def measure(run: Run, batch: Batch) -> pd.DataFrame:
        *learning, last = some_steps(run)
        parts = [
            trace(run, without_parts, batch=shown, steps=steps).assign(n_sequences=len(shown))
            for shown, steps in ((study.curve_batch(run), learning), (batch, [last]))
        ]
        return pd.concat(parts, ignore_index=True)

    rows = study.each_run(measure)
    rows[["removed", "measure"]] = rows["name"].str.split("|", expand=True)
    index = ["seed", "run", "n_sequences", "sequences"]
    wide = rows.set_index([*index, "removed", "measure"])["value"].unstack("measure").reset_index()
    whole = wide[wide["removed"] == "nothing"].set_index(index)
    whole = whole[["loss", "accuracy"]].add_prefix("whole_")
    parts = wide[wide["removed"] != "nothing"].join(whole, on=index)
    changes = {
        f"{name}_change": parts[name] - parts[f"whole_{name}"] for name in ("loss", "accuracy")
    }
    columns = [*index, "removed", "loss", "accuracy", *changes]
    return parts.assign(**changes)[columns].rename_axis(columns=None).reset_index(drop=True)


@plain_torch()
def without_parts(model: HookedTransformer, batch: Batch) -> dict[str, float]:
    """Loss and accuracy of a model of two layers: whole, and with each part removed.

    Named "nothing|loss", "direct path|loss", "last layer|accuracy" and so on. One pass gives what
    `direct_path_removed` and the clamp `AblateHeads` do in four: only the last residual stream has
    to lose what a layer's heads write.
    """
    points = [f"blocks.{layer}.attn.hook_z" for layer in (0, 1)]
    with recording(model, ["blocks.1.hook_resid_post", *points]) as kept:
        model(batch.tokens)
    resid = kept["blocks.1.hook_resid_post"][:, -1:]
    first, last = (
        torch.einsum("bphd,hdm->bpm", kept[point][:, -1:], model.blocks[layer].attn.W_O)
        for layer, point in enumerate(points)
    )
    streams: dict[str, Float[Tensor, "batch 1 d_model"]] = {
        "nothing": resid,
        "direct path": resid - first,
        "last layer": resid - last,
    }
    return {
        f"{removed}|{name}": value
        for removed, stream in streams.items()
        for name, value in query_metrics(model.unembed(model.ln_final(stream))[:, -1], batch)
        .mean()
        .items()
        if name in ("loss", "accuracy")
    }


def preserving_table(study: Study) -> pd.DataFrame:
    """Table 1: accuracy without groups of layer 0's heads, while layer 1 keeps one of its inputs.

    Columns: those of `Study.each_run`, `group` ("previous-token" or "others"), `ablated` (its
    heads, as "L0H1 L0H2"), `preserved` ("patterns" or "values"), `accuracy`: chance 1/L for L
    labels, 1/2 for a guess between the context's two; NaN for a group without heads.
    """

    def measure(run: Run, batch: Batch) -> pd.DataFrame:
        model = run.model()
        groups = _groups(study.circuits[run.config.seeds.init], model.cfg.n_heads)
        rows = [
            (group, " ".join(map(str, heads)), kept, _accuracy(model, batch, heads, kept))
            for group, heads in groups.items()
            for kept in ("patterns", "values")
        ]
        return pd.DataFrame(rows, columns=["group", "ablated", "preserved", "accuracy"])

    return study.each_run(measure)


def composition_table(study: Study) -> pd.DataFrame:
    """Composition before training beside that at the end, and beside what pairs then do.

    Columns: those of `Study.each_run`, `through` ("patterns": K-composition, "values": V),
    `sender`, `receiver`, `start` and `end` (`output_composition`, chance about 0.125), and
    `accuracy` with that pair of heads alone left, as "one left" of Figure 11 (chance 1/L for L
    labels).
    """

    def measure(run: Run, batch: Batch) -> pd.DataFrame:
        pairs = ["through", "sender", "receiver"]
        start, end, alone = (
            table.set_index(pairs)["value"]
            for table in (
                _compositions(run.model(0)),
                _compositions(run.model()),
                _accuracies(run.model(), batch, ["one left"]),
            )
        )
        return pd.DataFrame({"start": start, "end": end, "accuracy": alone}).reset_index()

    return study.each_run(measure)


def _accuracies(model: HookedTransformer, batch: Batch, names: Iterable[str]) -> pd.DataFrame:
    """Causal maps of these names, of `LEFT`, through patterns and values: rows of `map_table`."""
    parts: list[pd.DataFrame] = []
    for through, kept, _ in THROUGH:
        for name in names:
            found = preserving_map(model, batch, preserve=kept, keep=LEFT[name]).table()
            column = "accuracy_change" if name == "one ablated" else "accuracy"
            neutral = 0.0 if name == "one ablated" else 1 / model.cfg.d_vocab_out
            rows = found[["sender", "receiver", column]].rename(columns={column: "value"})
            parts.append(rows.assign(map=name, through=through, neutral=neutral))
    return pd.concat(parts, ignore_index=True)


def _compositions(model: HookedTransformer) -> pd.DataFrame:
    """The two maps of composition, as rows of `map_table`."""
    chance = output_composition_chance(model, generator=torch.Generator().manual_seed(0)).mean
    return pd.concat(
        [
            pair_table(output_composition(model, kind))
            .rename(columns={"source": "sender", "name": "receiver"})
            .assign(map="composition", through=through, neutral=chance)
            for through, _, kind in THROUGH
        ],
        ignore_index=True,
    )


def _groups(circuit: Circuit, n_heads: int) -> dict[str, list[Head]]:
    previous = sorted(circuit.previous_token)
    others = [head for head in (Head(0, h) for h in range(n_heads)) if head not in previous]
    return {"previous-token": previous, "others": others}


def _accuracy(model: HookedTransformer, batch: Batch, heads: Sequence[Head], kept: Kept) -> float:
    if not heads:
        return math.nan
    found = preserving_ablation(model, batch, heads, preserve=kept)
    return float(found.accuracy.double().mean())


FIGURES = (
    Figure("11", ("main",), map_table, plot_wiring_maps, map_claims, size=(11.0, 7.2)),
    Figure(
        "11 init",
        ("main",),
        composition_table,
        plot_composition_before,
        composition_claims,
        size=(8.4, 3.9),
    ),
    Figure(
        "12",
        ("main",),
        removed_table,
        lambda table, canvas: plot_removed(table, canvas.subplots()),
        direct_claims,
    ),
    Figure(
        "table 1",
        ("main",),
        preserving_table,
        lambda table, canvas: plot_preserving_groups(table, canvas.subplots()),
        preserving_claims,
        size=(8.4, 3.4),
    ),
)
