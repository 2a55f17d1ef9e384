"""Every fast path against plain hooks, on models that break one of its assumptions each."""

import copy
from contextlib import ExitStack, contextmanager

import pytest
import torch
import torch.nn.utils.prune
from torch import nn
from torch.testing import assert_close
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.components import Attention, RMSNorm
from transformer_lens.components.transformer_block import TransformerBlock

import ih_interp as ih
from ih_interp._stock import not_plain, parts_of
from ih_interp.analysis.ablation._subset_passes import is_linear
from ih_interp.analysis.patching._last_layer import stands_alone
from ih_interp.analysis.patching.corruptions import swap_exemplars
from ih_interp.engine.compiled_forward import (
    ClampedModel,
    Sequences,
    named_for_model,
    trace_forward,
)

N = 12


class Sharper(Attention):
    def apply_causal_mask(self, scores, *args, **kwargs):
        return super().apply_causal_mask(scores, *args, **kwargs) * 2


class Scores(Attention):
    def calculate_attention_scores(self, q, k):
        return super().calculate_attention_scores(q, k) * 3


class HalfPattern(Attention):
    def calculate_z_scores(self, v, pattern):
        return super().calculate_z_scores(v, pattern * 0.5)


class LowRank(Attention):
    def calculate_qkv_matrices(self, query_input, key_input, value_input):
        return super().calculate_qkv_matrices(
            query_input, key_input + key_input.flip(-1), value_input
        )


class Gated(Attention):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs).tanh()


class Weakened(TransformerBlock):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs) * 0.5


class Turned(nn.Module):
    def forward(self, weight):
        return weight.flip(0)


def attention(kind, layer=1):
    def change(model, stack):
        new = kind(model.cfg, "global", layer)
        new.load_state_dict(model.blocks[layer].attn.state_dict())
        model.blocks[layer].attn = new
        model.setup()

    return change


def block(model, stack):
    new = Weakened(model.cfg, 0)
    new.load_state_dict(model.blocks[0].state_dict())
    model.blocks[0] = new
    model.setup()


def hooked(name, function=lambda module, given, out: out * 0.5):
    def change(model, stack):
        handle = model.get_submodule(name).register_forward_hook(function)
        stack.callback(handle.remove)

    return change


def prehooked(name):
    def change(model, stack):
        handle = model.get_submodule(name).register_forward_pre_hook(lambda _, x: (x[0] * 0.5,))
        stack.callback(handle.remove)

    return change


def lens_hooked(name):
    def change(model, stack):
        stack.enter_context(model.hooks(fwd_hooks=[(name, lambda a, hook: a * 0.5)]))

    return change


def method(name, attribute, factor):
    def change(model, stack):
        module = model.get_submodule(name)
        old = getattr(module, attribute)
        setattr(module, attribute, lambda *args, **kwargs: old(*args, **kwargs) * factor)

    return change


def of_class(model, stack):
    old = Attention.calculate_attention_scores
    patch = pytest.MonkeyPatch()
    patch.setattr(Attention, "calculate_attention_scores", lambda self, q, k: old(self, q, k) * 3)
    stack.callback(patch.undo)


def capped(name):
    return lambda model, stack: setattr(model.cfg, name, 0.5)


def norm(name, layer_of):
    return lambda model, stack: (setattr(layer_of(model), name, RMSNorm(model.cfg)), model.setup())


def scale(model, stack):
    model.blocks[1].attn.attn_scale = 1.0


def parametrized(model, stack):
    nn.utils.parametrize.register_parametrization(model.blocks[1].attn, "W_Q", Turned())


def pruned(model, stack):
    nn.utils.prune.random_unstructured(model.blocks[1].attn, "W_K", amount=0.5)


def mixed(model, stack):
    model.blocks[0].attn.W_O.data = model.blocks[0].attn.W_O.data.double()
    model.blocks[0].attn.b_O.data = model.blocks[0].attn.b_O.data.double()


def of_another_cfg(model, stack):
    model.blocks[1].attn.cfg = copy.copy(model.cfg)
    model.blocks[1].attn.cfg.attn_scores_soft_cap = 0.5


def local(model, stack):
    model.blocks[1].attn.attn_type = "local"
    model.cfg.window_size = 2


def biased(model, stack):
    model.blocks[1].attn.b_K.data.add_(1.0)


def masked(model, stack):
    model.blocks[1].attn.IGNORE.fill_(0.0)


def everywhere(model, stack):
    def halve(module, given, out):
        return out * 0.5 if module is model.blocks[1].attn else None

    stack.callback(nn.modules.module.register_module_forward_hook(halve).remove)


def default_dtype(model, stack):
    stack.callback(torch.set_default_dtype, torch.float32)
    torch.set_default_dtype(torch.float64)


def autocast(model, stack):
    stack.enter_context(torch.autocast("cpu"))


PLAIN = {
    "as it is": lambda model, stack: None,
    "other biases": biased,
    "hook that changes nothing": hooked("blocks.0.attn", lambda *_: None),
}
BROKEN = {
    "subclass: scores": attention(Scores),
    "subclass: mask": attention(Sharper),
    "subclass: pattern": attention(HalfPattern),
    "subclass: qkv": attention(LowRank),
    "subclass: qkv in layer 0": attention(LowRank, 0),
    "subclass: scores in layer 0": attention(Scores, 0),
    "subclass: output": attention(Gated),
    "method of an instance": method("blocks.1.attn", "calculate_attention_scores", 3),
    "forward of an unembedding": method("unembed", "forward", 0.5),
    "forward of a hook point": method("blocks.1.attn.hook_z", "forward", 0.5),
    "method of a class": of_class,
    "hook on attention": hooked("blocks.1.attn"),
    "hook on a pattern": hooked("blocks.1.attn.hook_pattern"),
    "hook on a query": hooked("blocks.1.attn.hook_q"),
    "hook on a norm": hooked("blocks.1.ln1"),
    "hook on the last norm": hooked("ln_final"),
    "hook on the unembedding": hooked("unembed"),
    "hook on the last block": hooked("blocks.1"),
    "hook on the embedding": hooked("embed"),
    "hook on the model": hooked(""),
    "hook on everything": everywhere,
    "pre-hook on a query": prehooked("blocks.1.attn.hook_q"),
    "pre-hook on a block": prehooked("blocks.1"),
    "pre-hook on the last norm": prehooked("ln_final"),
    "hook of TransformerLens": lens_hooked("blocks.1.attn.hook_attn_scores"),
    "hook of TransformerLens at the stream": lens_hooked("blocks.1.hook_resid_pre"),
    "capped logits": capped("output_logits_soft_cap"),
    "capped scores": capped("attn_scores_soft_cap"),
    "another norm": norm("ln1", lambda model: model.blocks[1]),
    "another last norm": norm("ln_final", lambda model: model),
    "another scale": scale,
    "another cfg": of_another_cfg,
    "local attention": local,
    "masked scores that are not": masked,
    "parametrized weights": parametrized,
    "pruned weights": pruned,
    "weights of two types": mixed,
    "another default type": default_dtype,
    "autocast": autocast,
}
NOT_SUMS = {
    "attention whose output is gated": attention(Gated, 0),
    "a block that is no sum": block,
    "hook on what attention adds": hooked("blocks.0.attn"),
    "hook on a block": hooked("blocks.0"),
    "hook of TransformerLens on what attention adds": lens_hooked("blocks.0.hook_attn_out"),
}
"""Where what a head writes is not what arrives at the next layer: no edge is known."""

KINDS = {**PLAIN, **BROKEN}


@contextmanager
def made(task, change):
    """A model with random everything that was changed, and what undoes it."""
    model = ih.build_model(task, ih.ModelConfig(d_model=16, n_heads=2, d_head=4), seed=5)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * (0.15 if p.ndim == 1 else 0.5))
    with ExitStack() as stack:
        change(model, stack)
        yield model


@pytest.fixture(scope="module")
def clean(task):
    return task.sample("train", N, generator=torch.Generator().manual_seed(0))


def near(found, expected, kind):
    # A logit of 8 in bfloat16 has neighbours 1/32 away, and batches of other sizes round otherwise.
    atol = 0.07 if kind == "autocast" else 2e-5
    assert_close(found.double(), expected.double(), rtol=0, atol=atol)


def loss(logits, batch):
    return -logits[:, -1].double().log_softmax(-1).gather(-1, batch.target[:, None])[:, 0]


def run(model, tokens, *hooks):
    """A pass by way of `model(...)`: `run_with_hooks` passes hooks on the model itself by."""
    with model.hooks(fwd_hooks=list(hooks)):
        return model(tokens)


@torch.no_grad()
def edge_by_hand(model, clean, corrupted, sender, receiver, via):
    """An edge from layer 0 to layer 1 by TransformerLens's hooks alone, on whole passes."""
    z, point = "blocks.0.attn.hook_z", f"blocks.1.attn.hook_{via}"
    written, kept = [], {}
    for batch in (clean, corrupted):
        hook = (z, lambda a, hook: written.append(a[:, :, sender].clone()))
        run(model, batch.tokens, hook)
    w_o = model.blocks[0].attn.W_O[sender]
    change = (written[1] - written[0]).to(w_o) @ w_o
    adding = ("blocks.1.hook_resid_pre", lambda a, hook: a + change)
    keeping = (point, lambda a, hook: kept.update(value=a[:, :, receiver].clone()))
    run(model, clean.tokens, adding, keeping)

    def put(a, hook):
        a = a.clone()
        a[:, :, receiver] = kept["value"]
        return a

    before, after = run(model, clean.tokens), run(model, clean.tokens, (point, put))
    return loss(after, clean) - loss(before, clean)


@pytest.mark.parametrize("kind", KINDS)
def test_edges_are_those_of_plain_hooks(kind, task, clean):
    corrupted = swap_exemplars(clean)
    with made(task, KINDS[kind]) as model:
        found = ih.wiring_map(model, clean, corrupted, metric="loss", per_sequence=True)
        largest = 0.0
        for v, via in enumerate("qkv"):
            for sender, receiver in ((0, 1), (1, 0)):
                expected = edge_by_hand(model, clean, corrupted, sender, receiver, via)
                near(found.effects[:, v, sender, receiver], expected, kind)
                largest = max(largest, float(expected.abs().max()))
                names = [f"L0H{sender}"], [f"L1H{receiver}"]
                one = ih.path_patch(
                    model, clean, corrupted, *names, via=via, metric="loss", per_sequence=True
                )
                near(one, expected, kind)
        assert largest > 1e-3
        assert stands_alone(model, 1) or kind not in PLAIN


@pytest.mark.parametrize("kind", NOT_SUMS)
def test_where_heads_do_not_add_up_no_edge_is_known(kind, task, clean):
    corrupted = swap_exemplars(clean)
    with made(task, NOT_SUMS[kind]) as model:
        with pytest.raises(ValueError, match=r"blocks\.0|layer 0"):
            ih.path_patch(model, clean, corrupted, ["L0H0"], "output")
        with pytest.raises(ValueError, match=r"blocks\.0|layer 0"):
            ih.wiring_map(model, clean, corrupted)
        with pytest.raises(ValueError, match=r"blocks\.0|layer 0|add up"):
            ih.patching.self_repair(model, clean, ["L0H0"])


@pytest.mark.parametrize("kind", [*KINDS, *NOT_SUMS])
def test_the_preserving_map_is_what_clamps_give(kind, task, clean):
    with made(task, (KINDS | NOT_SUMS)[kind]) as model:
        for preserve in ("patterns", "values"):
            found = ih.patching.preserving_map(
                model, clean, preserve=preserve, per_sequence=True
            ).loss
            for receiver, sender in ((0, 1), (1, 0)):
                clamps = [
                    ih.clamps.Preserve(what=[preserve]),
                    ih.clamps.AblateHeads(heads=[(1, 1 - receiver), (0, sender)]),
                ]
                expected = ih.evaluate(model, clean, clamps).loss
                near(found[:, receiver, sender], expected, kind)


@pytest.mark.parametrize("heads", [["L1H0", "L1H1"], ["L0H1", "L1H0"]], ids=["last", "mixed"])
@pytest.mark.parametrize("kind", [*KINDS, *NOT_SUMS])
def test_coalitions_are_whole_passes(kind, heads, task, clean):
    with made(task, (KINDS | NOT_SUMS)[kind]) as model, torch.no_grad():
        found = ih.coalitions(model, clean, heads, metric=["loss"], per_sequence=True).per_sequence
        assert is_linear(model) or kind not in PLAIN
        for subset in range(4):
            hooks = []
            for i, name in enumerate(heads):
                layer, head = ih.Head.parse(name)

                def silence(z, hook, head=head):
                    z = z.clone()
                    z[:, :, head] = 0
                    return z

                if not subset >> i & 1:
                    hooks.append((f"blocks.{layer}.attn.hook_z", silence))
            expected = loss(run(model, clean.tokens, *hooks), clean)
            near(torch.from_numpy(found[0][:, subset]), expected, kind)


@pytest.mark.parametrize(
    "kind", ["as it is", "subclass: scores", "method of a class", "hook on a norm"]
)
def test_a_trace_of_training_is_of_the_models_own_code(kind, task, clean):
    with made(task, KINDS[kind]) as model, torch.no_grad():
        weights = {name: p.detach() for name, p in model.named_parameters()}
        buffers, given = (
            {"embed.features": model.embed.features},
            (Sequences.of(clean, task, ()), [], []),
        )
        clamped = ClampedModel(model, [], task)
        graph = trace_forward(clamped, weights, buffers, *given)
        whole = torch.func.functional_call(clamped, named_for_model(weights, buffers), given)
        near(graph(weights, buffers, *given), whole, kind)
        near(whole, model(clean.tokens)[:, -1:], kind)


@pytest.mark.parametrize("kind", [*BROKEN, *NOT_SUMS])
def test_what_is_broken_is_said(kind, task):
    with made(task, (BROKEN | NOT_SUMS)[kind]) as model:
        if kind == "another scale" or kind == "masked scores that are not":
            return  # read from the model by whoever multiplies by it
        assert not_plain(model, parts_of(model)) is not None
    with made(task, PLAIN["as it is"]) as model:
        assert not_plain(model, parts_of(model)) is None
        copied = copy.deepcopy(model)
        assert not_plain(copied, parts_of(copied)) is None


@pytest.mark.parametrize("cap", [0.0, 1.0])
def test_repair_of_capped_logits_is_refused(cap):
    model = HookedTransformer(
        HookedTransformerConfig(
            n_layers=2, d_model=16, n_heads=4, d_head=4, n_ctx=7, d_vocab=20, attn_only=True,
            normalization_type=None, seed=0, device="cpu", output_logits_soft_cap=cap,
        )
    )  # fmt: skip
    tokens = torch.randint(0, 20, (6, 7), generator=torch.Generator().manual_seed(0))
    batch = ih.Batch(tokens, tokens[:, 0])
    if cap:
        with pytest.raises(ValueError, match="output_logits_soft_cap"):
            ih.patching.self_repair(model, batch, ["L1H1"])
        with pytest.raises(ValueError, match="output_logits_soft_cap"):
            ih.heads.copying_score_eig(model)
    else:
        assert float(ih.patching.self_repair(model, batch, ["L1H1"]).repair.abs().max()) < 1e-5


@pytest.mark.parametrize(
    "kind", ["hook on the model", "hook on the unembedding", "another last norm"]
)
def test_repair_adds_up_or_is_refused(kind, task, clean):
    with made(task, KINDS[kind]) as model:
        if kind == "hook on the model":
            with pytest.raises(ValueError, match="logits"):
                ih.patching.self_repair(model, clean, ["L0H0"])
            return
        found = ih.patching.self_repair(model, clean, ["L0H0"])
        assert_close(found.direct + found.heads + found.mlps + found.norm, found.total)
        assert float(found.direct.abs().max()) > 1e-3


@pytest.mark.parametrize(
    "kind", ["subclass: qkv", "subclass: output", "another norm", "weights of two types"]
)
def test_weights_that_are_not_used_as_they_stand_are_no_circuit(kind, task):
    with made(task, KINDS[kind]) as model:
        for score in (
            lambda: ih.heads.composition_scores(model, "K"),
            lambda: ih.heads.label_copying(model),
            lambda: ih.heads.copying_score_diag(model),
            lambda: ih.heads.qk_matching(model, torch.arange(5, 9)),
        ):
            with pytest.raises(ValueError, match=r"blocks|attn|ttention|norm|dtype"):
                score()


def test_parametrized_weights_are_read_as_they_are_used(task):
    with made(task, parametrized) as model, made(task, PLAIN["as it is"]) as turned:
        turned.blocks[1].attn.W_Q.data = turned.blocks[1].attn.W_Q.data.flip(0)
        assert_close(
            ih.heads.composition_scores(model, "Q"),
            ih.heads.composition_scores(turned, "Q"),
            equal_nan=True,
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_compose(dtype, task):
    with made(task, PLAIN["as it is"]) as model:
        for score in (ih.heads.composition_scores, ih.heads.output_composition):
            expected = score(model, "K")
            found = score(copy.deepcopy(model).to(dtype), "K")
            assert_close(found.float(), expected, rtol=0, atol=0.02, equal_nan=True)


def test_an_array_in_bfloat16_is_one_in_double_precision():
    use = torch.rand(4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert ih.patching.many_to_many(use).value == ih.patching.many_to_many(use.double()).value


def stale(model):
    new = Attention(model.cfg, "global", 0)
    new.load_state_dict(model.blocks[0].attn.state_dict())
    model.blocks[0].attn = new


def swapped(model):
    model.blocks[0], model.blocks[1] = model.blocks[1], model.blocks[0]


def twice(model):
    model.blocks[1] = model.blocks[0]
    model.setup()


def shorter(model):
    model.blocks = model.blocks[:1]
    model.setup()


UNFIT = {
    stale: "Call model.setup",
    swapped: "Call model.setup",
    twice: "cfg.n_layers=2",
    shorter: "cfg.n_layers=2",
    HookedTransformer.half: r"write model.to\(torch.float16\)",
    lambda model: model.to_empty(device="meta"): "without weights",
}


@pytest.mark.parametrize("change", UNFIT)
def test_a_model_that_is_not_what_its_cfg_and_hook_points_say_is_refused(change, task, clean):
    with made(task, PLAIN["as it is"]) as model:
        change(model)
        for measure in (
            lambda: ih.coalitions(model, clean, ["L0H1"]),
            lambda: ih.induction_strength(model, clean),
            lambda: ih.patching.preserving_ablation(model, clean, ["L0H1"], preserve="values"),
            lambda: ih.patching.self_repair(model, clean, ["L0H1"]),
        ):
            with pytest.raises(ValueError, match=UNFIT[change]):
                measure()


@pytest.mark.parametrize("weight", ["W_V", "W_Q", "W_K"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_head_of_no_numbers_spoils_only_subsets_that_have_it(weight, layer, value, task, clean):
    heads = ["L0H1", "L1H0", "L1H1"]
    with made(task, PLAIN["as it is"]) as model:
        getattr(model.blocks[layer].attn, weight).data[1] = value
        found = ih.coalitions(model, clean, heads).values
        for subset in range(8):
            off = [ih.Head.parse(head) for i, head in enumerate(heads) if not subset >> i & 1]
            hooks = [(f"blocks.{h.layer}.attn.hook_z", silence(h.head)) for h in off]
            expected = loss(run(model, clean.tokens, *hooks), clean).mean().item()
            assert found[subset] == pytest.approx(expected, abs=1e-5, nan_ok=True)
        corrupted = swap_exemplars(clean)
        edges = ih.wiring_map(model, clean, corrupted, metric="loss", per_sequence=True)
        for sender, receiver in ((0, 0), (1, 1)):
            expected = edge_by_hand(model, clean, corrupted, sender, receiver, "v")
            assert_close(
                edges.through("v")[:, sender, receiver].double(),
                expected.double(),
                rtol=0,
                atol=2e-5,
                equal_nan=True,
            )


def silence(head):
    def hook(z, hook):
        z = z.clone()
        z[:, :, head] = 0
        return z

    return hook


def test_a_head_that_writes_much_leaves_no_rounding_where_it_is_off(task, clean):
    with made(task, PLAIN["as it is"]) as model:
        model.blocks[1].attn.W_V.data[1] *= 1e7
        found = ih.coalitions(model, clean, ["L1H0", "L1H1"]).values[1]
        expected = loss(run(model, clean.tokens, ("blocks.1.attn.hook_z", silence(1))), clean)
        assert found == pytest.approx(expected.mean().item(), abs=1e-5)


@pytest.mark.parametrize("in_place", [True, False])
def test_hooks_that_write_into_what_a_layer_is_given_act_once_a_pass(in_place, task, clean):
    def halve(block, given):
        return (given[0].mul_(0.5) if in_place else given[0] * 0.5,)

    with made(task, PLAIN["as it is"]) as model:
        handle = model.blocks[1].register_forward_pre_hook(halve)
        found = ih.coalitions(model, clean, ["L1H0", "L1H1"]).values
        both = [("blocks.1.attn.hook_z", silence(head)) for head in (0, 1)]
        for subset, hooks in enumerate((both, both[1:], both[:1], [])):
            expected = loss(run(model, clean.tokens, *hooks), clean).mean().item()
            assert found[subset] == pytest.approx(expected, abs=1e-5)
        handle.remove()
        point = model.blocks[1].hook_resid_pre
        point.register_forward_hook(lambda _, __, out: out.mul_(0.5) if in_place else out * 0.5)
        corrupted = swap_exemplars(clean)
        edges = ih.wiring_map(model, clean, corrupted, metric="loss", per_sequence=True)
        expected = edge_by_hand(model, clean, corrupted, 1, 1, "k")
        assert_close(edges.through("k")[:, 1, 1], expected.float(), rtol=0, atol=2e-5)


def test_effects_behind_a_hook_that_is_not_linear_are_refused(task, clean):
    change = hooked("unembed", lambda *given: given[-1].clamp(-0.1, 0.1))
    with made(task, change) as model, pytest.raises(ValueError, match="do not add up"):
        ih.patching.self_repair(model, clean, ["L0H1"])
