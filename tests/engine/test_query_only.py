"""Computing only what is read: the same values, less work; and what a trace computes instead."""

import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from torch.func import functionalize
from torch.testing import assert_close

import ih_interp as ih
from ih_interp import clamps
from ih_interp.clamps.base import flat_tensors
from ih_interp.engine.compiled_forward import (
    ClampedModel,
    Sequences,
    drop_zero_biases,
    trace_forward,
    traced,
)
from ih_interp.engine.fast_layers import substituted
from ih_interp.engine.feature_table import Rows
from ih_interp.engine.query_only import Slab, narrow
from ih_interp.model import trained_parameters

aten = torch.ops.aten


def products(graph):
    """Multiplications in a graph's matrix products."""
    total = 0
    for node in graph.graph.nodes:
        if node.target in (aten.mm.default, aten.bmm.default, aten.addmm.default):
            left, right = node.all_input_nodes[-2:]
            total += left.meta["size"].numel() * right.meta["size"][-1]
    return total


class Sizes(torch.fx.Interpreter):
    def run_node(self, n):
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            n.meta["size"] = result.shape
        return result


def narrowed(function, *inputs):
    """The function's graph before and after, with the sizes that its nodes have."""
    before = traced(functionalize(function), *inputs)
    after = traced(functionalize(function), *inputs)
    narrow(after)
    for graph in (before, after):
        Sizes(graph).run(*inputs)
    return before, after


def test_a_slab_is_one_index_of_an_axis_whatever_it_is_merged_with():
    elements = torch.arange(2 * 3 * 5 * 4).view(2, 3, 5, 4)
    slab = Slab.of((2, 3, 5, 4), 2, 4)
    chosen = (torch.arange(elements.numel()) // slab.stride) % slab.n == slab.index
    assert torch.equal(elements.flatten()[chosen], elements[:, :, -1].flatten())
    assert slab.axis((2, 3, 5, 4)) == 2
    assert slab.axis((6, 20)) == 1
    assert slab.axis((30, 4)) == 0
    assert slab.axis((2, 3, 10, 2)) == 2
    assert slab.axis((8, 15)) is None
    assert slab.of_shape((30, 4)) == [6, 4]


def test_a_linear_layer_is_computed_where_it_is_read():
    x, w, b = torch.randn(7, 5, 6), torch.randn(6, 3), torch.randn(3)
    before, after = narrowed(lambda x, w, b: (x @ w + b).softmax(dim=-1).tanh()[:, 2], x, w, b)
    assert_close(after(x, w, b), before(x, w, b))
    assert products(after) * 5 == products(before)


def test_what_somebody_reads_whole_is_computed_whole():
    x, w = torch.randn(7, 5, 6), torch.randn(6, 6)

    def function(x, w):
        y = x @ w
        return (y @ w)[:, -1] + y.sum(dim=1)

    before, after = narrowed(function, x, w)
    assert_close(after(x, w), before(x, w))
    assert products(after) == 7 * 5 * 36 + 7 * 36


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.exp()[:, -7:1],
        lambda x: aten.slice(x.exp(), 1, -1),
        lambda x: aten.slice(x.exp(), 1, None, 1),
        lambda x: aten.slice(x.exp(), -2, 2, 3),
        lambda x: x.exp().select(-2, -1),
        lambda x: x.reshape(60).sin().view(3, 5, 4)[:, -1],
        lambda x: torch.zeros(3, 5, 4).copy_(x > 0)[:, -1],
        lambda x: torch.zeros(3, 5, 4).copy_(x.double())[:, -1] + 0.5,
        lambda x: x[:, ::2].exp()[:, 1],
        lambda x: x.clone().copy_(x.exp()[:, :1])[:, -1],
    ],
)
def test_slices_copies_and_views_of_every_kind(function):
    x = torch.randn(3, 5, 4)
    before, after = narrowed(function, x)
    assert_close(after(x), before(x), rtol=0, atol=0)


def test_views_of_what_lies_otherwise():
    x = torch.randn(5, 3, 4).transpose(0, 1)
    before, after = narrowed(lambda x: x.exp().reshape(60).view(3, 5, 4)[:, -1], x)
    assert_close(after(x), before(x))


STEPS = {
    "linear": lambda x, i: x @ torch.full((x.shape[-1], 3), 0.5, dtype=x.dtype),
    "swap": lambda x, i: x.transpose(i % x.ndim, (i + 1) % x.ndim),
    "softmax": lambda x, i: x.softmax(i % x.ndim),
    "mean": lambda x, i: x - x.mean(i % x.ndim, keepdim=True),
    "sum": lambda x, i: x.sum(i % x.ndim) if x.ndim > 2 else x,
    "merge": lambda x, i: x.flatten(i % (x.ndim - 1), i % (x.ndim - 1) + 1) if x.ndim > 2 else x,
    "add": lambda x, i: x + torch.arange(x.shape[-1]),
    "rows": lambda x, i: x + torch.arange(x.shape[-2])[:, None],
    "axis": lambda x, i: x.unsqueeze(i % (x.ndim + 1)) if x.ndim < 5 else x,
    "pick": lambda x, i: x.select(i % x.ndim, -1) if x.ndim > 2 else x,
    "cut": lambda x, i: x[..., : max(1, x.shape[-1] - 1)],
    "join": lambda x, i: torch.cat([x, x.exp()], dim=i % x.ndim),
    "square": lambda x, i: x @ x.transpose(-1, -2),
    "wide": lambda x, i: x.expand(2, *x.shape) if x.ndim < 5 else x,
    "write": lambda x, i: x.clone().index_fill_(0, torch.tensor([0]), 0.5),
    "where": lambda x, i: torch.where(x > 0, x, torch.tensor(-1.0)),
}


def test_biases_of_zeros_are_dropped_and_others_are_not():
    x, w = torch.randn(4, 6), torch.randn(6, 3)
    zeros, ones = torch.zeros(1, 3), torch.ones(3)

    def function(x, w):
        return torch.addmm(zeros.view(3), x, w) + torch.addmm(ones, x, w)

    graph = traced(function, x, w)
    expected = graph(x, w)
    drop_zero_biases(graph)
    targets = [node.target for node in graph.graph.nodes]
    assert (targets.count(aten.mm.default), targets.count(aten.addmm.default)) == (1, 1)
    assert torch.equal(graph(x, w), expected)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 4)), min_size=1, max_size=9),
    st.integers(0, 4),
)
@example(
    [("add", 0), ("join", 1), ("axis", 0), ("axis", 0), ("square", 0), ("join", 0), ("sum", 0)], 2
)
def test_whatever_the_graph_its_values_stay(steps, axis):
    # Doubles: an exponential of products of exponentials makes much of single rounding.
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def function(x):
        for name, i in steps:
            x = STEPS[name](x, i)
        return x.select(axis % x.ndim, -1)

    before, after = narrowed(function, x)
    assert_close(after(x), before(x), equal_nan=True)


@pytest.mark.parametrize(
    "chosen",
    [
        (),
        (clamps.copy("L1H3"),),
        (clamps.layer_one(), clamps.AttendLabelsOnly(heads=["L1H1"])),
        clamps.a_alone(),
        (clamps.Preserve(what=["patterns"], gradient="block"), clamps.AblateHeads(heads=["L0H1"])),
    ],
    ids=["none", "copy", "layer one", "a alone", "preserve"],
)
def test_a_traced_forward_pass_is_the_models_own(chosen, task, model, batch):
    chosen = clamps.in_order(chosen)
    weights = {name: p.detach() for name, p in trained_parameters(model).items()}
    rows = Rows.of_splits(task, ["train"])
    renumbered = rows.of(batch)
    tensors = flat_tensors(chosen, clamps.Shape.of(model))
    given = (weights, rows.buffers, Sequences.of(renumbered, task, chosen), tensors, [])
    found = trace_forward(ClampedModel(model, chosen, task), *given)(*given)
    with ih.clamped(model, chosen, batch):
        expected = model(batch.tokens)[:, -1:]
    assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_last_layer_queries_one_position(task, model, batch):
    weights = {name: p.detach() for name, p in trained_parameters(model).items()}
    rows = Rows.of_splits(task, ["train"])
    inputs = (weights, rows.buffers, Sequences.of(rows.of(batch), task, ()), [], [])
    graph = trace_forward(ClampedModel(model, (), task), *inputs)
    Sizes(graph).run(*torch.utils._pytree.tree_leaves(inputs))
    patterns = [
        tuple(node.meta["size"]) for node in graph.graph.nodes
        if node.target is aten._softmax.default
    ]  # fmt: skip
    assert patterns == [(24, 8, 5, 5), (24, 8, 1, 5)]


@pytest.mark.parametrize(
    "shape",
    [
        ih.ModelConfig(),
        ih.ModelConfig(positional_embedding_type="standard"),
        ih.ModelConfig(normalization_type=None),
        ih.ModelConfig(normalization_type="RMS", attn_only=False, n_layers=3),
    ],
    ids=["paper", "standard", "no norm", "RMS and MLPs"],
)
def test_substitutes_give_the_same_values_and_are_gone_afterwards(shape, task, batch):
    model = ih.build_model(task, shape, seed=5)
    rows = Rows.of_tokens(model.embed.features, task.n_labels, batch.tokens)
    model.embed.features, tokens = rows.features, rows.of(batch).tokens  # few: a table is read
    plain = model(tokens)
    close = {"rtol": 0, "atol": 1e-5 * max(1.0, float(plain.detach().abs().max()))}
    before = [set(vars(module)) for module in model.modules()]
    with substituted(model):
        assert_close(model(tokens), plain, **close)
        assert_close(model(tokens.flip(0)), plain.flip(0), **close)  # nothing is stale
        assert "calculate_qkv_matrices" in vars(model.blocks[0].attn)
    assert [set(vars(module)) for module in model.modules()] == before


@pytest.mark.parametrize("n_pairs", [2, 10], ids=["short", "long"])
def test_substitutes_fit_heads_with_inputs_of_their_own_and_long_contexts(n_pairs, exemplars):
    config = ih.TaskConfig(n_pairs=n_pairs, n_copies=1, n_labels=10, n_train_classes=20)
    task = ih.FewShotTask(exemplars, config)
    tokens = task.sample("train", 8, generator=torch.Generator().manual_seed(1)).tokens
    model = ih.build_model(task, seed=5)
    plain = model(tokens)
    model.set_use_split_qkv_input(n_pairs == 2)
    with substituted(model):
        assert_close(model(tokens), plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "point",
    [
        "hook_embed",
        "blocks.0.ln1.hook_scale",
        "blocks.0.attn.hook_q",
        "blocks.1.attn.hook_k",
        "blocks.0.attn.hook_v",
        "blocks.1.attn.hook_attn_scores",
        "blocks.0.attn.hook_pattern",
        "blocks.1.attn.hook_z",
    ],
)
def test_substitutes_leave_room_for_hooks(point, task, batch):
    model = ih.build_model(task, seed=5)
    rows = Rows.of_tokens(model.embed.features, task.n_labels, batch.tokens)
    model.embed.features, tokens = rows.features, rows.of(batch).tokens

    def doubled(activation, hook):
        return 2 * activation + torch.arange(len(activation)).reshape(
            -1, *[1] * (activation.ndim - 1)
        )

    with model.hooks(fwd_hooks=[(point, doubled)]):
        plain = model(tokens)
        with substituted(model):
            assert_close(model(tokens), plain, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain, model(tokens))
