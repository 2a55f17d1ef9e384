"""Networks of the studies, trained again with other seeds in plain torch, beside their tables.

python tests/stress/studies_by_hand.py {frozen-weights,emergence-law,other-tasks} [--seed 20]

Attention, rotary positions, clamps, frozen weights, the loop and the reading of times are written
here. From the package come initial weights and sequences. A time is wrong where it lies outside the
study's networks by more than half: 1.5 times the longest, or the shortest divided by it.
"""

import argparse
import math
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, layer_norm, one_hot

import ih_interp as ih
from ih_interp.tasks.exemplars import GaussianSource
from ih_interp.tasks.few_shot import TaskConfig

TABLES = Path(__file__).parents[2] / "figures" / "studies"
SOURCE = GaussianSource(n_classes=300)
MASKED = -1e9
MARGIN = 1.5


def forward(weights: dict[str, Tensor], features: Tensor, batch: ih.Batch, clamp: str) -> Tensor:
    """Return the query's logits `[batch, label]` under one clamp on L1H0, "" for none."""
    tokens, n_labels = batch.tokens, len(weights["embed.W_label"])
    projected = features @ weights["embed.W_in"] + weights["embed.b_in"]
    embedded = torch.cat([weights["embed.W_label"], projected])[tokens]
    labels = torch.arange(1, tokens.shape[1] - 1, 2)
    read = _norm(weights, "blocks.0.ln1", embedded)
    written, _ = _attention(weights, 0, read, read)
    if clamp == "A alone":
        match = cosine_similarity(written[:, labels], embedded[:, -1:], dim=-1)
        return _copied(match / 0.1, tokens[:, labels], n_labels)
    stream = embedded + written
    asking = answering = _norm(weights, "blocks.1.ln1", stream)
    if clamp in ("layer 1", "B alone"):
        stream = embedded
        shifted = torch.cat([embedded[:, :1], embedded[:, :-2], embedded[:, -1:]], dim=1)
        asking, answering = (_norm(weights, "blocks.1.ln1", x) for x in (shifted, embedded))
    pattern = None
    if clamp in ("match", "C alone"):
        right = (tokens[:, labels] == batch.target[:, None]).float()
        pattern = torch.zeros(tokens.shape)
        pattern[:, labels] = right / right.sum(dim=1, keepdim=True)
    written, scores = _attention(weights, 1, asking, answering, pattern)
    if clamp in ("copy", "B alone"):
        return _copied(scores[:, 0, -1][:, labels], tokens[:, labels], n_labels)
    last = _norm(weights, "ln_final", (stream + written)[:, -1])
    return last @ weights["unembed.W_U"] + weights["unembed.b_U"]


def _norm(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], weights[f"{name}.w"], weights[f"{name}.b"], 1e-5)


def _attention(
    weights: dict[str, Tensor],
    layer: int,
    asking: Tensor,
    answering: Tensor,
    pattern: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return what a layer writes, and its scores; `pattern` is the first head's for the query."""
    w_q, w_k, w_v, w_o = (weights[f"blocks.{layer}.attn.W_{part}"] for part in "QKVO")
    query, key = (_rotated(torch.einsum("btd,hde->bhte", asking, w)) for w in (w_q, w_k))
    value = torch.einsum("btd,hde->bhte", answering, w_v)
    later = torch.full((query.shape[2], query.shape[2]), MASKED).triu(1)
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + later
    weight = scores.softmax(dim=-1)
    if pattern is not None:
        first = torch.cat([weight[:, 0, :-1], pattern[:, None]], dim=1)
        weight = torch.cat([first[:, None], weight[:, 1:]], dim=1)
    return torch.einsum("bhte,hed->btd", weight @ value, w_o), scores


def _rotated(x: Tensor) -> Tensor:
    n, d = x.shape[-2:]
    angle = torch.arange(n)[:, None] * 10_000.0 ** (-torch.arange(0, d, 2) / d)
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = (even * angle.cos() - odd * angle.sin(), odd * angle.cos() + even * angle.sin())
    return torch.stack(turned, dim=-1).flatten(-2)


def _copied(scores: Tensor, tokens: Tensor, n_labels: int) -> Tensor:
    return torch.where(one_hot(tokens, n_labels).bool(), scores[..., None], MASKED).logsumexp(dim=1)


def time_to_learn(
    task: ih.FewShotTask,
    seed: int,
    *,
    rate: float,
    batch_size: int = 32,
    longest: float,
    clamp: str = "",
    frozen: Sequence[str] = (),
    until: float = math.inf,
) -> float:
    """Return the sequences at which the loss falls below 0.4 times a guess's, or all that it saw.

    The study's tables have the length of the run, too, for one that did not learn.
    """
    model = ih.build_model(task, seed=seed)
    weights = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    weights = {n: p for n, p in weights.items() if ".attn.b_" not in n}
    optimiser = torch.optim.Adam(weights.values(), lr=rate)
    chance = torch.Generator().manual_seed(1_000 + seed)
    shown = task.sample("train", 1_000, generator=torch.Generator().manual_seed(99))
    level, features = 0.4 * math.log(task.config.n_context_classes), model.embed.features
    before, n, step = (0.0, math.inf), 0, 0
    looks = {round(10 ** (k / 15)) for k in range(80)}
    while n < longest:
        if step in looks or n % 1_600 == 0:
            with torch.no_grad():
                loss = float(cross_entropy(forward(weights, features, shown, clamp), shown.target))
            if loss < level:
                share = (before[1] - level) / (before[1] - loss) if step else 0.0
                return before[0] + share * (n - before[0])
            before = (float(n), loss)
        batch = task.sample("train", batch_size, generator=chance)
        cross_entropy(forward(weights, features, batch, clamp), batch.target).backward()
        for name in frozen if n < until else ():
            weights[f"blocks.{name[1]}.attn.W_{name[-1]}"].grad = None
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step, n = step + 1, n + batch_size
    return float(n)


Row = tuple[str, float, pd.Series]
"""A condition, the time that was found, and the times of the study's networks."""


def frozen_weights(seed: int) -> Generator[Row]:
    """Times under frozen weights and clamps, in those of the network left free."""
    task, rate = TaskConfig(exemplars=SOURCE).build(), 6e-5
    table = pd.read_csv(TABLES / "frozen_weights.csv")
    free = time_to_learn(task, seed, rate=rate, longest=96_000)
    units = table[table["kind"] == "free"].set_index("seed")["time"]
    yield "free", free, units
    every = [*table[["kind", "what", "until"]].drop_duplicates().itertuples(index=False)]
    for kind, what, until in every:
        if kind == "free":
            continue
        rows = table[(table["what"] == what) & (table["until"] == until)].set_index("seed")
        given: dict[str, Any] = {"longest": (2 + (until if until < 9 else 0)) * free}
        if kind == "frozen":
            given |= {"frozen": _parts(what), "until": until * free}
        elif what in ("layer 1", "match", "copy"):
            given["clamp"] = what
        else:
            continue
        found = time_to_learn(task, seed, rate=rate, **given)
        yield f"{what} until {until:g}", found / free, rows["time"] / units


def _parts(what: str) -> list[str]:
    layers = [n for n in "01" if what.startswith("all ") and what[-1] in (n, *"KO")]
    parts = {"Q and K": "QK", "V and O": "VO"}.get(what.removeprefix("all "), "QKVO")
    return [f"L{n} {part}" for n in layers for part in parts] or what.split(" + ")


def emergence_law(seed: int) -> Generator[Row]:
    """Times of four cells of the grid, whole and in parts."""
    table = pd.read_csv(TABLES / "emergence_law.csv").query("classes == 50")
    for size, pairs, labels in ((16, 2, 8), (16, 4, 8), (64, 2, 16), (64, 4, 8)):
        config = TaskConfig(exemplars=SOURCE, n_pairs=pairs, n_train_classes=50, n_labels=labels)
        cell = table.query("batch == @size and pairs == @pairs and labels == @labels")
        for name, rows in cell.groupby("condition"):
            clamp = "" if name == "free" else str(name)
            longest = 256_000 if name == "free" else 32_000
            given: dict[str, Any] = {"rate": 3e-4, "batch_size": size, "longest": longest}
            found = time_to_learn(config.build(), seed, clamp=clamp, **given)
            yield f"batches of {size}, {pairs} pairs, {labels} labels, {name}", found, rows["time"]


def other_tasks(seed: int) -> Generator[Row]:
    """Times of the three few-shot tasks, free and under three clamps."""
    table = pd.read_csv(TABLES / "other_tasks.csv")
    for pairs, longest in ((2, 128_000), (4, 192_000), (8, 256_000)):
        task = TaskConfig(exemplars=SOURCE, n_labels=12, n_pairs=pairs).build()
        for name in ("none", "layer 1", "match", "copy"):
            rows = table[(table["task"] == f"{pairs} pairs") & (table["clamp"] == name)]
            last = rows.groupby("seed")["sequences"].max()
            clamp = "" if name == "none" else name
            found = time_to_learn(task, seed, rate=3e-4, longest=longest, clamp=clamp)
            yield f"{pairs} pairs, {name}", found, last


STUDIES = {
    "frozen-weights": frozen_weights,
    "emergence-law": emergence_law,
    "other-tasks": other_tasks,
}


def main() -> int:
    """Print a line for each condition; return 1 if a time was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--seed", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    n_wrong = 0
    for words, found, theirs in STUDIES[given.study](given.seed):
        is_wrong = not theirs.min() / MARGIN <= found <= theirs.max() * MARGIN
        n_wrong += is_wrong
        sys.stdout.write(
            f"{words}: {found:.4g}; the study's networks {theirs.min():.4g} to {theirs.max():.4g}"
            f"{'  WRONG' if is_wrong else ''}\n"
        )
        sys.stdout.flush()
    sys.stdout.write(f"{n_wrong} wrong\n")
    return int(n_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
