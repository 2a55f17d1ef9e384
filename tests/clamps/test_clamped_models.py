"""Clamps on models and in passes other than the plain one: the right numbers, or words."""

import copy
import pickle
import re
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from clamp_laws import EVERY_CLAMP, every_clamp, gradients_under, hook_counts, logits_under
from small_runs import FOUR_UPDATES
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.testing import assert_close
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

from ih_interp import clamps, hooks
from ih_interp.batch import Batch
from ih_interp.clamps import (
    AblateEmbedding,
    AblateHeads,
    AbstractClamp,
    AttentionTemperature,
    ForbidPreviousToken,
    Freeze,
    HeadClamp,
    PerfectMatchAndCopy,
    Preserve,
    PreviousTokenAttention,
    Setting,
    Shape,
    SimilarityAttention,
    Site,
    clamped,
    during,
    ramp,
)
from ih_interp.clamps.base import Hook
from ih_interp.config import RunConfig
from ih_interp.evaluation import evaluate
from ih_interp.model import ModelConfig, build_model
from ih_interp.tasks.few_shot import FewShotTask, TaskConfig
from ih_interp.training.state import TrainingFailedError
from ih_interp.training.train import train

ABLATE = AblateHeads(heads=["L1H0", "L1H1"])
ANY_TOKENS: list[AbstractClamp] = [
    AblateHeads(heads=["L0H1", "L1H3"]),
    AblateEmbedding(),
    AttentionTemperature(heads=["L0H0", "L1H2"], temperature=0.3),
    PreviousTokenAttention(heads=["L0H0"]),
    PreviousTokenAttention(heads=["L1H0", "L1H3"], strength=0.7),
    PreviousTokenAttention(heads=["L0H2"], queries="labels"),
    ForbidPreviousToken(heads=["L0H0", "L1H1"]),
    ForbidPreviousToken(heads=["L1H0"], queries="labels"),
]
"""Those that need no batch, on models of four heads."""
every_clamp_on_tokens = pytest.mark.parametrize("clamp", ANY_TOKENS, ids=str)


def plain(**fields: Any) -> HookedTransformer:
    """A model that this package did not make, with random weights, gains and biases."""
    shape = {"n_layers": 2, "d_model": 16, "n_heads": 4, "d_head": 4, "n_ctx": 24, "d_vocab": 20}
    cfg = HookedTransformerConfig(**(shape | {"attn_only": True, "seed": 0} | fields))
    return disturbed(HookedTransformer(cfg)).eval()


def disturbed(model: HookedTransformer, size: float = 0.3) -> HookedTransformer:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return model


TOKENS = torch.randint(20, (3, 7), generator=torch.Generator().manual_seed(1))


# Dtypes


@every_clamp
@pytest.mark.parametrize("gate", [None, 0.5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_every_clamp_serves_other_precisions(clamp, gate, dtype, task, batch):
    is_whole = gate is None or isinstance(clamp, Freeze)  # parameters are frozen or not
    given = clamp if is_whole else gated(clamp, gate)
    narrow = disturbed(build_model(task), 0.1).to(dtype)
    wide = copy.deepcopy(narrow).to(torch.float32)  # the same rounded weights
    logits = logits_under(narrow, [given], batch, step=0)
    assert logits.dtype == dtype
    expected = logits_under(wide, [given], batch, step=0)[:, -1].softmax(dim=-1)
    assert_close(logits[:, -1].float().softmax(dim=-1), expected, rtol=0, atol=0.02)
    gradients = gradients_under(narrow, [given], batch, step=0)
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def gated(clamp: AbstractClamp, gate: float) -> AbstractClamp:
    return clamp.model_copy(update={"schedule": ramp(0, 1, low=gate, high=gate)})


def sharpened(scores: Tensor, temperature: float) -> Tensor:
    """The softmax of scores / temperature in Python's numbers, row by row."""
    rows = [
        [s / temperature if np.isfinite(s) else -np.inf for s in row]
        for row in scores.double().flatten(end_dim=-2).tolist()
    ]
    shifted = np.array([[s - max(row) for s in row] for row in rows])
    weights = np.exp(np.maximum(shifted, -1e4))
    return torch.tensor(weights / weights.sum(axis=1, keepdims=True)).reshape(scores.shape)


TEMPERATURES = (1e-30, 1e-20, 1e-5, 1e-3, 0.5, 7e4, 1e20, 1e30)


@pytest.mark.parametrize("gate", [None, 1.0])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_scores_at_any_temperature_are_softmaxes(dtype, temperature, gate):
    scores = torch.tensor([[0.0, 80.0, -3.0], [5.0, 5.0, 4.0], [0.0, 0.0, -60.0]], dtype=dtype)
    scores = scores.masked_fill(torch.ones(3, 3).triu(2).bool(), -torch.inf)[None, None]
    changed = hooks.attention_temperature(
        scores, hooks.HookPoint(), heads=hooks.mask([0], 1), temperature=temperature, gate=gate
    )
    assert changed.dtype == dtype
    expected = sharpened(scores, temperature)
    assert_close(changed.double().softmax(dim=-1), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_matches_at_any_temperature_are_softmaxes(dtype, temperature):
    similarity = torch.tensor([[0.5, -0.25, 0.5], [0.9, 1.0, -1.0]], dtype=dtype)
    weights = hooks.match_weights(similarity, torch.tensor(temperature), hard=False)
    assert_close(weights.double(), sharpened(similarity, temperature), rtol=0, atol=0.02)


@pytest.mark.parametrize("temperature", [1e-46, 1e-39, 1e-31, 1e31, 1e39, 1e300])
@pytest.mark.parametrize(
    "make",
    [
        lambda t: AttentionTemperature(heads=["L0H0"], temperature=t),
        lambda t: SimilarityAttention(heads=["L0H0"], temperature=t),
        lambda t: PerfectMatchAndCopy(temperature=t),
        lambda t: hooks.match_weights(torch.zeros(1, 2), t, hard=False),
        lambda t: hooks.match_weights(torch.zeros(1, 2), torch.tensor(t), hard=False),
        lambda t: hooks.attention_temperature(
            torch.zeros(1, 1, 2, 2), hooks.HookPoint(), heads=hooks.mask([0], 1), temperature=t
        ),
    ],
)
def test_temperatures_whose_quotients_are_no_numbers_are_refused(make, temperature):
    with pytest.raises(ValueError, match="temperature"):
        make(temperature)


@pytest.mark.parametrize(
    ("dtype", "temperature"), [(torch.float32, 1e-9), (torch.float16, 1e-5)], ids=str
)
def test_a_copied_match_has_to_stay_above_the_masked_labels(dtype, temperature, model, batch):
    model = model.to(dtype)
    with (
        pytest.raises(ValueError, match="temperature=1e-"),
        clamped(model, [PerfectMatchAndCopy(temperature=temperature)], batch),
    ):
        pass
    logits = logits_under(model, [PerfectMatchAndCopy(temperature=temperature * 10)], batch)
    shown = logits[:, -1].float().softmax(dim=-1).gather(1, batch.context_labels)
    assert_close(shown.sum(dim=1), torch.ones(len(batch)))


# Keys in a cache, padding, other passes


def in_parts(model: HookedTransformer, tokens: Tensor, *lengths: int) -> Tensor:
    """Logits of passes that continue one another with cached keys and values."""
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", len(tokens))
    return torch.cat(
        [
            model(part, past_kv_cache=cache, attention_mask=torch.ones_like(part))
            for part in tokens.split(lengths, dim=1)
        ],
        dim=1,
    )


@torch.no_grad()
@every_clamp_on_tokens
def test_passes_with_cached_keys_are_the_whole_pass(clamp):
    model = plain()
    with clamped(model, [clamp]):
        whole = model(TOKENS)
        for lengths in (6, 1), (3, 4), (1,) * 7, (2, 3, 2):
            assert_close(in_parts(model, TOKENS, *lengths), whole)


@every_clamp
def test_clamps_on_sequences_refuse_passes_of_parts(clamp, model, batch):
    if not clamp.needs_batch:
        return

    def run() -> None:
        with clamped(model, [clamp], batch):
            in_parts(model, batch.tokens, 4, 1)

    with pytest.raises(ValueError, match="another batch"):
        run()


@torch.no_grad()
@every_clamp_on_tokens
def test_padding_on_the_left_is_no_previous_token(clamp):
    model = plain()
    if getattr(clamp, "queries", "all") == "labels":
        return  # positions of labels are counted from the left
    padded = torch.cat([torch.zeros(3, 2, dtype=torch.int64), TOKENS], dim=1)
    mask = torch.tensor([0, 0] + [1] * 7).expand(3, -1)
    with clamped(model, [clamp]):
        assert_close(model(padded, attention_mask=mask)[:, 2:], model(TOKENS))


def test_a_pass_of_other_sequences_from_a_layer_on_is_refused(model, batch):
    resid = model(batch.tokens, stop_at_layer=1)

    def run(n: int) -> None:
        with clamped(model, [clamps.match("L1H3"), Preserve(what=["values"])], batch):
            model(batch.tokens)
            model(resid[:n], start_at_layer=1)

    run(len(batch))
    # With jaxtyping on, as here, it refuses first; without, the package does.
    with pytest.raises((ValueError, TypeError), match=r"expected the same|jaxtyping"):
        run(1)


@pytest.mark.parametrize("n_key_value_heads", [1, 2, 4])
@every_clamp_on_tokens
def test_shared_keys_and_values_are_those_of_a_model_with_copies(clamp, n_key_value_heads):
    grouped, full = plain(n_key_value_heads=n_key_value_heads), plain()
    given = grouped.state_dict()
    for layer in range(2):
        for name in ("W_K", "W_V", "b_K", "b_V"):
            shared = given.pop(f"blocks.{layer}.attn._{name}")
            copies = shared.repeat_interleave(4 // n_key_value_heads, dim=0)
            given[f"blocks.{layer}.attn.{name}"] = copies
    full.load_state_dict(given)
    with clamped(grouped, [clamp]), clamped(full, [clamp]):
        assert_close(grouped(TOKENS), full(TOKENS))


def test_a_mask_of_other_heads_than_the_activations_is_refused():
    with pytest.raises((ValueError, TypeError), match=r"4 heads .* 1|jaxtyping"):
        hooks.zero_heads(torch.ones(1, 3, 1, 2), hooks.HookPoint(), heads=hooks.mask([0], 4))


@pytest.mark.parametrize("heads", [[-1], [4], [True, False], [1.0]], ids=str)
def test_masks_name_what_there_is(heads):
    with pytest.raises((ValueError, TypeError)):
        hooks.mask(heads, 4)


# Copies, and hooks that others take off


def copied(model: HookedTransformer) -> HookedTransformer:
    return copy.deepcopy(model)


def pickled(model: HookedTransformer) -> HookedTransformer:
    return pickle.loads(pickle.dumps(model))


@every_clamp
@pytest.mark.parametrize("duplicate", [copied, pickled])
def test_a_copy_made_inside_is_free(duplicate, clamp, model, batch):
    free = model(batch.tokens)
    with clamped(model, [clamp], batch):
        under = model(batch.tokens)
        other = duplicate(model)
        assert torch.equal(other(batch.tokens), free)
        other(batch.tokens[:3])  # not even bound to the batch
        assert torch.equal(model(batch.tokens), under)
    assert torch.equal(other(batch.tokens), free)
    assert torch.equal(logits_under(other, [clamp], batch), under)


def nested(model: HookedTransformer) -> None:
    with model.hooks(fwd_hooks=[("hook_embed", lambda activation, hook: None)]):
        model.add_hook("hook_embed", lambda activation, hook: None)
        model.remove_all_hook_fns("both", including_permanent=True)


RESETS: dict[str, Callable[[HookedTransformer], object]] = {
    "reset": lambda model: model.reset_hooks(),
    "reset, permanent ones too": lambda model: model.reset_hooks(including_permanent=True),
    "with other hooks": nested,
    "a point's": lambda model: model.hook_dict["blocks.1.attn.hook_v"].remove_hooks("both", True),
}


@every_clamp
def test_clamps_stay_on_where_other_hooks_are_taken_off(clamp, model, batch):
    under, before = logits_under(model, [clamp], batch), hook_counts(model)
    for name, reset in RESETS.items():
        with clamped(model, [clamp], batch):
            model(batch.tokens)
            reset(model)
            assert torch.equal(model(batch.tokens), under), name
        assert hook_counts(model) == before, name


def cleared(model: HookedTransformer) -> None:
    for module in model.modules():
        module._forward_hooks.clear()


def one_cleared(model: HookedTransformer) -> None:
    model.blocks[1].attn.hook_v._forward_hooks.popitem()


def replaced(model: HookedTransformer) -> None:
    model.blocks[1].attn = copy.deepcopy(model.blocks[1].attn)


def point_replaced(model: HookedTransformer) -> None:
    model.blocks[1].attn.hook_v = type(model.blocks[1].attn.hook_v)()


@pytest.mark.parametrize("take_off", [cleared, one_cleared, replaced, point_replaced])
@pytest.mark.parametrize("then", ["the block ends", "an evaluation"])
def test_a_clamp_that_was_taken_off_is_noticed(take_off, then, model, batch):
    def run() -> None:
        with clamped(model, [ABLATE], batch):
            model(batch.tokens)
            take_off(model)
            if then == "an evaluation":
                evaluate(model, batch)
                pytest.fail("evaluated without the clamp")

    with pytest.raises(ValueError, match=r"blocks\.1\.attn\.hook_v"):
        run()


def test_a_module_put_back_after_the_block_is_free(model, batch):
    free, attention = model(batch.tokens), model.blocks[1].attn

    def run() -> None:
        with clamped(model, [ABLATE], batch):
            model(batch.tokens)
            replaced(model)

    with pytest.raises(ValueError, match="no longer on"):
        run()
    model.blocks[1].attn = attention
    assert torch.equal(model(batch.tokens), free)


def test_networks_are_mapped_over_inside_a_block(task, batch):
    models = [build_model(task, seed=seed) for seed in (5, 6)]
    parameters, buffers = stack_module_state(models)  # pyright: ignore[reportArgumentType]
    for clamp in EVERY_CLAMP:
        expected = torch.stack([logits_under(model, [clamp], batch) for model in models])
        if clamp.kind in ("preserve", "perfect_layer_one"):
            continue  # what they set was computed with one network's weights

        def logits(p: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
            return functional_call(models[0], (p, b), (batch.tokens,))

        with clamped(models[0], [clamp], batch), torch.no_grad():
            assert_close(vmap(logits)(parameters, buffers), expected)


def test_mapped_tokens_cannot_be_compared_with_the_batch(model, batch):
    def run() -> None:
        with clamped(model, [clamps.match("L1H3")], batch):
            vmap(lambda tokens: model(tokens))(batch.tokens[None])

    with pytest.raises(ValueError, match="vmap"):
        run()


# Batches as they stand


@pytest.mark.parametrize("n", [4_096, 4_097])
def test_the_batch_of_the_block_is_evaluated_whole(n, model, task):
    batch = task.sample("train", n, generator=torch.Generator().manual_seed(0))
    expected = evaluate(model, batch, [clamps.match("L1H3")]).loss
    with clamped(model, [clamps.match("L1H3")], batch):
        assert_close(evaluate(model, batch).loss, expected)
        assert_close(evaluate(model, batch, chunk=1_000).loss, expected)
        with clamped(model, [AblateHeads(heads=["L0H0"])]):
            evaluate(model, batch)


# Clamps of one's own


class Double(AbstractClamp):
    """The embedding twice as long; knows nothing of schedules."""

    kind: str = "double"
    head: int = 0

    def sites(self, shape: Shape) -> frozenset[Site]:
        del shape
        return frozenset({Site("embed", -1, self.head)})

    def hooks(self, setting: Setting) -> list[Hook]:
        del setting
        return [("hook_embed", lambda activation, hook: 2 * activation)]


class InPlace(Double):
    """The same, written into what the hook is given."""

    kind: str = "double_in_place"

    def hooks(self, setting: Setting) -> list[Hook]:
        del setting
        return [("hook_embed", lambda activation, hook: activation.mul_(2))]


class Silent(InPlace):
    """The same, without returning it."""

    kind: str = "double_silently"

    def hooks(self, setting: Setting) -> list[Hook]:
        def double(activation: Tensor, hook: object) -> None:
            activation.mul_(2)

        return [("hook_embed", double)]


class Louder(HeadClamp):
    """Three times the heads' values."""

    kind: str = "louder"
    sets = "v"

    def hooks(self, setting: Setting) -> list[Hook]:
        def louder(v: Tensor, hook: object, heads: Tensor) -> Tensor:
            return torch.where(heads[:, None], 3 * v, v)

        return self.at_each_layer(setting, "hook_v", louder)


class Constant(Double):
    """Reads the batch without saying so."""

    kind: str = "constant"

    def hooks(self, setting: Setting) -> list[Hook]:
        value = setting.model.embed(setting.sequences.tokens).flip(0)
        return [("hook_embed", lambda activation, hook: value[: len(activation)])]


class Wrong(Double):
    """Names no hook point."""

    kind: str = "wrong"

    def hooks(self, setting: Setting) -> list[Hook]:
        return [("hook_embedding", lambda activation, hook: activation)]


class Narrow(Double):
    """Gives another shape, which would broadcast."""

    kind: str = "narrow"

    def hooks(self, setting: Setting) -> list[Hook]:
        return [("hook_embed", lambda activation, hook: activation[:1])]


def doubled(model: HookedTransformer, batch: Batch) -> Tensor:
    hook = ("hook_embed", lambda activation, hook: 2 * activation)
    return model.run_with_hooks(batch.tokens, fwd_hooks=[hook])


every_double = pytest.mark.parametrize(
    "clamp", [Double(), InPlace(), Silent()], ids=lambda c: c.kind
)


@every_double
def test_ones_own_clamp_acts(clamp, task, batch):
    model = build_model(task, seed=5)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        assert torch.equal(logits_under(model, [clamp], batch), doubled(model, batch))
        both = logits_under(model, [clamp, ABLATE], batch)
        assert torch.equal(both, logits_under(model, [ABLATE, clamp], batch))
    assert not torch.equal(both, doubled(model, batch))


@every_double
@pytest.mark.parametrize("gate", [0.0, 0.25, 1.0])
def test_the_library_blends_ones_own_clamp(clamp, gate, model, batch):
    hook = ("hook_embed", lambda activation, hook: (1 + gate) * activation)
    expected = model.run_with_hooks(batch.tokens, fwd_hooks=[hook])
    with torch.no_grad():
        found = logits_under(model, [gated(clamp, gate)], batch, step=0)
    assert_close(found, expected)
    assert gate == 0.25 or torch.equal(found, expected)


@pytest.mark.parametrize("gate", [0.0, 0.5, 1.0])
def test_what_a_function_masks_with_infinity_is_blended_too(gate, model, batch):
    def mask(scores: Tensor, hook: object) -> Tensor:
        return scores.masked_fill(torch.eye(5, dtype=torch.bool).roll(-1, 1).tril(-1), -torch.inf)

    clamp = gated(own([("blocks.0.attn.hook_attn_scores", mask)]), gate)
    expected = [ForbidPreviousToken(heads=[(0, n) for n in range(8)])] if gate else []
    assert_close(logits_under(model, [clamp], batch, 0), logits_under(model, expected, batch))
    assert all(g.isfinite().all() for g in gradients_under(model, [clamp], batch, 0).values())


@pytest.mark.parametrize(
    ("clamp", "words"),
    [
        (Double(head=9), "layers and heads"),
        (Louder(heads=["L0H9"]), "no head L0H9"),
        (Louder(heads=["L2H0"], schedule=during(9)), "no head L2H0"),
        (Wrong(), "'hook_embedding'"),
        (Narrow(), r"of shape \(1, 5, 64\)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_traps_of_ones_own_clamps_are_told(clamp, words, model, batch):
    before = hook_counts(model)
    with pytest.raises(ValueError, match=words):
        logits_under(model, [clamp], batch)
    assert hook_counts(model) == before


def test_ones_own_clamp_is_bound_to_the_batch_that_it_was_given(model, batch):
    def run(tokens: Tensor) -> None:
        with clamped(model, [Constant()], batch):
            model(tokens)

    run(batch.tokens)
    with pytest.raises(ValueError, match="another batch"):
        run(batch.tokens[:4])


class Misplaced(HeadClamp):
    """Takes the axis of positions for that of heads."""

    kind: str = "misplaced"
    sets = "z"
    takes_gate: bool = False

    def hooks(self, setting: Setting) -> list[Hook]:
        def misplaced(z: Tensor, hook: object, heads: Tensor) -> Tensor:
            return torch.where(heads[:, None, None], 2 * z, z)

        def blending(z: Tensor, hook: object, heads: Tensor, gate: object = None) -> Tensor:
            return misplaced(z, hook, heads)

        function = blending if self.takes_gate else misplaced
        return self.at_each_layer(setting, "hook_z", function)


NAMED = r"misplaced\(.*hook_z, .* shape \({}, 5, 8, 8\)"
"""The clamp, the hook point and the shape of its activation."""


@pytest.mark.parametrize("takes_gate", [False, True])
@pytest.mark.parametrize("schedule", [clamps.always(), during(9)], ids=str)
def test_an_error_in_ones_own_function_names_the_clamp(takes_gate, schedule, model, batch):
    clamp = Misplaced(heads=["L1H3"], takes_gate=takes_gate, schedule=schedule)
    with pytest.raises(RuntimeError, match="size of tensor") as failure:
        logits_under(model, [clamp], batch, step=0)
    (note,) = failure.value.__notes__
    assert re.search(NAMED.format(len(batch)), note), note


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_a_run_that_fails_in_ones_own_function_names_the_clamp(engine, tmp_path):
    config = FOUR_UPDATES.replace(clamps=[Misplaced(heads=["L1H3"])])
    # What cannot be compiled is tried eagerly, with a warning.
    warned = pytest.warns(UserWarning, match="eagerly") if engine == "compiled" else nullcontext()
    with warned, pytest.raises(TrainingFailedError, match=NAMED.format(r"\d+")):
        train(config, tmp_path, engine=engine, progress=False)


def test_a_function_that_takes_the_gate_has_to_keep_the_shape(model, batch):
    clamp = own([(POINT, lambda z, hook, gate=None: z[:1])])
    with pytest.raises(ValueError, match=r"own\(.*of shape \(1, 5, 8, 8\)"):
        logits_under(model, [clamp], batch)


def test_a_clamp_on_heads_that_does_not_say_what_it_sets_is_told_how(model, batch):
    class Unsaid(Louder):
        kind: str = "unsaid"
        sets = ""

    with pytest.raises(TypeError, match='sets = "z"'):
        logits_under(model, [Unsaid(heads=["L0H0"])], batch)


@pytest.mark.parametrize(
    ("point", "switch"),
    [
        ("attn.hook_result", "use_attn_result"),
        ("hook_attn_in", "use_attn_in"),
        ("hook_k_input", "use_split_qkv_input"),
        ("hook_mlp_in", "use_hook_mlp_in"),
    ],
)
def test_a_point_whose_switch_is_off_is_told_with_the_switch(point, switch, exemplars):
    task = FewShotTask(exemplars, TaskConfig(n_train_classes=12))
    model = build_model(task, ModelConfig(attn_only=False), seed=5)
    batch = task.sample("train", 2, seed=0)
    clamp = own([(f"blocks.1.{point}", halve)])
    with pytest.raises(ValueError, match=rf"never fired.*cfg\.{switch} is off"):
        logits_under(model, [clamp], batch)
    getattr(model, f"set_{switch}")(True)  # as the message says
    assert not torch.equal(logits_under(model, [clamp], batch), model(batch.tokens))


@pytest.mark.parametrize("clamp", [Double(head=1), Louder(heads=["L0H0"])], ids=str)
def test_ones_own_clamp_is_json(clamp):
    assert clamps.parse(clamps.dump([clamp])) == (clamp,)
    assert RunConfig.load(RunConfig(clamps=[clamp]).save()).clamps == (clamp,)


Z = frozenset({Site("z", 1)})


def own(hooks, sites=Z):
    class Own(Double):
        kind: str = "own"

        def sites(self, shape):
            return sites

        def hooks(self, setting):
            return hooks() if callable(hooks) else hooks

    return Own()


def halve(activation, hook):
    return activation * 0.5


POINT = "blocks.1.attn.hook_z"


@pytest.mark.parametrize(
    ("clamp", "words"),
    [
        (own([(POINT, lambda z, hook: z.numpy())]), "hook_z"),
        (own([(POINT, lambda z, hook: 0.5)]), "hook_z"),
        (own([(POINT, lambda z, hook: z.int())]), "hook_z"),
        (own([(POINT, lambda z, hook: z.to("meta"))]), "hook_z"),
        (own([(POINT, lambda z: z)]), "hook point"),
        (own([(POINT, 0.5)]), "hook point"),
        (own((POINT, halve)), "hook point"),
        (own(None), "hook point"),
        (own([], sites={"z"}), "sites"),
        (own([], sites=set()), "sites"),
        (own([], sites=None), "sites"),
    ],
)
def test_what_ones_own_clamp_gives_wrongly_is_said(clamp, words, model, batch):
    with pytest.raises((TypeError, ValueError), match=words):
        evaluate(model, batch, [clamp])


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_hooks_of_ones_own_clamp_may_come_one_by_one(kind, model, batch):
    found = evaluate(model, batch, [own(lambda: kind([(POINT, halve)]))]).loss
    logits = model.run_with_hooks(batch.tokens, fwd_hooks=[(POINT, halve)])[:, -1]
    expected = -logits.log_softmax(-1).gather(1, batch.target[:, None])[:, 0]
    torch.testing.assert_close(found, expected.detach())


def test_blocks_may_be_left_in_another_order_than_they_were_entered(model, batch):
    blocks = [clamped(model, [AblateHeads(heads=[head])], batch) for head in ("L1H0", "L1H1")]
    for block in blocks:
        block.__enter__()
    model(batch.tokens)
    blocks[0].__exit__(None, None, None)
    second = evaluate(model, batch).loss
    blocks[1].__exit__(None, None, None)
    expected = evaluate(model, batch, [AblateHeads(heads=["L1H1"])]).loss
    torch.testing.assert_close(second, expected)


def stepped(model, batch):
    with torch.no_grad():
        model.blocks[0].attn.W_Q.mul_(2)
    model(batch.tokens)


def substituted(model, batch):
    weights = {name: 2 * p.detach() for name, p in model.named_parameters()}
    functional_call(model, weights, (batch.tokens,))


@pytest.mark.parametrize("change", [stepped, substituted])
@pytest.mark.parametrize(
    "clamp", [Preserve(what=("patterns",)), clamps.layer_one()], ids=lambda clamp: clamp.kind
)
def test_other_weights_than_those_of_the_pass_that_was_read_are_refused(
    change, clamp, model, batch
):
    with clamped(model, [clamp, AblateHeads(heads=["L1H3"])], batch):
        model(batch.tokens)
        with pytest.raises(ValueError, match="enter clamped"):
            change(model, batch)
