"""Path patching against one forward pass an edge, with TransformerLens's split inputs.

In double precision, where the two agree to 1e-9: nothing is linearised, nothing left out.
"""

import copy

import numpy as np
import pytest
import torch
from made_models import doubled, made, randomised, state_of, with_norm
from torch.testing import assert_close

import ih_interp as ih
from ih_interp.analysis.patching.corruptions import swap_exemplars, swap_labels
from ih_interp.analysis.patching.path_patching import path_patch
from ih_interp.evaluation import measured
from ih_interp.types import Head

N = 12


@pytest.fixture(scope="module")
def clean(task):
    return task.sample("train", N, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def corrupted(clean):
    return swap_exemplars(clean)


def record(model, batch, world=()):
    """Activations of one whole pass."""
    kept = {}

    def keep(value, hook):
        kept[hook.name] = value

    names = [n for n in model.hook_dict if n.endswith(("hook_z", "hook_resid_pre"))]
    hooks = [*world, *((name, keep) for name in names)]
    with torch.no_grad():
        logits = model.run_with_hooks(batch.tokens, fwd_hooks=hooks)[:, -1]
    return logits, kept


def worlds(model, clean, corrupted, senders, ablation):
    """The clean and the corrupted run: logits, activations, tokens, hooks that make it."""
    clean_run = (*record(model, clean), clean, [])
    if ablation == "resample":
        return clean_run, (*record(model, corrupted), corrupted, [])
    _, kept = record(model, corrupted)
    hooks = []
    for layer, head in senders:
        mean = kept[f"blocks.{layer}.attn.hook_z"][:, :, head].mean(dim=0)
        value = mean if ablation == "mean" else 0 * mean

        def set_head(z, hook, head=head, value=value):
            z = z.clone()
            z[:, :, head] = value
            return z

        hooks.append((f"blocks.{layer}.attn.hook_z", set_head))
    return clean_run, (*record(model, clean, hooks), clean, hooks)


def literal(model, clean, corrupted, senders, receivers, *, via="qkv", middle=(),
            direction="noise", ablation="resample", metric="logit_difference"):  # fmt: skip
    """Split inputs, one whole pass for every path: senders, then each middle head in its order."""
    model = copy.deepcopy(model)
    clean_run, corrupted_run = worlds(model, clean, corrupted, senders, ablation)
    noise = direction == "noise"
    base, source = (clean_run, corrupted_run) if noise else (corrupted_run, clean_run)
    base_logits, base_kept, batch, world = base

    def written(kept, head):
        z = kept[f"blocks.{head[0]}.attn.hook_z"][:, :, head[1]]
        return z @ model.blocks[head[0]].attn.W_O[head[1]]

    change = {head: written(source[1], head) - written(base_kept, head) for head in senders}
    model.set_use_split_qkv_input(True)

    def reads(head, letter):
        """A hook that adds to one head's input what the patched heads below it change."""

        def add(value, hook):
            value = value.clone()
            for below, difference in change.items():
                if below[0] < head[0]:
                    value[:, :, head[1]] += difference
            return value

        return f"blocks.{head[0]}.hook_{letter}_input", add

    def run(heads, letters):
        hooks = [*world, *(reads(head, letter) for head in heads for letter in letters)]
        return record(model, batch, hooks)

    for head in sorted(middle):
        _, kept = run([head], "qkv")
        change[head] = written(kept, head) - written(base_kept, head)
    heads = [head for head in receivers if head != "output"]
    if "output" in receivers:
        top = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
        world = [*world, (top, lambda resid, hook: resid + sum(change.values()))]
    logits, _ = run(heads, via)
    return measured(metric, logits, clean) - measured(metric, base_logits, clean)


def both(model, clean, corrupted, senders, receivers, **options):
    expected = literal(model, clean, corrupted, senders, receivers, **options)
    found = path_patch(model, clean, corrupted, senders, receivers, per_sequence=True, **options)
    return found, expected


SHAPES = {
    "LN rotary": {},
    "RMS rotary": {"normalization_type": "RMS"},
    "none standard": {"normalization_type": None, "positional_embedding_type": "standard"},
    "LN standard MLP": {"positional_embedding_type": "standard", "attn_only": False},
    "three layers": {"n_layers": 3},
    "four layers MLP": {"n_layers": 4, "attn_only": False, "d_mlp": 8},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("via", ["q", "k", "v", "qkv"])
@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_an_edge_equals_a_pass_with_split_inputs(shape, via, direction, task, clean, corrupted):
    model = made(task, **SHAPES[shape])
    receiver = (model.cfg.n_layers - 1, 2)
    found, expected = both(
        model, clean, corrupted, [(0, 1)], [receiver], via=via, direction=direction
    )
    assert expected.abs().max() > 3e-4
    assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_every_ablation_with_many_heads_at_once(ablation, direction, task, clean, corrupted):
    model = made(task, n_layers=3, attn_only=False)
    found, expected = both(
        model, clean, corrupted, [(0, 0), (0, 2), (1, 1)], [(2, 0), (2, 1)],
        via="kv", direction=direction, ablation=ablation, metric="loss",
    )  # fmt: skip
    assert expected.abs().max() > 1e-3
    assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["LNPre", "RMSPre"])
def test_norms_without_weights(kind, task, clean, corrupted):
    model = with_norm(made(task), kind)
    found, expected = both(model, clean, corrupted, [(0, 1)], [(1, 0)])
    assert expected.abs().max() > 1e-3
    assert_close(found, expected, rtol=0, atol=1e-9)


def test_shortformer_positions(task, clean, corrupted):
    model = made(task, positional_embedding_type="standard")
    model.cfg.positional_embedding_type = "shortformer"
    for via in "qkv":
        found, expected = both(model, clean, corrupted, [(0, 1)], [(1, 0)], via=via)
        assert_close(found, expected, rtol=0, atol=1e-9)


MIDDLE = [
    ([(0, 1)], [(1, 0)], [(2, 2)]),
    ([(0, 1), (0, 2)], [(1, 0), (1, 2), (2, 1)], [(3, 0), (3, 1)]),
    ([(0, 1), (1, 1)], [(1, 0), (2, 0), (2, 1)], [(3, 0)]),
]


@pytest.mark.parametrize(("senders", "middle", "receivers"), MIDDLE)
@pytest.mark.parametrize("ablation", ["zero", "resample"])
@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_paths_through_middle_heads(
    senders, middle, receivers, ablation, direction, task, clean, corrupted
):
    model = made(task, n_layers=4, attn_only=False, d_mlp=8)
    options = {"via": "k", "direction": direction, "ablation": ablation}
    found, expected = both(model, clean, corrupted, senders, receivers, middle=middle, **options)
    direct = literal(model, clean, corrupted, senders, receivers, **options)
    assert (expected - direct).abs().max() > 1e-4  # the middle heads do carry something
    assert_close(found, expected, rtol=0, atol=1e-9)


def test_all_middle_heads_of_a_model_without_mlps_are_all_paths(task, clean, corrupted):
    """Then everything between sender and receiver moves, as in a pass with the sender replaced."""
    model = made(task, n_layers=3)
    everything = [(1, head) for head in range(3)]
    found = path_patch(
        model, clean, corrupted, [(0, 1)], ["output"],
        middle=[*everything, *((2, head) for head in range(3))], per_sequence=True,
    )  # fmt: skip
    _, kept = record(model, corrupted)

    def replaced(z, hook):
        z = z.clone()
        z[:, :, 1] = kept["blocks.0.attn.hook_z"][:, :, 1]
        return z

    base, _ = record(model, clean)
    logits, _ = record(model, clean, [("blocks.0.attn.hook_z", replaced)])
    name = "logit_difference"
    assert_close(
        found, measured(name, logits, clean) - measured(name, base, clean), atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_the_output_is_a_receiver(direction, task, clean, corrupted):
    model = made(task, attn_only=False)
    for senders in ([(0, 1)], [(0, 2), (1, 1)]):
        found, expected = both(model, clean, corrupted, senders, ["output"], direction=direction)
        assert expected.abs().max() > 1e-3
        assert_close(found, expected, rtol=0, atol=1e-9)


CLAMPS = {
    "induction above": [ih.clamps.InductionAttention(heads=["L1H1"], strength=0.9)],
    "ablated": [ih.clamps.AblateHeads(heads=["L0H0", "L1H2"])],
    "previous token below": [ih.clamps.PreviousTokenAttention(heads=["L0H1"])],
    "several": [
        ih.clamps.PreviousTokenAttention(heads=["L0H1"], strength=0.7),
        ih.clamps.AttentionTemperature(heads=["L1H0"], temperature=0.5),
        ih.clamps.AblateHeads(heads=["L1H1"]),
    ],
}


def under_clamps_literally(model, clean, corrupted, clamps, via):
    """Clamps act in the corrupted run as made for the clean batch: hooks put on by hand."""
    from ih_interp.clamps.base import Setting, Shape
    from ih_interp.clamps.context import in_order

    hooks = []
    for clamp in in_order(clamps):
        hooks += clamp.hooks(Setting(model, clean, clamp.tensors(Shape.of(model))))
    with model.hooks(fwd_hooks=hooks):
        return literal(model, clean, corrupted, [(0, 1)], [(1, 0)], via=via)


@pytest.mark.parametrize("name", CLAMPS)
@pytest.mark.parametrize("via", ["q", "k", "v"])
def test_clamps_act_in_every_run(name, via, task, clean, corrupted):
    model, clamps = made(task), CLAMPS[name]
    twin = copy.deepcopy(model)
    expected = under_clamps_literally(twin, clean, corrupted, clamps, via)
    with ih.clamped(model, clamps, clean):
        found = path_patch(model, clean, corrupted, [(0, 1)], [(1, 0)], via=via, per_sequence=True)
    free = path_patch(model, clean, corrupted, [(0, 1)], [(1, 0)], via=via, per_sequence=True)
    assert_close(found, expected, rtol=0, atol=1e-9)
    assert (found - free).abs().max() > 1e-4


@pytest.mark.parametrize("letter", ["q", "k", "v"])
def test_a_receiver_whose_input_is_clamped_hears_nothing(letter, task, clean, corrupted):
    model = made(task)
    name = f"blocks.1.attn.hook_{letter}"
    with model.hooks(fwd_hooks=[(name, lambda value, hook: 0 * value)]):
        effect = path_patch(model, clean, corrupted, [(0, 1)], [(1, 0)], via=letter)
        rest = path_patch(model, clean, corrupted, [(0, 1)], [(1, 0)], via="v")
    assert float(effect) == 0
    assert letter == "v" or float(rest) != 0


def test_chunks_do_not_matter(task, clean, corrupted, monkeypatch):
    model = made(task)
    for options in ({}, {"ablation": "mean"}, {"normalise": True, "direction": "denoise"}):
        whole = path_patch(model, clean, corrupted, [(0, 1)], [(1, 0)], **options)
        with monkeypatch.context() as patch:
            patch.setattr("ih_interp.clamps._active.CHUNK", 5)
            assert_close(path_patch(model, clean, corrupted, [(0, 1)], [(1, 0)], **options), whole)


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_every_edge_together_carries_all_in_both_directions(ablation, task, clean, corrupted):
    """In two layers without MLPs, all edges out of all of layer 0 are all that a corruption does.

    For resampling the embedding differs too, so there only the ablations are complete.
    """
    model = made(task)
    every = {
        "senders": [(0, h) for h in range(3)],
        "receivers": [*[(1, h) for h in range(3)], "output"],
    }
    shares = [
        float(path_patch(model, clean, corrupted, **every, direction=direction, ablation=ablation,
                         normalise=True))
        for direction in ("noise", "denoise")
    ]  # fmt: skip
    if ablation == "resample":
        assert abs(shares[0] - 1) > 1e-3
    else:
        assert shares == pytest.approx([1, 1], abs=1e-4)


def test_normalised_effects_are_shares_of_the_mean_difference(task, clean, corrupted):
    model = made(task)
    plain = path_patch(model, clean, corrupted, [(0, 1)], [(1, 0)], per_sequence=True)
    each = path_patch(
        model, clean, corrupted, [(0, 1)], [(1, 0)], per_sequence=True, normalise=True
    )
    runs = [measured("logit_difference", record(model, b)[0], clean)
            for b in (corrupted, clean)]  # fmt: skip
    assert_close(each, plain / (runs[0] - runs[1]).mean())


def test_labels_can_be_swapped_too(task, clean):
    model = made(task)
    found, expected = both(model, clean, swap_labels(clean), [(0, 1)], [(1, 0)], via="v")
    assert expected.abs().max() > 1e-3
    assert_close(found, expected, rtol=0, atol=1e-9)


def test_a_plain_language_model(corrupted):
    """No task, no few-shot embedding; a metric of one's own."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    cfg = HookedTransformerConfig(
        n_layers=2, d_model=8, n_ctx=10, d_head=4, n_heads=2, d_vocab=30, act_fn="gelu",
        device="cpu",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = doubled(randomised(HookedTransformer(cfg, move_to_device=False)))
    tokens = torch.arange(40).reshape(5, 8) * 7 % 30
    clean, other = ih.Batch(tokens, tokens[:, 0]), ih.Batch(tokens.flip(0), tokens[:, 0])

    def first_logit(logits, batch):
        return logits[:, 0]

    model.cfg.use_attn_result = False
    found, expected = both(model, clean, other, [(0, 1)], [(1, 0)], metric=first_logit)
    assert_close(found, expected, rtol=0, atol=1e-9)
    model.set_use_attn_result(True)
    again = path_patch(
        model, clean, other, [(0, 1)], [(1, 0)], metric=first_logit, per_sequence=True
    )
    assert_close(again, expected, rtol=0, atol=1e-9)


def test_hooks_are_found_as_they_were_after_an_error_too(task, clean, corrupted):
    model, seen = made(task, n_layers=3), []
    model.add_hook("hook_embed", lambda value, hook: seen.append(hook.name))
    before = state_of(model)
    options = {"middle": [(1, 0)], "ablation": "zero", "direction": "denoise"}
    path_patch(model, clean, corrupted, [(0, 1)], [(2, 0), "output"], **options)
    assert state_of(model) == before
    assert seen

    def broken(logits, batch):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        path_patch(model, clean, corrupted, [(0, 1)], [(2, 0)], metric=broken, **options)
    model.add_hook("blocks.2.attn.hook_q", lambda value, hook: broken(value, None))
    before = state_of(model)
    with pytest.raises(RuntimeError, match="broken"):
        path_patch(model, clean, corrupted, [(0, 1)], [(2, 0)], **options)
    assert state_of(model) == before


REFUSED = {
    "L0H1": {"senders": ["L0H1", (0, 1)]},
    "L0H9": {"senders": ["L0H9"]},
    "Senders": {"senders": ["L1H0"], "receivers": ["L1H1"]},
    "Middle": {"middle": ["L1H0"]},
    "at least one": {"receivers": []},
    "via='x'": {"via": "x"},
    "direction='back'": {"direction": "back"},
    "corrupted=None": {"corrupted": None},
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_no_edge_is_refused(words, task, clean, corrupted):
    given = {"corrupted": corrupted, "senders": ["L0H1"], "receivers": ["L1H0"], **REFUSED[words]}
    with pytest.raises(ValueError, match=words):
        path_patch(made(task), clean, **given)


def test_other_shapes_and_lengths_are_refused(task, clean, corrupted):
    model = made(task)
    with pytest.raises(ValueError, match="corrupted"):
        path_patch(model, clean, corrupted[:3], ["L0H1"], ["L1H0"])
    with pytest.raises(TypeError, match="senders='L0H1'"):
        path_patch(model, clean, corrupted, "L0H1", ["L1H0"])
    tokens, targets = clean.tokens, clean.target[:, None].expand(-1, 5)
    short = torch.where(torch.arange(5) < 3, targets, -100)
    longer, shorter = (ih.Batch(tokens, short, lengths=torch.full((N,), n)) for n in (4, 3))
    with pytest.raises(ValueError, match="lengths"):
        path_patch(model, longer, shorter, ["L0H1"], ["L1H0"])
    model.cfg.use_normalization_before_and_after = True
    with pytest.raises(ValueError, match="normalises what attention writes"):
        path_patch(model, clean, corrupted, ["L0H1"], ["L1H0"])


def test_a_clamp_that_cuts_the_stream_is_refused(task, clean, corrupted):
    model = made(task)
    with (
        pytest.raises(ValueError, match="hook_resid_pre"),
        ih.clamped(model, [ih.clamps.PerfectLayerOne()], clean),
    ):
        path_patch(model, clean, corrupted, ["L0H1"], ["L1H0"])


def test_identical_runs_have_no_difference_to_share(task, clean):
    with pytest.raises(ValueError, match="normalise"):
        path_patch(made(task), clean, clean, ["L0H1"], ["L1H0"], normalise=True)


def test_heads_are_named_in_every_way(task, clean, corrupted):
    model = made(task)
    found = {
        float(path_patch(model, clean, corrupted, [sender], [receiver]))
        for sender, receiver in (("L0H1", "L1H0"), ((0, 1), (1, 0)), (Head(0, 1), Head(1, 0)))
    }
    for rows in (np.array, torch.tensor):
        found |= {float(path_patch(model, clean, corrupted, rows([[0, 1]]), rows([[1, 0]])))}
    assert len(found) == 1


def test_the_output_may_be_named_without_a_list(task, clean, corrupted):
    model = made(task)
    listed = path_patch(model, clean, corrupted, ["L0H0"], ["output"])
    assert torch.equal(path_patch(model, clean, corrupted, ["L0H0"], "output"), listed)
    with pytest.raises(TypeError, match="receivers"):
        path_patch(model, clean, corrupted, ["L0H0"], "L1H0")
