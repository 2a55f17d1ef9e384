import warnings

import pytest
import torch
from torch.testing import assert_close

import ih_interp as ih
from ih_interp.analysis.heads.pattern_scores import pattern_scores
from ih_interp.engine import compiled_scores
from ih_interp.engine.compiled_forward import compiler_found
from ih_interp.engine.compiled_scores import compiled_reading, read
from ih_interp.engine.feature_table import Rows
from ih_interp.model import ATTENTION_BIASES

NAMES = [f"blocks.{layer}.attn.hook_pattern" for layer in range(2)]

needs_compiler = pytest.mark.skipif(not compiler_found(), reason="needs a C++ compiler")


class Sizes(torch.fx.Interpreter):
    """Runs a graph and notes the sizes of what its nodes give."""

    def run_node(self, n):
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            n.meta["size"] = tuple(result.shape)
        return result


@pytest.fixture
def eager_graphs(monkeypatch):
    """The traced graph as it is, so that most tests need not wait for the compiler."""
    monkeypatch.setattr(compiled_scores, "compile_graph", lambda graph, *_, **__: graph)
    monkeypatch.setattr(compiled_scores, "compiler_found", lambda: True)


def patterns_of(model, tokens):
    _, cache = model.run_with_cache(tokens)
    return [cache[name] for name in NAMES]


@pytest.mark.usefixtures("eager_graphs")
@pytest.mark.parametrize("last_query", [False, True])
def test_what_is_read_is_what_the_model_computes(last_query, model, batch):
    with compiled_reading(model, batch.tokens):
        for rows in (slice(None), slice(0, 7), slice(5, 6)):  # the first is the largest
            found = read(model, batch.tokens[rows], NAMES, last_query=last_query)
            for one, whole in zip(found, patterns_of(model, batch.tokens[rows]), strict=True):
                assert_close(one, whole[:, :, -1:] if last_query else whole, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("eager_graphs")
def test_weights_may_change_in_place(model, task, batch):
    with compiled_reading(model, batch.tokens):
        before = read(model, batch.tokens, NAMES)
        with torch.no_grad():
            for name, parameter in ih.build_model(task, seed=6).named_parameters():
                model.get_parameter(name).copy_(parameter)
        after = read(model, batch.tokens, NAMES)
        assert not torch.allclose(before[1], after[1])
        assert_close(after, patterns_of(model, batch.tokens), rtol=0, atol=1e-6)


@pytest.mark.usefixtures("eager_graphs")
def test_only_the_last_row_of_the_last_layer_is_computed(model, batch, monkeypatch):
    graphs = []
    monkeypatch.setattr(
        compiled_scores, "compile_graph", lambda graph, *_, **__: graphs.append(graph)
    )
    with compiled_reading(model, batch.tokens), pytest.raises(TypeError):
        ih.induction_strength(model, batch)  # nothing compiled can be called
    sizes = Sizes(graphs[0])
    rows = Rows.of_tokens(model.embed.features, model.embed.n_labels, batch.tokens)
    weights = [p for n, p in model.named_parameters() if not n.endswith(ATTENTION_BIASES)]
    sizes.run(*weights, rows.renumber[batch.tokens])
    softmax = torch.ops.aten._softmax.default
    assert [n.meta["size"] for n in graphs[0].graph.nodes if n.target is softmax] == [
        (24, 8, 5, 5),
        (24, 8, 1, 5),
    ]


@pytest.mark.usefixtures("eager_graphs")
def test_the_model_itself_runs_where_somebody_looks(model, task, batch):
    seen = []
    with compiled_reading(model, batch.tokens):
        assert read(model, batch.tokens, NAMES) is not None
        with model.hooks(fwd_hooks=[("hook_embed", lambda x, hook: seen.append(hook.name))]):
            assert read(model, batch.tokens, NAMES) is None
            ih.induction_strength(model, batch)
        with ih.clamped(model, [ih.clamps.InductionAttention(heads=["L1H3"])], batch):
            assert_close(float(ih.induction_strength(model, batch)[1, 3]), 1.0)
    assert seen == ["hook_embed"]
    assert read(model, batch.tokens, NAMES) is None
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


@pytest.mark.usefixtures("eager_graphs")
def test_other_exemplars_are_left_to_the_model(model, task, batch):
    unseen = task.sample("test_exemplars", 24, generator=torch.Generator().manual_seed(0))
    with compiled_reading(model, batch.tokens):
        assert read(model, batch.tokens, NAMES) is not None
        assert read(model, unseen.tokens, NAMES) is None
        with_reader = ih.induction_strength(model, unseen)
    assert_close(with_reader, ih.induction_strength(model, unseen))


def test_what_cannot_be_compiled_runs_as_it_is(model, batch, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no such compiler")

    monkeypatch.setattr(compiled_scores, "compile_graph", broken)
    monkeypatch.setattr(compiled_scores, "compiler_found", lambda: True)
    plain = ih.induction_strength(model, batch)
    with (
        compiled_reading(model, batch.tokens),
        pytest.warns(UserWarning, match="no such compiler.*slower"),
    ):
        assert torch.equal(ih.induction_strength(model, batch), plain)
    with warnings.catch_warnings(), compiled_reading(model, batch.tokens):
        warnings.simplefilter("ignore")
        assert read(model, batch.tokens, NAMES) is None


@needs_compiler
def test_compiled_scores_are_the_models_own(model, batch):
    with compiled_reading(model, batch.tokens):
        strength = ih.induction_strength(model, batch, per_sequence=True)
        to_first = pattern_scores(model, batch.tokens, lambda p, _: p[..., 0].mean(-1))
    assert_close(
        strength, ih.induction_strength(model, batch, per_sequence=True), rtol=0, atol=1e-6
    )
    plain = pattern_scores(model, batch.tokens, lambda p, _: p[..., 0].mean(-1))
    assert_close(to_first, plain, rtol=0, atol=1e-6)
